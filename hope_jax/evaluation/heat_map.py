"""The picture of a probe: what was found, by length and depth."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw_heat_map(lines: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draws a field for each length and depth, a panel for each kind; every field has its number.

    Args:
      lines: answers, of `hope_jax.evaluation.probe.ask`.
      title: over all of it.
      path: of the picture.
    """
    kinds = list(dict.fromkeys(line["kind"] for line in lines))
    lengths = sorted({line["length"] for line in lines})
    depths = sorted({line["depth"] for line in lines})
    columns = min(4, max(1, len(kinds)))
    rows = -(-len(kinds) // columns)
    figure, grid = plt.subplots(
        max(1, rows),
        columns,
        figsize=(
            max(4.5, 1.2 + columns * (0.8 + 0.55 * len(lengths))),  # the title's width at least
            1 + rows * (0.9 + 0.35 * len(depths)),
        ),
        layout="constrained",
        squeeze=False,
    )
    for axes in grid.flat[len(kinds) :]:
        axes.set_axis_off()
    for axes, kind in zip(grid.flat, kinds, strict=False):
        found: dict[tuple[int, int], list[float]] = {}
        for line in lines:
            if line["kind"] == kind:
                place = depths.index(line["depth"]), lengths.index(line["length"])
                found.setdefault(place, []).append(line["share"])
        field = np.full((len(depths), len(lengths)), np.nan)
        for place, shares in found.items():
            field[place] = np.mean(shares)
        draw_field(axes, field)
        axes.set_xticks(range(len(lengths)), [_short(n) for n in lengths], fontsize=7)
        axes.set_yticks(range(len(depths)), [f"{100 * depth:.0f}" for depth in depths], fontsize=7)
        axes.set_title(kind, fontsize=9)
    for row in grid:
        row[0].set_ylabel("depth (%)", fontsize=8)
    figure.supxlabel("tokens read", fontsize=8)
    figure.suptitle(f"{title}: answers found (%)", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_field(axes: Axes, shares: Float[np.ndarray, "N M"]) -> None:
    """Draws a matrix of shares as colours, and each of them in percent; NaN leaves a place blank.

    Args:
      axes: on which it is drawn, the first row on top.
      shares: from 0 to 1.
    """
    for place, share in np.ndenumerate(shares):
        if not np.isnan(share):
            axes.text(
                place[1],
                place[0],
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if share < 0.5 else "black",
            )
    axes.imshow(shares, vmin=0, vmax=1, cmap="cividis", aspect="auto")


def _short(count: int) -> str:
    """A count of tokens in few characters.

    >>> [_short(n) for n in (500, 1024, 4096, 65536, 10_000_000)]
    ['500', '1K', '4K', '64K', '10M']
    """
    for unit, letter in ((1 << 20, "M"), (1_000_000, "M"), (1 << 10, "K"), (1_000, "K")):
        if count >= unit and count % unit == 0:
            return f"{count // unit}{letter}"
    return f"{count:,}"
