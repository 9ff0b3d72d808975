"""Which models learn six formal languages, and go on being right on longer strings (Table 5)?

    python experiments/formal_languages.py --workdir=runs/formal
    python experiments/formal_languages.py --workdir=runs/search --rows=hope --seeds=1 \
        --tasks=parity,counter-2 --set=model.titans.gate_margin=0 --set=steps=1000

Each row is trained on each language with each seed, on strings of sizes 2 to 50 (Bin0), and tested on
others of these sizes, of sizes 51 to 100 (Bin1) and of 1,000 symbols; a string counts only if every
position is right. `hope_jax.evaluation.formal_languages` says what the strings are and what is to be told
of them. A seed fixes the strings, their order and the initial weights' randomness, for all rows alike.
Training ends before its last step where two evaluations in a row find all validation strings of both bins
right, and the test is of the parameters that did best in validation.

Rows: `hope`, and small changes to it, `transformer` (without positions), `delta_net` with steps to 1 and
`delta_net_negative` with steps to 2, which can turn a memory's sign, `ttt_mlp`, `titans_lmm`, `lstm`. All
have the parameters of `hope` within 2%, by the width of their MLPs. `--set=KEY=VALUE` changes all rows;
`--settings` shows what there is to set.

`--tune=KEY=VALUE,VALUE` chooses a setting for each row, one for all languages, by validation with seeds
that are not reported.

Every run that has ended is a line of WORKDIR/runs.jsonl, so that a command that is stopped and given
again goes on, and one with other rows, languages or more seeds runs what is new. WORKDIR/results.md is
written anew after each run. `--set=data=DIR` takes the strings of Bin0 and Bin1 from the original's
files, DIR/LANGUAGE/{train,valid,test}_50.{src,tgt}.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from hope_jax.commands.suite import start
from hope_jax.comparison.suite import Run, Suite
from hope_jax.comparison.suite_run import make_fitter
from hope_jax.evaluation.answers import share_of_strings
from hope_jax.evaluation.formal_languages import (
    BIN0,
    BIN1,
    LANGUAGES,
    VOCABULARY,
    Sets,
    as_examples,
    make_sets,
    read_sets,
)
from hope_jax.layers.family import FAMILY
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.settings import check_fields, setting
from hope_jax.training.config import OptimizerConfig
from hope_jax.training.fit import Evaluation

HOPE = LanguageModelConfig(
    vocab_size=VOCABULARY,  # of all languages, so that one model is that of each
    width=64,
    num_layers=2,
    num_heads=2,
    mlp_width=128,
    cms_levels=2,
    tie_embeddings=False,  # what is read is no class
    titans=dict(
        adaptive=("k", "v"),
        network="matrix",
        momentum="none",
        # A sign is turned by a strength of exactly 2, and a count is kept by one of exactly 0.
        objective="dot",
        generated_target=False,
        strength="gate",
        strength_max=2.0,
        gate_margin=0.05,
        # Strings of Bin0 would never fill the default's chunks, and the first write be one of the test's.
        memory_chunk=1,
        generator_chunk=1,
    ),
)
# As in the original: angles so small that nothing is rotated.
NO_POSITIONS = {"kind": "linear", "factor": 1e12}


def _published(name: str, **changes: Any) -> dict[str, Any]:
    return {"titans": {**FAMILY[name], **changes}, "cms_levels": 1}


# What differs from Hope in the model.
ROWS: dict[str, dict[str, Any]] = {
    "hope": {},
    "transformer": {
        "sequence_layer": "attention",
        "rope_scaling": NO_POSITIONS,
        "cms_levels": 1,
    },
    "delta_net": _published("delta_net"),
    "delta_net_negative": _published("delta_net", eta_max=2.0),
    "ttt_mlp": _published("ttt_mlp", bounded_step=True),
    "titans_lmm": _published("titans_lmm", bounded_step=True),
    "lstm": {"sequence_layer": "formal_languages.LSTM", "cms_levels": 1},
}


class LSTM(nn.Module):
    """Flax's LSTM as a sequence layer; documents begin with nothing remembered."""

    width: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x, state=None, reset=None):
        cell = nn.OptimizedLSTMCell(self.width, dtype=self.dtype, param_dtype=self.param_dtype)
        if state is None:
            nothing = jnp.zeros((len(x), self.width), self.dtype)
            state = (nothing, nothing)
        reset = jnp.zeros(x.shape[:2], bool) if reset is None else reset

        def read(cell, carry, token):
            x, reset = token
            return cell(jax.tree.map(lambda old: jnp.where(reset[:, None], 0, old), carry), x)

        scan = nn.scan(
            read,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        state, y = scan(cell, state, (x, reset))
        return y, state


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a row's results depend on, besides the language and the seed."""

    steps: int = setting("of training at most", 2000, least=1)
    batch_size: int = setting("strings of a step", 32, least=1)
    evaluate_every: int = setting("steps from one validation to the next", 50, least=1)
    train: int = setting("strings to train on", 10_000, least=1)
    validation: int = setting("strings of each bin that say when to stop", 200, least=1)
    test: int = setting("strings of each bin to test on", 2_000, least=1)
    bin0: tuple[int, ...] = setting("least and largest size that is trained on", BIN0, least=1)
    bin1: tuple[int, ...] = setting("least and largest size of longer strings", BIN1, least=1)
    length: int = setting("symbols of the longest strings", 1_000, least=1)
    long: int = setting("of these, where a language has many", 20, least=1)
    data: str | None = setting("folder of the original's files", None)
    model: LanguageModelConfig = setting("the model", HOPE)
    optimizer: OptimizerConfig = setting(
        "how it learns",
        OptimizerConfig(
            name="adam",
            learning_rate=1e-2,
            warmup_steps=50,
            final_fraction=0.1,
            weight_decay=0.0,
            arguments={"b2": 0.995},
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("bin0", "bin1"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"{name}={getattr(self, name)} must be a least and a largest size")


def make_data(settings: Settings, name: str, seed: int) -> Sets:
    """The strings of a run, those of Bin0 and Bin1 from the original's files if there is a folder."""
    language = LANGUAGES[name]
    names = ("train", "validation", "test", "bin0", "bin1", "length", "long")
    sets = make_sets(language, seed, **{name: getattr(settings, name) for name in names})
    if settings.data is None:
        return sets
    given = read_sets(language, settings.data)
    return given._replace(test={**sets.test, **given.test})


def make_run(settings: Settings) -> Run:
    """A function that trains and tests a row's model."""
    fitter = make_fitter(settings, LanguageModel(settings.model), share_of_strings)

    def run(name: str, sets: Sets, seed: int, report: Callable[[Evaluation], None]) -> dict:
        language = LANGUAGES[name]
        # Of one length for all seeds, whatever their strings, for one program.
        length = max(language.letters * settings.bin0[1], *map(len, sets.train))
        parts = lambda sets: {name: as_examples(language, part) for name, part in sets.items()}
        train = as_examples(language, sets.train, length)
        return fitter(train, parts(sets.validation), parts(sets.test), seed, report)

    return run


def title(settings: Settings) -> str:
    return (
        f"Strings of which every position is right, in per cent: of sizes {settings.bin0[0]} to "
        f"{settings.bin0[1]}, which were trained on, {settings.bin1[0]} to {settings.bin1[1]}, and of "
        f"{settings.length:,} symbols."
    )


SUITE = Suite(
    title,
    Settings,
    HOPE,
    ROWS,
    {name: language.title for name, language in LANGUAGES.items()},
    make_data,
    make_run,
)

if __name__ == "__main__":
    start(SUITE, __file__, __doc__)
