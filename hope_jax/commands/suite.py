"""The command line of a suite whose models are trained on its own data."""

import argparse
import dataclasses
import itertools
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from hope_jax.commands.config import change_settings, config_table, parse
from hope_jax.comparison.suite import (
    Suite,
    SuitePlan,
    Trial,
    Tuned,
    read_lines,
    suite_table,
    trial_of,
)
from hope_jax.comparison.trial import keep_programs
from hope_jax.data.json_lines import add_json_line
from hope_jax.data.whole_file import write_whole
from hope_jax.exit_codes import INTERRUPTED
from hope_jax.models.parameter_count import match_parameter_count
from hope_jax.named import look_in
from hope_jax.settings import as_values, describe, located, read_settings
from hope_jax.training.fit import Evaluation


def row_settings(suite: Suite, row: str, changes: Sequence[str] = ()) -> Any:
    """The settings of a row.

    Raises:
      ValueError: for a row or setting that is none, and for values that do not fit.
    """
    if row not in suite.rows:
        raise ValueError(f"--rows has {row!r}; there are {', '.join(suite.rows)}")
    with located(row):
        model = match_parameter_count(
            dataclasses.replace(suite.base, **suite.rows[row]), suite.base
        )
        config = ConfigDict(as_values(suite.settings(model=model)))
        return read_settings(suite.settings, change_settings(suite.settings, config, changes))


def make_plan(suite: Suite, given: argparse.Namespace) -> SuitePlan:
    """What is to be run.

    Raises:
      ValueError: for a row, task, setting or value that is none.
    """
    tasks = given.tasks.split(",")
    if unknown := [name for name in tasks if name not in suite.tasks]:
        raise ValueError(f"--tasks has {unknown[0]!r}; there are {', '.join(suite.tasks)}")
    for name in ("seeds", "selection_seeds"):
        if getattr(given, name) < 1:
            raise ValueError(f"--{name}={getattr(given, name)} must be at least 1")
    hints = {row.key: row.hint for row in describe(suite.settings)}
    tried: list[list[tuple[str, Any]]] = []
    for text in given.tune:
        key, _, values = text.partition("=")
        if key not in hints or not values:
            raise ValueError(f"--tune={text} must be KEY=VALUE,VALUE of a setting")
        tried.append([(key, parse(hints[key], value)) for value in values.split(",")])
    rows: dict[str, dict[Tuned, Any]] = {}
    for row in given.rows.split(","):
        rows[row] = {
            tuned: row_settings(
                suite, row, [*given.set, *(f"{key}={value}" for key, value in tuned)]
            )
            for tuned in itertools.product(*tried)
        }
    return SuitePlan(rows, tasks, given.selection_seeds, given.seeds)


def main(suite: Suite, script: str, description: str, arguments: Sequence[str]) -> None:
    """Runs what has not been run, and writes the table.

    Args:
      suite: that is run.
      script: its file.
      description: for `--help`.
      arguments: of the command line.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--rows", default=",".join(suite.rows))
    parser.add_argument("--tasks", default=",".join(suite.default_tasks or suite.tasks))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--tune", action="append", default=[], metavar="KEY=VALUE,VALUE")
    parser.add_argument("--selection_seeds", type=int, default=1)
    parser.add_argument("--settings", action="store_true", help="show the first row's, and end")
    given = parser.parse_args(arguments)
    folder = pathlib.Path(script).parent
    look_in(folder)  # for layers of the script's own
    path = given.workdir / "runs.jsonl"
    try:
        plan = make_plan(suite, given)
        some = next(iter(next(iter(plan.rows.values())).values()))
        shown = config_table(suite.settings, ConfigDict(as_values(some)))
        if given.settings:
            print(shown, end="")
            return
        lines = read_lines(path, plan)
        data = {(task, 0): suite.make_data(some, task, 0) for task in plan.tasks}
        runs: dict[tuple[str, Tuned], Any] = {}
    except (ValueError, OSError) as error:
        parser.error(str(error))
    given.workdir.mkdir(parents=True, exist_ok=True)
    keep_programs(given.workdir / "programs")
    command = shlex.join(["python", f"{folder.name}/{pathlib.Path(script).name}", *arguments])

    def write() -> str:
        # Read anew: another command may have run other rows meanwhile.
        text = suite_table(suite, plan, read_lines(path, plan), command)
        settings = f"\nSettings of {next(iter(plan.rows))}:\n\n```\n{shown.strip()}\n```\n"
        write_whole(given.workdir / "results.md", text + settings)
        return text

    def run(trial: Trial) -> None:
        def report(one: Evaluation) -> None:
            print(
                f"{trial}: step {one.step:,}, loss {one.loss:.4f}, {_shares(one.right)}", flush=True
            )

        key = trial.task, trial.seed
        if key not in data:
            data[key] = suite.make_data(some, *key)
        settings = plan.rows[trial.row][trial.tuned]
        if (trial.row, trial.tuned) not in runs:
            runs.clear()  # rows come one after the other
            runs[trial.row, trial.tuned] = suite.make_run(settings)
        result = runs[trial.row, trial.tuned](trial.task, data[key], trial.seed, report)
        print(f"{trial}: {_shares(result['right'])}", flush=True)
        add_json_line(path, {**trial._asdict(), **result, "settings": as_values(settings)})
        write()

    def left(trials: Sequence[Trial]) -> list[Trial]:
        done = set(map(trial_of, lines))
        return [trial for trial in trials if trial not in done]

    for row in plan.rows:
        trials = left(plan.selection(row))
        print(f"{row}: runs to choose its settings by: {len(trials)}", flush=True)
        for trial in trials:
            run(trial)
        lines = read_lines(path, plan)
        tuned = plan.chosen(row, lines)
        assert tuned is not None  # all of the selection has run
        trials = left(plan.reported(row, tuned))
        print(f"{row}: runs to report: {len(trials)}", flush=True)
        for trial in trials:
            run(trial)
    print(write())


def _shares(right: Any) -> str:
    return ", ".join(f"{part} {100 * share:.4g}" for part, share in right.items())


def start(suite: Suite, script: str, description: str) -> None:
    """Runs the command with the arguments that were given."""
    try:
        main(suite, script, description, sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
