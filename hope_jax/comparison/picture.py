"""Pictures of a comparison: rows as dots with intervals, and curves of the training losses."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hope_jax.comparison.table import Estimate, Line, losses_by_seed, pairs

# Dark enough, and unlike enough in grey.
_DOT, _SEED, _LINE = "#1b4f8f", "#9a9a9a", "#c8c8c8"


def draw_rows(lines: Sequence[Line], baseline: str, path: Path) -> None:
    """Draws each row as a line of its own: seeds, mean and standard error, the best one on top.

    Beside it, where there is more than one row, stand the differences from the baseline, seed by seed.

    Args:
      lines: of the rows.
      baseline: the row that the others are compared with.
      path: of the picture.
    """
    shown = [line for line in lines if math.isfinite(line.loss.mean)]
    shown.sort(key=lambda line: -line.loss.mean)
    panels = 2 if len(shown) > 1 and any(math.isfinite(x.difference.mean) for x in shown) else 1
    figure, grid = plt.subplots(
        1,
        panels,
        figsize=(5 + 3.5 * (panels - 1), 1.2 + 0.28 * max(1, len(shown))),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    left = grid[0][0]
    base = next((line for line in shown if line.row == baseline), None)
    theirs = losses_by_seed(base.results if base else ())
    for height, line in enumerate(shown):
        ours = losses_by_seed(line.results)
        _draw_row(left, height, list(ours.values()), line.loss)
        if panels == 2 and line.row != baseline:
            _draw_row(grid[0][1], height, pairs(ours, theirs), line.difference)
    left.set_yticks(range(len(shown)), [line.row for line in shown], fontsize=8)
    left.set_ylim(-0.6, max(1, len(shown)) - 0.4)
    left.set_xlabel("validation loss (nats per token)")
    if panels == 2:
        grid[0][1].axvline(0, color="black", linewidth=0.8)
        grid[0][1].set_xlabel(f"minus {baseline}, by seed")
    for axes in grid[0]:
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(axis="y", length=0)
    figure.suptitle("rings: seeds; dots and bars: mean, one standard error", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_row(axes: plt.Axes, height: int, values: Sequence[float], mean: Estimate) -> None:
    finite = [value for value in values if math.isfinite(value)]
    axes.axhline(height, color=_LINE, linewidth=0.5, zorder=0)
    axes.plot(finite, [height] * len(finite), "o", mfc="none", mec=_SEED, markersize=4, zorder=1)
    if not math.isnan(mean.error):
        bar = [mean.mean - mean.error, mean.mean + mean.error]
        axes.plot(bar, [height] * 2, color=_DOT, linewidth=2, zorder=2)
    if not math.isnan(mean.mean):
        axes.plot([mean.mean], [height], "o", color=_DOT, markersize=5, zorder=3)


def draw_curves(lines: Sequence[Line], path: Path) -> None:
    """Draws the training losses of each row's reported seeds, their mean at each step.

    Args:
      lines: of the rows.
      path: of the picture.
    """
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    colors = plt.cycler(color=plt.colormaps["tab10"].colors)  # type: ignore[attr-defined]
    axes.set_prop_cycle(plt.cycler(linestyle=["-", "--", ":", "-."]) * colors)  # 40 unlike lines
    for line in lines:
        whole = [result.curve for result in line.results if math.isfinite(result.loss)]
        curves = whole or [result.curve for result in line.results]
        if not curves:
            continue
        steps = [step for step, _ in curves[0]]
        mean = [
            statistics.mean(losses)
            for losses in zip(*([loss for _, loss in curve] for curve in curves), strict=False)
        ]
        axes.plot(steps[: len(mean)], mean, label=line.row)
    axes.set(xlabel="step", ylabel="training loss (nats per token), mean over seeds")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)
