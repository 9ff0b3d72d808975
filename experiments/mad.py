"""Which sequence layers recall, copy, memorise and compress (MAD, Table 4)?

    python experiments/mad.py --workdir=runs/mad --tasks=recall,fuzzy --seeds=1 \
        --set=steps=2000 --tune=optimizer.learning_rate=5e-4,1e-3
    python experiments/mad.py --workdir=runs/recall --tasks=recall,recall/vocabulary=32

Each row is trained on each point with each seed, and tested on other strings: the share of what counts
that is right. `hope_jax.evaluation.mad` says what the tasks are; a task without its points is the size at
which the benchmark begins, and points of a task share a column, in which their mean is. By itself the
command runs those six sizes, with the benchmark's settings: 20,000 steps of 128 strings, which are days
on a laptop; `--set=steps=1000` and fewer rows are hours. The benchmark takes the best of three rates and
two decays for each task; `--tune` chooses one for all tasks, with seeds that are not reported.

Rows: `hope`, `hope_matrix` (matrices for memories, no momentum), `titans_lmm`, `gated_delta_net`,
`delta_net`, `transformer`. All have the parameters of `hope` within 2%, by the width of their MLPs, and
heads such that the recurrent ones keep states of the same size, within a third: of a layer of D
channels and H heads each map is D^2 / H numbers. The Transformer keeps every token. For compression each
has a decoder of 2 D^2 parameters more, the same for all, which gets the last token's activations alone.

Runs that have ended are lines of WORKDIR/runs.jsonl, and a command that is given again goes on.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from hope_jax.commands.suite import start
from hope_jax.comparison.suite import Run, Suite
from hope_jax.comparison.suite_run import make_fitter
from hope_jax.evaluation.answers import share_of_positions
from hope_jax.evaluation.mad import BASELINES, POINTS, TITLES, Sets, make_sets
from hope_jax.layers.family import FAMILY
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.models.auto_encoder import AutoEncoder
from hope_jax.settings import check_fields, setting
from hope_jax.training.config import OptimizerConfig
from hope_jax.training.fit import Evaluation

HOPE = LanguageModelConfig(
    vocab_size=16,  # each point has its own
    width=128,
    num_layers=2,
    num_heads=16,
    mlp_width=256,
    tie_embeddings=False,
    attention_window=1024,
    titans=dict(generator_chunk=16),
)


def _published(name: str, heads: int, **changes: Any) -> dict[str, Any]:
    return {"titans": {**FAMILY[name], **changes}, "num_heads": heads}


# What differs from Hope in the model.
ROWS: dict[str, dict[str, Any]] = {
    "hope": {},
    "hope_matrix": {
        "titans": dict(
            network="matrix",
            momentum="none",
            adaptive=("k", "v"),
            memory_chunk=16,
            generator_chunk=16,
        ),
        "num_heads": 4,
    },
    "titans_lmm": _published("titans_lmm", 4, bounded_step=True),
    "gated_delta_net": _published("gated_delta_net", 1, memory_chunk=16),
    "delta_net": _published("delta_net", 1, memory_chunk=16),
    "transformer": {"sequence_layer": "attention", "titans": {}, "num_heads": 4},
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a row's results depend on, besides the point and the seed."""

    steps: int = setting("of training at most", 20_000, least=1)
    batch_size: int = setting("strings of a step", 128, least=1)
    evaluate_every: int = setting("steps from one validation to the next", 100, least=1)
    validation: int = setting("strings that say when to stop and what is best", 256, least=1)
    test: int = setting("strings to test on", 1_280, least=1)
    model: LanguageModelConfig = setting("the model, but for its vocabulary", HOPE)
    optimizer: OptimizerConfig = setting(
        "how it learns",
        OptimizerConfig(
            name="adamw",
            learning_rate=1e-3,
            warmup_steps=0,
            final_fraction=1e-3,
            weight_decay=0.0,
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)


def make_data(settings: Settings, name: str, seed: int) -> Sets:
    """The strings of a run."""
    return make_sets(POINTS[name], seed, validation=settings.validation, test=settings.test)


def make_run(settings: Settings) -> Run:
    """A function that trains and tests a row's model."""

    @functools.cache
    def fitter(vocabulary: int, model: type[LanguageModel]) -> Callable[..., Any]:
        config = dataclasses.replace(settings.model, vocab_size=vocabulary)
        return make_fitter(settings, model(config), share_of_positions)

    def run(name: str, sets: Sets, seed: int, report: Callable[[Evaluation], None]) -> dict:
        point = POINTS[name]
        fit = fitter(
            point.vocabulary, AutoEncoder if point.task == "compression" else LanguageModel
        )
        return fit(sets.train, {"right": sets.validation}, {"right": sets.test}, seed, report)

    return run


def title(settings: Settings) -> str:
    return "What counts that is right, in per cent."


SUITE = Suite(title, Settings, HOPE, ROWS, TITLES, make_data, make_run, BASELINES)

if __name__ == "__main__":
    start(SUITE, __file__, __doc__)
