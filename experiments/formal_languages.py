"""Which models learn six formal languages, and go on being right on longer strings (Table 5)?

    python experiments/formal_languages.py --workdir=runs/formal
    python experiments/formal_languages.py --workdir=runs/search --rows=hope --seeds=1 \
        --languages=parity,counter-2 --set=model.titans.eta_max=0.5 --set=steps=1000

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

Every run that has ended is a line of WORKDIR/runs.jsonl, so that a command that is stopped and given
again goes on, and one with other rows, languages or more seeds runs what is new. WORKDIR/results.md is
written anew after each run. `--data=DIR` takes the strings of Bin0 and Bin1 from the original's files,
DIR/LANGUAGE/{train,valid,test}_50.{src,tgt}.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from hope_jax.commands.config import change_settings, config_table
from hope_jax.commands.exit_codes import INTERRUPTED
from hope_jax.comparison.plan import Plan, differences
from hope_jax.data.examples import shuffled_batches
from hope_jax.data.whole_file import write_whole
from hope_jax.evaluation.formal_languages import (
    BIN0,
    BIN1,
    LANGUAGES,
    VOCABULARY,
    Language,
    Sets,
    as_examples,
    make_sets,
    read_sets,
)
from hope_jax.evaluation.whole_strings import are_right, likeliest_classes
from hope_jax.layers.family import FAMILY
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.models.parameter_count import match_parameter_count, parameter_count
from hope_jax.named import look_in
from hope_jax.settings import as_values, check_fields, located, read_settings, setting
from hope_jax.training.config import OptimizerConfig
from hope_jax.training.fit import Evaluation, fit
from hope_jax.training.optimizer import make_optimizer
from hope_jax.training.report import NonFiniteLossError
from hope_jax.training.sharding import check_batch, make_mesh
from hope_jax.training.step import init_state, make_train_step

HOPE = LanguageModelConfig(
    vocab_size=VOCABULARY,  # of all languages, so that one model is that of each
    width=64,
    num_layers=2,
    num_heads=2,
    mlp_width=128,
    cms_levels=2,
    tie_embeddings=False,  # what is read is no class
    # Strings of Bin0 would never fill the default's chunks, and the first write be one of the test's.
    titans=dict(network="matrix", momentum="none", memory_chunk=1, generator_chunk=1),
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
    model: LanguageModelConfig = setting("the model", HOPE)
    optimizer: OptimizerConfig = setting(
        "how it learns",
        OptimizerConfig(
            name="adam",
            learning_rate=2e-3,
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


def row_settings(row: str, changes: Iterable[str] = ()) -> Settings:
    """The settings of a row.

    Raises:
      ValueError: for a row or setting that is none, and for values that do not fit.
    """
    if row not in ROWS:
        raise ValueError(f"--rows has {row!r}; there are {', '.join(ROWS)}")
    with located(row):
        model = match_parameter_count(dataclasses.replace(HOPE, **ROWS[row]), HOPE)
        config = ConfigDict(as_values(Settings(model=model)))
        return read_settings(Settings, change_settings(Settings, config, changes))


def make_data(settings: Settings, language: Language, seed: int, folder: str | None) -> Sets:
    """The strings of a run, those of Bin0 and Bin1 from the original's files if there is a folder."""
    names = ("train", "validation", "test", "bin0", "bin1", "length", "long")
    sets = make_sets(language, seed, **{name: getattr(settings, name) for name in names})
    if folder is None:
        return sets
    given = read_sets(language, folder)
    return given._replace(test={**sets.test, **given.test})


Run = Callable[[Language, Sets, int, Callable[[Evaluation], None]], dict[str, Any]]


def make_run(settings: Settings) -> Run:
    """A function that trains and tests a row's model: (language, strings, seed, report) -> results."""
    model, mesh = LanguageModel(settings.model), make_mesh()
    check_batch(mesh, settings.batch_size, 1)
    optimizer = make_optimizer(as_values(settings.optimizer), settings.steps)
    step, classes = make_train_step(model, optimizer, mesh), likeliest_classes(model)

    def run(
        language: Language, sets: Sets, seed: int, report: Callable[[Evaluation], None]
    ) -> dict[str, Any]:
        def shares(params: Any, parts: Mapping[str, Sequence[str]]) -> dict[str, float]:
            predict = lambda tokens: classes(params, tokens)
            return {
                name: float(are_right(predict, as_examples(language, strings)).mean())
                for name, strings in parts.items()
            }

        # Of one length for all seeds, whatever their strings, for one program.
        length = max(language.letters * settings.bin0[1], *map(len, sets.train))
        begun = time.monotonic()
        try:
            fitted = fit(
                init_state(model, optimizer, mesh, seed),
                step,
                shuffled_batches(
                    as_examples(language, sets.train, length), settings.batch_size, seed
                ),
                lambda params: shares(params, sets.validation),
                steps=settings.steps,
                every=settings.evaluate_every,
                report=report,
            )
        except NonFiniteLossError as error:
            print(error, flush=True)
            return {"right": dict.fromkeys(sets.test, 0.0), "steps": None}
        return {
            "right": shares(fitted.params, sets.test),
            "steps": fitted.evaluations[-1].step,
            "loss": fitted.evaluations[-1].loss,
            "seconds": round(time.monotonic() - begun, 1),
        }

    return run


def read_lines(path: pathlib.Path, rows: Mapping[str, Settings], data: str | None) -> list[dict]:
    """The runs that have ended, of all rows, languages and seeds.

    Raises:
      ValueError: if one is of a row that has other settings now.
    """
    lines = []
    for number, text in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            line = json.loads(text)
        except ValueError:  # of a command that was killed
            continue
        row = line["row"]
        if row in rows and (
            read_settings(Settings, line["settings"]) != rows[row] or line["data"] != data
        ):
            raise ValueError(
                f"{path}, line {number}: {row} was run with other settings; give the same to go on, or "
                f"another --workdir"
            )
        lines.append(line)
    return lines


def add_line(path: pathlib.Path, line: Mapping[str, Any]) -> None:
    """Adds a run that has ended, behind whatever a command that was killed has left."""
    cut = path.exists() and not (path.read_bytes() or b"\n").endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * cut + json.dumps(line) + "\n")


def as_markdown(
    lines: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Settings],
    languages: Sequence[str],
    seeds: int,
    command: str,
) -> str:
    """The table of what was right, that of the steps it took, and the settings."""
    found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        if line["seed"] < seeds:
            found.setdefault((line["row"], line["language"]), {})[line["seed"]] = line

    def right(runs: Sequence[Mapping[str, Any]]) -> str:
        shares = [[run["right"][name] for run in runs] for name in runs[0]["right"]]
        cell = " / ".join(f"{100 * math.fsum(part) / len(part):.4g}" for part in shares)
        return cell + ("" if len(runs) == seeds else f" ({len(runs)} of {seeds} seeds)")

    def steps(runs: Sequence[Mapping[str, Any]]) -> str:
        taken = [run["steps"] for run in runs if run["steps"] is not None]
        cells = [f"{statistics.mean(taken):,.0f}"] if taken else []
        return ", ".join(cells + [f"{len(runs) - len(taken)} diverged"] * (len(taken) < len(runs)))

    def table(cell: Callable[[Sequence[Mapping[str, Any]]], str]) -> list[str]:
        heads = ["row", "parameters", *(LANGUAGES[name].title for name in languages)]
        made = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for row, settings in rows.items():
            runs = [list(found.get((row, language), {}).values()) for language in languages]
            cells = [
                row,
                f"{parameter_count(settings.model):,}",
                *(cell(r) if r else "" for r in runs),
            ]
            made.append("| " + " | ".join(cells) + " |")
        return made

    configs = {row: ConfigDict(as_values(settings)) for row, settings in rows.items()}
    base = next(iter(rows))
    plan = Plan(configs, {}, 0, seeds, base, pathlib.Path())
    some = rows[base]
    notes = [
        f"Strings of which every position is right, in per cent: of sizes {some.bin0[0]} to "
        f"{some.bin0[1]}, which were trained on, {some.bin1[0]} to {some.bin1[1]}, and of "
        f"{some.length:,} symbols. Mean of {seeds} seed{'s' * (seeds > 1)}; a run that diverged has 0.",
        "",
        *table(right),
        "",
        f"Steps of {some.batch_size} strings until all of the validation was right twice in a row, at "
        f"most {some.steps:,}:",
        "",
        *table(steps),
    ]
    changed = [
        f"* {row}: {', '.join(f'`{item}`' for item in differences(plan, row))}"
        for row in rows
        if row != base
    ]
    if changed:
        notes += ["", f"What is set otherwise than in {base}:", "", *changed]
    notes += [
        "",
        f"Settings of {base}:",
        "",
        "```",
        config_table(Settings, configs[base]).strip(),
        "```",
    ]
    return "\n".join(["```", command, "```", "", *notes, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what has not been run, and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--languages", default=",".join(LANGUAGES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data", metavar="DIR", help="of the original's files")
    parser.add_argument("--settings", action="store_true", help="show the first row's, and end")
    given = parser.parse_args(arguments)
    look_in(pathlib.Path(__file__).parent)  # for the LSTM
    names = given.languages.split(",")
    path = given.workdir / "runs.jsonl"
    try:
        if unknown := [name for name in names if name not in LANGUAGES]:
            raise ValueError(f"--languages has {unknown[0]!r}; there are {', '.join(LANGUAGES)}")
        if given.seeds < 1:
            raise ValueError(f"--seeds={given.seeds} must be at least 1")
        rows = {row: row_settings(row, given.set) for row in given.rows.split(",")}
        if given.settings:
            config = ConfigDict(as_values(next(iter(rows.values()))))
            print(config_table(Settings, config), end="")
            return
        lines = read_lines(path, rows, given.data)
        done = {(line["row"], line["language"], line["seed"]) for line in lines}
        left = [
            (row, name, seed)
            for row in rows
            for name in names
            for seed in range(given.seeds)
            if (row, name, seed) not in done
        ]
        some = next(iter(rows.values()))
        data = {
            (name, seed): make_data(some, LANGUAGES[name], seed, given.data)
            for name, seed in sorted({run[1:] for run in left})
        }
        runs = {row: make_run(rows[row]) for row in dict.fromkeys(run[0] for run in left)}
    except (ValueError, OSError) as error:
        parser.error(str(error))
    given.workdir.mkdir(parents=True, exist_ok=True)
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(given.workdir / "programs"))
    command = shlex.join(
        ["python", "experiments/formal_languages.py", *(arguments or sys.argv[1:])]
    )

    def write() -> str:
        # Read anew: another command may have run other rows meanwhile.
        lines = read_lines(path, rows, given.data)
        text = as_markdown(lines, rows, names, given.seeds, command)
        write_whole(given.workdir / "results.md", text)
        return text

    print(f"runs to do: {len(left)}", flush=True)
    for row, name, seed in left:

        def report(one: Evaluation, title: str = f"{row}, {name}, seed {seed}") -> None:
            shares = ", ".join(f"{part} {100 * share:.4g}" for part, share in one.right.items())
            print(f"{title}: step {one.step:,}, loss {one.loss:.4f}, {shares}", flush=True)

        result = runs[row](LANGUAGES[name], data[name, seed], seed, report)
        shares = ", ".join(f"{part} {100 * share:.4g}" for part, share in result["right"].items())
        print(f"{row}, {name}, seed {seed}: {shares}", flush=True)
        line = {"row": row, "language": name, "seed": seed, **result, "data": given.data}
        add_line(path, {**line, "settings": as_values(rows[row])})
        write()
    print(write().split("\nSettings of")[0])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
