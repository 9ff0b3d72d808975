"""The best of settings that lie on a grid."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

Setting = TypeVar("Setting")


def climb(
    grid: Sequence[Setting], first: Setting, score: Callable[[Setting], float]
) -> tuple[Setting, float]:
    """The setting that both neighbours are no better than, climbed to from the first.

    Args:
      grid: settings in order, such as learning rates.
      first: of them, where the search begins.
      score: the higher the better; asked once for each setting that is tried. What is no number is the
        worst.

    Returns:
      The setting and its score.

    Example:
      >>> climb([1, 3, 10, 30, 100], 10, lambda rate: -abs(rate - 2))
      (3, -1)
    """
    found: dict[int, float] = {}
    place = grid.index(first)
    while True:
        for near in (place, place - 1, place + 1):
            if near in range(len(grid)) and near not in found:
                value = score(grid[near])
                found[near] = -math.inf if math.isnan(value) else value
        highest = max(found, key=found.__getitem__)
        if highest == place:
            return grid[place], found[place]
        place = highest
