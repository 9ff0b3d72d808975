"""A suite: rows that are trained on the suite's own tasks, the runs that have ended, and the table."""

import itertools
import math
import pathlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from hope_jax.comparison.plan import Plan, differences, in_words
from hope_jax.data.json_lines import read_json_lines
from hope_jax.models import LanguageModelConfig
from hope_jax.models.parameter_count import parameter_count, state_bytes
from hope_jax.settings import as_values, read_settings
from hope_jax.training.fit import Evaluation

Tuned = tuple[tuple[str, Any], ...]
Run = Callable[[str, Any, int, Callable[[Evaluation], None]], dict[str, Any]]


class Suite(NamedTuple):
    """A benchmark whose models are trained on its own data.

    Attributes:
      title: what the table says of itself, from the first row's settings.
      settings: dataclass of all that a row's results depend on, besides the task and the seed. Among
        its fields are `model` and `optimizer`, and those that `comparison.suite_run` reads.
      base: the model that rows change, of whose size they all are.
      rows: what differs in the model, by name.
      tasks: what a table calls them, by name. Those of one title share a column, in which their mean
        is.
      make_data: of a task: `make_data(settings, task, seed)`.
      make_run: trains and tests a row's model: `make_run(settings)(task, data, seed, report)`, with
        the shares that are `right` of each part of the test, those of `validation`, and more.
      default_tasks: what is run if no task is named; empty for all.
    """

    title: Callable[[Any], str]
    settings: Any
    base: LanguageModelConfig
    rows: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[str, str]
    make_data: Callable[[Any, str, int], Any]
    make_run: Callable[[Any], Run]
    default_tasks: Sequence[str] = ()


class Trial(NamedTuple):
    """One run.

    Attributes:
      row: name of what is compared.
      tuned: the tuned settings, by their dotted keys.
      task: name.
      seed: of the data, their order and the initial weights.
    """

    row: str
    tuned: Tuned
    task: str
    seed: int

    def __str__(self) -> str:
        return ", ".join(
            filter(None, (self.row, in_words(self.tuned), self.task, f"seed {self.seed}"))
        )


class SuitePlan(NamedTuple):
    """What is to be run of a suite.

    Attributes:
      rows: settings of each row by what is tuned; `()` where nothing is.
      tasks: names.
      selection_seeds: how many seeds, from 0 on, choose what is tuned. They are not reported.
      seeds: how many others are.
    """

    rows: Mapping[str, Mapping[Tuned, Any]]
    tasks: Sequence[str]
    selection_seeds: int
    seeds: int

    def selection(self, row: str) -> list[Trial]:
        """The runs that choose the settings of a row; none where there is nothing to choose from."""
        choices = self.rows[row]
        if len(choices) == 1:
            return []
        return [
            Trial(row, tuned, task, seed)
            for task, tuned, seed in itertools.product(
                self.tasks, choices, range(self.selection_seeds)
            )
        ]

    def chosen(self, row: str, lines: Sequence[Mapping[str, Any]]) -> Tuned | None:
        """What is best in the mean over tasks and selection seeds; None before all of them have run.

        One choice for all tasks: a model that needs other settings for each would not be one model.
        """
        choices = list(self.rows[row])
        if len(choices) == 1:
            return choices[0]
        done = {trial_of(line): line for line in lines}
        trials = self.selection(row)
        if not done.keys() >= set(trials):
            return None

        def score(tuned: Tuned) -> float:
            return math.fsum(done[one]["validation"] for one in trials if one.tuned == tuned)

        return max(choices, key=score)

    def reported(self, row: str, tuned: Tuned) -> list[Trial]:
        """The runs of the table's row, for settings that have been chosen."""
        first = self.selection_seeds if len(self.rows[row]) > 1 else 0
        seeds = range(first, first + self.seeds)
        return [Trial(row, tuned, task, seed) for task in self.tasks for seed in seeds]


def trial_of(line: Mapping[str, Any]) -> Trial:
    """The run whose result a line is."""
    tuned = tuple((key, value) for key, value in line["tuned"])
    return Trial(line["row"], tuned, line["task"], line["seed"])


def read_lines(path: pathlib.Path, plan: SuitePlan) -> list[dict[str, Any]]:
    """The runs that have ended, of all rows, tasks and seeds.

    Raises:
      ValueError: if one is of a row that has other settings now.
    """
    lines = []
    for number, line in read_json_lines(path):
        trial = trial_of(line)
        known = plan.rows.get(trial.row, {}).get(trial.tuned)
        if known is not None and read_settings(type(known), line["settings"]) != known:
            raise ValueError(
                f"{path}, line {number}: {trial.row} was run with other settings; give the same to go "
                f"on, or another --workdir"
            )
        lines.append(line)
    return lines


def suite_table(
    suite: Suite, plan: SuitePlan, lines: Sequence[Mapping[str, Any]], command: str
) -> str:
    """The table of what was right, that of the steps it took, and how rows differ, as Markdown."""
    done = {trial_of(line): line for line in lines}
    chosen = {row: plan.chosen(row, lines) for row in plan.rows}
    columns = list(dict.fromkeys(suite.tasks[task] for task in plan.tasks))

    def runs_of(row: str, title: str) -> Iterator[list[Mapping[str, Any]]]:
        """Those that have ended, task by task."""
        tuned = chosen[row]
        if tuned is None:
            return
        for task in plan.tasks:
            if suite.tasks[task] == title:
                trials = [one for one in plan.reported(row, tuned) if one.task == task]
                yield [done[one] for one in trials if one in done]

    def right(row: str, title: str) -> str:
        tasks = list(runs_of(row, title))
        runs = [run for task in tasks for run in task]
        if not runs:
            return ""
        parts = [[run["right"][name] for run in runs] for name in runs[0]["right"]]
        cell = " / ".join(f"{100 * statistics.fmean(part):.4g}" for part in parts)
        wanted = plan.seeds * len(tasks)
        return cell + ("" if len(runs) == wanted else f" ({len(runs)} of {wanted} runs)")

    def steps(row: str, title: str) -> str:
        taken = [run["steps"] for task in runs_of(row, title) for run in task]
        ended = [steps for steps in taken if steps is not None]
        cells = [f"{statistics.mean(ended):,.0f}"] if ended else []
        diverged = len(taken) - len(ended)
        return ", ".join(cells + [f"{diverged} diverged"] * (diverged > 0))

    def table(cell: Callable[[str, str], str]) -> list[str]:
        tuned = [*dict.fromkeys(key for row in plan.rows.values() for one in row for key, _ in one)]
        made = [
            "| " + " | ".join(["row", "parameters", "state bytes", *tuned, *columns]) + " |",
            "|---" * (3 + len(tuned) + len(columns)) + "|",
        ]
        for row, choices in plan.rows.items():
            some = next(iter(choices.values()))
            best = dict(chosen[row] or ())
            cells = [row, f"{parameter_count(some.model):,}", f"{state_bytes(some.model):,}"]
            cells += [f"{best[key]:g}" if key in best else "" for key in tuned]
            made.append(
                "| " + " | ".join([*cells, *(cell(row, title) for title in columns)]) + " |"
            )
        return made

    some = {row: next(iter(choices.values())) for row, choices in plan.rows.items()}
    base = next(iter(some))
    configs = {row: ConfigDict(as_values(settings)) for row, settings in some.items()}
    # Rows are tuned alike: what is tuned is in the table.
    tuned_keys = {key for choices in plan.rows.values() for one in choices for key, _ in one}
    shown = Plan(configs, {}, 0, plan.seeds, base, pathlib.Path())
    changed = [
        f"* {row}: {', '.join(f'`{item}`' for item in differences(shown, row))}"
        for row in some
        if row != base
    ]
    notes = [
        f"{suite.title(some[base])} Mean of {plan.seeds} seed{'s' * (plan.seeds > 1)}; a run that "
        f"diverged has 0.",
        "",
        *table(right),
        "",
        f"Steps of {some[base].batch_size} until nothing of the validation was wrong twice in a row, at "
        f"most {some[base].steps:,}:",
        "",
        *table(steps),
    ]
    if tuned_keys:
        notes += [
            "",
            f"{', '.join(f'`{key}`' for key in sorted(tuned_keys))}: the best of those tried for the "
            f"row, in the mean of validation over all tasks and {plan.selection_seeds} "
            f"seed{'s' * (plan.selection_seeds > 1)} that the table does not report.",
        ]
        for row, choices in plan.rows.items():
            tried = ", ".join(in_words(tuned) for tuned in choices)
            notes += ["", f"Tried for {row}: {tried}."]
    if changed:
        notes += ["", f"What is set otherwise than in {base}:", "", *changed]
    return "\n".join(["```", command, "```", "", *notes, ""])
