r"""Trains variants of a config at equal tokens and seeds, and writes a table and two pictures.

    hope compare --config=experiments/ablations.py:hope,no_dgd --workdir=runs/ablations \
        --tune=optimizer.learning_rate=6e-3,1e-2,1.6e-2 --seeds=3 --set=steps=300
    hope compare --config=experiments/quickstart.py:hope --workdir=runs/chunks \
        --vary=model.titans.memory_chunk=16,64 --vary=optimizer.name=m3,adamw --seeds=5 --jobs=2

Rows are the variants of the config, or all combinations of those with the values in --vary. Each row
has settings of its own for what is in --tune: all combinations are run with the selection seeds, and
the one with the least mean validation loss is run with the seeds that are reported, which are others.
The table has the mean of each row, and its difference from the baseline's, seed by seed, with standard
errors. Run again, it goes on where it stopped, and with other rows or more seeds it runs only what is
new. `table.md`, `rows.png` and `losses.png` are written anew after every run.
"""

import functools
import math
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from hope_jax.commands.config import change_settings, define_set_flag, read_config
from hope_jax.comparison.jobs import run_trials
from hope_jax.comparison.picture import draw_curves, draw_rows
from hope_jax.comparison.plan import Plan, Trial, check_plan
from hope_jax.comparison.table import Line, as_markdown, choose, count_cost, summarize
from hope_jax.comparison.trial import Result, read_result, run_trial
from hope_jax.counts import count
from hope_jax.data.bucket import refuse_address
from hope_jax.data.whole_file import write_whole
from hope_jax.data.whole_folder import check_writable
from hope_jax.exit_codes import SAVED
from hope_jax.training.config import RunConfig, whole_config


def read_rows(
    spec: str, changes: Sequence[str] = (), vary: Sequence[str] = ()
) -> dict[str, ConfigDict]:
    """The whole configs of a comparison's rows.

    Args:
      spec: path of a file with `get_config(variant)`, a colon, and variants with commas between; a
        file alone is one row.
      changes: settings of all of them, such as `steps=300`.
      vary: settings with several values, such as `seed=1,2`; each makes a row of each row.

    Raises:
      ValueError: if there is no such file, no variant, or no such setting.
    """
    path, _, names = spec.partition(":")
    variants = names.split(",") if names else [""]
    if twice := [name for name in variants if variants.count(name) > 1]:
        raise ValueError(f"--config has {twice[0]!r} twice; leave one out")
    rows: dict[str, ConfigDict] = {}
    for name in variants:
        config = read_config(f"{path}:{name}" if name else path)
        rows[name or Path(path).stem] = change_settings(RunConfig, config, changes)
    for text in vary:
        key, values = _key_and_values(text, "--vary")
        rows = {
            f"{name},{key}={value}": change_settings(RunConfig, config, [f"{key}={value}"])
            for name, config in rows.items()
            for value in values
        }
    notes: list[str] = []
    whole = {name: whole_config(config, notes.append) for name, config in rows.items()}
    for line in dict.fromkeys(notes):  # once, though all rows may need it
        print(line)
    return whole


def read_tuned(texts: Sequence[str], rows: Mapping[str, ConfigDict]) -> dict[str, tuple[Any, ...]]:
    """The settings that are tuned, with their values as the rows' configs have them.

    Args:
      texts: such as `optimizer.learning_rate=1e-3,2e-3`.
      rows: configs that must take them.

    Raises:
      ValueError: for a setting that is none, is given twice, or has a value that does not fit a row.
    """
    tuned: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, values = _key_and_values(text, "--tune")
        if key in tuned:
            raise ValueError(f"--tune={key} is given twice; give all its values in one")
        for config in rows.values():
            changed = [
                whole_config(change_settings(RunConfig, config, [f"{key}={value}"]))
                for value in values
            ]
        tuned[key] = tuple(_value(config, key) for config in changed)
    return tuned


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _key_and_values(text: str, flag: str) -> tuple[str, list[str]]:
    """A setting and its values, between commas that are in no brackets.

    Example:
      >>> _key_and_values("model.in_context.chunks=(4,8),(8,16)", "--vary")
      ('model.in_context.chunks', ['(4,8)', '(8,16)'])
    """
    key, _, rest = text.partition("=")
    values, depth = [""], 0
    for character in rest:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            values.append("")
        else:
            values[-1] += character
    if not key or "" in values:
        raise ValueError(f"{flag}={text} must be KEY=VALUE,VALUE,...")
    return key, values


def compare(plan: Plan, jobs: int, command: str) -> list[Line] | None:
    """Runs what has not been run yet, and writes table and pictures.

    Args:
      plan: of the comparison.
      jobs: runs that go on at once.
      command: that the table names.

    Returns:
      The table's lines; None if the process was asked to stop.

    Raises:
      ValueError: if the folder holds runs with other settings.
    """
    costs = {row: count_cost(config) for row, config in plan.rows.items()}
    results: list[Result] = []
    progress = _Progress()
    work = functools.partial(run_trial, programs=plan.workdir / "programs")

    def write() -> list[Line]:
        lines = summarize(plan, results)
        write_whole(plan.workdir / "table.md", as_markdown(plan, lines, costs, command))
        draw_rows(lines, plan.baseline, plan.workdir / "rows.png")
        draw_curves(lines, plan.workdir / "losses.png")
        return lines

    def take(trials: Sequence[Trial], later: int) -> bool:
        there = [(trial, read_result(trial)) for trial in trials]
        results.extend(result for _, result in there if result is not None)
        left = [trial for trial, result in there if result is None]
        progress.begin(len(left) + later)

        def done(trial: Trial) -> None:
            result = read_result(trial)
            assert result is not None
            results.append(result)
            progress.say(result)
            write()

        return run_trials(left, jobs, work, done)

    plan.workdir.mkdir(parents=True, exist_ok=True)
    if not take(plan.selection(), later=len(plan.rows) * plan.seeds):
        return None
    reported = []
    for row in plan.rows:
        chosen = choose(plan, row, results)
        assert chosen is not None
        reported += plan.reported(row, chosen)
    return write() if take(reported, later=0) else None


class _Progress:
    """Says how far a comparison is."""

    def __init__(self) -> None:
        self.left = 0
        self.seconds: list[float] = []
        self.last = time.perf_counter()

    def begin(self, left: int) -> None:
        self.left = left
        self.last = time.perf_counter()

    def say(self, result: Result) -> None:
        self.left -= 1
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
        loss = "diverged" if result.loss == math.inf else f"validation loss {result.loss:.4f}"
        minutes = statistics.mean(self.seconds) * self.left / 60
        left = f"; left: {self.left}, some {minutes:.1f} min" if self.left else ""
        print(f"{result.trial}: {loss}{left}", flush=True)


def _command() -> str:
    """What was asked for, to be asked for again."""
    given = flags.FLAGS
    parts = [f"--config={given.config}", f"--workdir={given.workdir}"]
    parts += [f"--{name}={text}" for name in ("vary", "tune", "set") for text in given[name].value]
    numbers = ("selection_seeds", "seeds", "baseline")
    parts += [f"--{name}={given[name].value}" for name in numbers if given[name].present]
    return shlex.join(["hope", "compare", *parts])


UNEXPECTED = "settings look like --set=steps=300"


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("config", None, "Config file and variants, file.py:one,two.", required=True)
    flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
    flags.DEFINE_multi_string("vary", [], "A setting and values that make rows, KEY=A,B")
    flags.DEFINE_multi_string("tune", [], "A setting and values to choose from for each row")
    flags.DEFINE_integer("selection_seeds", 1, "Seeds that choose among them.", lower_bound=1)
    flags.DEFINE_integer("seeds", 1, "Other seeds, which are reported.", lower_bound=1)
    flags.DEFINE_string("baseline", None, "Row that others are compared with; else the first.")
    flags.DEFINE_integer("jobs", 1, "Runs that go on at once, sharing the cores.", lower_bound=1)
    define_set_flag()


def run() -> int | None:
    """Runs the command; the exit code where that is not 0."""
    given = flags.FLAGS
    refuse_address(given.workdir, "--workdir")
    check_writable(Path(given.workdir) / "table.md", "--workdir")
    rows = read_rows(given.config, given.set, given.vary)
    plan = Plan(
        rows,
        read_tuned(given.tune, rows),
        given.selection_seeds,
        given.seeds,
        next(iter(rows)) if given.baseline is None else given.baseline,
        Path(given.workdir),
    )
    check_plan(plan)
    choices, reported = len(plan.choices()), len(rows) * plan.seeds
    counts, total = f"{count(len(rows), 'row')} x {count(plan.seeds, 'seed')}", reported
    if choices > 1:
        total += len(rows) * choices * plan.selection_seeds
        selecting = (
            f"{count(len(rows), 'row')} x {choices} settings x "
            f"{count(plan.selection_seeds, 'selection seed')}"
        )
        counts = f"{selecting}, then {counts}"
    print(f"{counts}: {count(total, 'run')}", flush=True)
    if compare(plan, given.jobs, _command()) is None:
        print(f"stopped and saved; run again to go on in {plan.workdir}")
        return SAVED
    print((plan.workdir / "table.md").read_text(), end="")
    print(f"drawn in {plan.workdir / 'rows.png'} and {plan.workdir / 'losses.png'}")
    return None
