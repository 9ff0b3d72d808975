"""What a comparison says: settings chosen, means over seeds, differences by seed, and costs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from hope_jax.comparison.plan import Plan, differences, shown
from hope_jax.comparison.trial import Result
from hope_jax.models import LanguageModelConfig
from hope_jax.models.flops import training_flops
from hope_jax.models.parameter_count import parameter_count, state_bytes


class Cost(NamedTuple):
    """What a row costs, counted beforehand.

    Attributes:
      parameters: number of them.
      flops: of a training step, for each token.
      state_bytes: of one sequence.
    """

    parameters: int
    flops: float
    state_bytes: int


class Estimate(NamedTuple):
    """A mean and its standard error; that is no number for less than two values."""

    mean: float
    error: float

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return ""
        return f"{self.mean:.4f}" + ("" if math.isnan(self.error) else f" ± {self.error:.4f}")


class Line(NamedTuple):
    """What there is to say of a row.

    Attributes:
      row: its name.
      tuned: the settings that were chosen for it; None as long as they are not.
      at_edge: keys of those that are the least or the greatest number tried.
      results: of the seeds that are reported.
      loss: of those that did not diverge.
      difference: from the baseline's loss with the same seed and settings chosen for that.
      diverged: runs that did, at any settings.
      runs: how many there are.
    """

    row: str
    tuned: tuple[tuple[str, Any], ...] | None
    at_edge: tuple[str, ...]
    results: tuple[Result, ...]
    loss: Estimate
    difference: Estimate
    diverged: int
    runs: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of the finite ones among values.

    Example:
      >>> estimate([1.0, 2.0, 3.0, math.inf])
      Estimate(mean=2.0, error=0.5773502691896258)
    """
    finite = [value for value in values if math.isfinite(value)]
    mean = statistics.mean(finite) if finite else math.nan
    error = statistics.stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else math.nan
    return Estimate(mean, error)


def losses_by_seed(results: Sequence[Result]) -> dict[int, float]:
    """Loss of each result by its seed."""
    return {result.trial.seed: result.loss for result in results}


def pairs(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Differences over the seeds that both have."""
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate:
    """Mean difference over the seeds that both have; what seeds do to both alike is not in its error.

    Example:
      >>> paired({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0, 2: 9.0})
      Estimate(mean=0.5, error=0.0)
    """
    return estimate(pairs(ours, theirs))


def choose(plan: Plan, row: str, results: Sequence[Result]) -> tuple[tuple[str, Any], ...] | None:
    """The tuned settings whose loss is least in the mean over the selection seeds.

    A run that diverged has an infinite loss, so that settings at which one did are chosen last.

    Returns:
      None if runs are missing.
    """
    choices = plan.choices()
    if len(choices) == 1:
        return choices[0]
    losses: dict[tuple[tuple[str, Any], ...], list[float]] = {choice: [] for choice in choices}
    for result in results:
        if result.trial.row == row and result.trial.seed < plan.selection_seeds:
            losses[result.trial.tuned].append(result.loss)
    if any(len(found) < plan.selection_seeds for found in losses.values()):
        return None
    return min(choices, key=lambda choice: sum(losses[choice]))


def line_of(
    row: str,
    tuned: tuple[tuple[str, Any], ...] | None,
    at_edge: tuple[str, ...],
    reported: Sequence[Result],
    baseline: Sequence[Result],
    own: Sequence[Result],
) -> Line:
    """What there is to say of a row, from its reported results, the baseline's, and all its own."""
    ours = losses_by_seed(reported)
    loss = estimate(list(ours.values()))
    difference = paired(ours, losses_by_seed(baseline))
    diverged = sum(not math.isfinite(result.loss) for result in own)
    return Line(row, tuned, at_edge, tuple(reported), loss, difference, diverged, len(own))


def summarize(plan: Plan, results: Sequence[Result]) -> list[Line]:
    """A line for each row that has runs."""
    by_folder = {result.trial.folder: result for result in results}
    chosen = {row: choose(plan, row, results) for row in plan.rows}
    reported = {
        row: [
            by_folder[trial.folder]
            for trial in (plan.reported(row, tuned) if tuned is not None else ())
            if trial.folder in by_folder
        ]
        for row, tuned in chosen.items()
    }
    lines = []
    for row, tuned in chosen.items():
        own = [result for result in results if result.trial.row == row]
        if own:
            edges = _at_edge(plan, tuned or ())
            lines.append(line_of(row, tuned, edges, reported[row], reported[plan.baseline], own))
    return lines


def _at_edge(plan: Plan, tuned: Sequence[tuple[str, Any]]) -> tuple[str, ...]:
    edges = []
    for key, value in tuned:
        values = plan.tuned[key]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if numbers and len(values) > 1 and value in (min(values), max(values)):
            edges.append(key)
    return tuple(edges)


def count_cost(config: ConfigDict) -> Cost:
    """Counts what a row costs, without running it."""
    model_config = LanguageModelConfig.from_config_dict(config.model)
    length = config.data.sequence_length
    return Cost(
        parameter_count(model_config),
        training_flops(model_config, length).total,
        state_bytes(model_config, length),
    )


def as_markdown(plan: Plan, lines: Sequence[Line], costs: Mapping[str, Cost], command: str) -> str:
    """The table, how to read it, and in what the rows differ.

    Args:
      plan: of the comparison.
      lines: of its rows.
      costs: of each row.
      command: that makes it.
    """
    heads = ["row", "parameters", "MFLOPs a token", "state bytes", "tokens/s"]
    heads += list(plan.tuned)
    heads += ["validation loss", f"minus {plan.baseline}", "seeds", "diverged"]
    table = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for line in lines:
        cost = costs[line.row]
        speeds = [result.tokens_per_second for result in line.results]
        cells = [line.row, f"{cost.parameters:,}", f"{cost.flops / 1e6:.2f}"]
        cells += [f"{cost.state_bytes:,}", f"{statistics.median(speeds):,.0f}" if speeds else ""]
        cells += [""] * len(plan.tuned) if line.tuned is None else []
        cells += [
            shown(value) + (" (edge)" if key in line.at_edge else "")
            for key, value in line.tuned or ()
        ]
        finite = sum(math.isfinite(result.loss) for result in line.results)
        cells += [str(line.loss) if finite or not line.results else "diverged"]
        cells += ["" if line.row == plan.baseline else str(line.difference)]
        cells += [str(finite), f"{line.diverged} of {line.runs}"]
        table.append("| " + " | ".join(cells) + " |")
    notes = [
        "Losses are in nats per token, on the validation part: the mean over the seeds that did not "
        f"diverge, and its standard error. `minus {plan.baseline}` is the mean of the differences from "
        "its loss with the same seed, which fixes the order of the data. `diverged` counts the runs at "
        "any settings.",
    ]
    if len(plan.choices()) > 1:
        notes.append(
            f"{', '.join(f'`{key}`' for key in plan.tuned)}: of "
            + "; ".join(", ".join(map(shown, values)) for values in plan.tuned.values())
            + f", the best in the mean over {plan.selection_seeds} seed"
            + ("s" if plan.selection_seeds > 1 else "")
            + " that the table does not report."
        )
    if any(line.at_edge for line in lines):
        notes.append("(edge): no smaller, or no larger, value was tried, which might be better.")
    changed = [
        f"* {row}: {', '.join(f'`{item}`' for item in differences(plan, row))}"
        for row in plan.rows
        if row != plan.baseline
    ]
    if changed:
        notes.append("\n".join([f"What is set otherwise than in {plan.baseline}:", "", *changed]))
    return "\n".join(["```", command, "```", "", *table, "", "\n\n".join(notes), ""])
