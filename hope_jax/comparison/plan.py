"""What is compared: rows, the settings that are tuned for each of them, and the runs that this takes."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from hope_jax.training.config import whole_config


class Trial(NamedTuple):
    """One training run.

    Attributes:
      row: name of what is compared.
      tuned: the tuned settings, by their dotted keys.
      seed: counted from 0; it is added to the config's own.
      folder: of the run.
      config: whole, with all of that in it.
    """

    row: str
    tuned: tuple[tuple[str, Any], ...]
    seed: int
    folder: Path
    config: dict[str, Any]

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.row, in_words(self.tuned), f"seed {self.seed}")))


class Plan(NamedTuple):
    """A comparison.

    Attributes:
      rows: whole configs by name, in the order of the table.
      tuned: settings that are tried for each row, by their dotted keys, with their values.
      selection_seeds: how many seeds, from 0 on, choose among those. They are not reported.
      seeds: how many others are.
      baseline: the row that the others are compared with, seed by seed.
      workdir: folder of all runs.
    """

    rows: Mapping[str, ConfigDict]
    tuned: Mapping[str, Sequence[Any]]
    selection_seeds: int
    seeds: int
    baseline: str
    workdir: Path

    def choices(self) -> list[tuple[tuple[str, Any], ...]]:
        """All combinations of the tuned settings; a single one if nothing is tuned."""
        keys = list(self.tuned)
        return [
            tuple(zip(keys, values, strict=True))
            for values in itertools.product(*self.tuned.values())
        ]

    def selection(self) -> list[Trial]:
        """The runs that choose; none where there is nothing to choose from."""
        choices = self.choices()
        return [
            self.trial(row, tuned, seed)
            for row in self.rows
            for tuned in choices
            for seed in range(self.selection_seeds)
            if len(choices) > 1
        ]

    def reported(self, row: str, tuned: tuple[tuple[str, Any], ...]) -> list[Trial]:
        """The runs of the table's row, for settings that have been chosen."""
        first = self.selection_seeds if len(self.choices()) > 1 else 0
        return [self.trial(row, tuned, seed) for seed in range(first, first + self.seeds)]

    def trial(self, row: str, tuned: tuple[tuple[str, Any], ...], seed: int) -> Trial:
        """One run of a row."""
        config = ConfigDict(self.rows[row].to_dict())
        for key, value in tuned:
            config.update_from_flattened_dict({key: value})
        config.seed += seed
        plain = json.loads(whole_config(config).to_json_best_effort())
        folder = self.folder(row, tuned) / f"seed_{seed}"
        return Trial(row, tuned, seed, folder, plain)

    def folder(self, row: str, tuned: tuple[tuple[str, Any], ...]) -> Path:
        """Where the runs of a row at some settings lie, whatever their seed."""
        return self.workdir.joinpath(*map(_as_name, filter(None, (row, in_words(tuned)))))


def in_words(tuned: Sequence[tuple[str, Any]]) -> str:
    """Settings such as `optimizer.learning_rate=0.006`, with commas between."""
    return ",".join(f"{key}={shown(value)}" for key, value in tuned)


def shown(value: Any) -> str:
    """A value in few characters."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def differences(plan: Plan, row: str) -> list[str]:
    """What a row has set otherwise than the baseline, as `key=value`."""
    own, base = (dict(_flat(plan.rows[name].to_dict())) for name in (row, plan.baseline))
    return [
        f"{key}={shown(own[key])}" if key in own else f"without {key}"
        for key in sorted({*own, *base})
        if key not in own or key not in base or own[key] != base[key]
    ]


def _flat(values: Any, within: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{within}{key}.")
        else:
            yield within + key, value


def _as_name(part: str) -> str:
    """A name for a folder."""
    return re.sub(r"[^\w.,=+-]", "_", part)


def check_plan(plan: Plan) -> None:
    """Sees that every run has settings and a folder of its own.

    Raises:
      ValueError: if two rows or two values come out the same, the baseline is no row, or a value does
        not fit.
    """
    if plan.baseline not in plan.rows:
        raise ValueError(
            f"--baseline={plan.baseline} is no row; there are {', '.join(map(repr, plan.rows))}"
        )
    for (name, config), (other, theirs) in itertools.combinations(plan.rows.items(), 2):
        if config == theirs:
            raise ValueError(f"rows {name!r} and {other!r} are the same; leave one out")
    for key, values in plan.tuned.items():
        for one, two in itertools.combinations(values, 2):
            if shown(one) == shown(two):
                raise ValueError(f"--tune={key} has {shown(one)} twice; leave one out")
    runs: dict[Path, str] = {}
    for row, tuned in itertools.product(plan.rows, plan.choices()):
        folder, said = plan.folder(row, tuned), ", ".join(filter(None, (row, in_words(tuned))))
        if runs.setdefault(folder, said) != said:
            raise ValueError(
                f"{runs[folder]} and {said} would lie in one folder, {folder}; rename a row"
            )
