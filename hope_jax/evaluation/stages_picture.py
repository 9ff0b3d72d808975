"""The picture of a stream: the score on each stage, by stages read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from hope_jax.evaluation.forgetting import averages
from hope_jax.evaluation.stream import Stage, measures_of, scores_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw_stages(
    stages: Sequence[Stage], lines: Sequence[Mapping[str, Any]], title: str, path: Path
) -> None:
    """Draws a line for each stage, dashed before it is read, and a black one for the average so far.

    Args:
      stages: of the stream.
      lines: answers, of `hope_jax.evaluation.stream.ask_stream`.
      title: over all of it.
      path: of the picture.
    """
    measures = measures_of(stages)
    figure, grid = plt.subplots(
        1, len(measures), figsize=(5.2 * len(measures), 3.6), layout="constrained", squeeze=False
    )
    read = np.arange(len(stages) + 1)
    for axes, (measure, name) in zip(grid[0], measures.items(), strict=True):
        scores = 100 * scores_of(stages, lines, measure)
        for number, stage in enumerate(stages):
            some, color = scores[:, number], f"C{number % 10}"
            asked = ~np.isnan(some)
            before, after = asked & (read <= number + 1), asked & (read > number)
            axes.plot(read[before], some[before], "--", color=color, lw=1, alpha=0.6)
            axes.plot(read[after], some[after], "o-", color=color, ms=4, label=stage.name)
        axes.plot(read[1:], averages(scores), "k-", lw=2.5, label="average so far")
        axes.set_xticks(read)
        axes.set(xlabel="stages read", ylabel=f"{name} (%)", ylim=(-3, 103))
        axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)
