"""Ranges of arguments, checked where they are known before anything is traced."""

import math
from typing import Any

import numpy as np


def check_range(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    ends: str = "[)",
    whole: bool = False,
) -> None:
    """Raises a ValueError unless a number lies between `low` and `high`.

    Values that are not numbers yet, traced arrays and schedules, pass unchecked.

    Args:
      name: What the error calls it.
      value: The value.
      low: Its lower end.
      high: Its upper end.
      ends: Which ends belong to the range, in the usual brackets.
      whole: Whether it has to be a whole number.
    """
    if not isinstance(value, (int, float, np.number)):
        return
    inside = (value >= low if ends[0] == "[" else value > low) and (
        value <= high if ends[1] == "]" else value < high
    )
    if not inside or (whole and value != int(value)):
        kind = "whole" if whole else "finite"
        if high < math.inf:
            expected = f"in {ends[0]}{low}, {high}{ends[1]}"
        else:
            expected = f"a {kind} number {'of at least' if ends[0] == '[' else 'above'} {low}"
        raise ValueError(f"{name} must be {expected}, got {value}.")
