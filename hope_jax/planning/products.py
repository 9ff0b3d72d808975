"""FLOPs of the matrix products and convolutions of a compiled program."""

import functools
import math
import re
from collections.abc import Mapping

import numpy as np

from hope_jax.planning.hlo import Operation, arrays


def product_flops(operation: Operation, results: Mapping[str, str]) -> int:
    """Two for each multiply-add of a `dot` or `convolution`; 0 of anything else.

    A TPU's compiler writes batched products as convolutions with windows that mostly lie beside the
    array: only places within it count, as it computes no others.

    Args:
      operation: of the program.
      results: types of what its operands are, by name.
    """
    if operation.kind not in ("dot", "convolution"):
        return 0
    (_, out), *_ = arrays(operation.result)
    (_, left), (_, right) = (next(arrays(results[name])) for name in operation.operands[:2])
    if operation.kind == "dot":
        axes = operation.called("lhs_contracting_dims")
        return 2 * math.prod(out) * math.prod(left[int(axis)] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", operation.rest)
    window = _window(operation.rest)
    steps = math.prod(out[labels[3].index(label)] for label in "bf")
    steps *= right[labels[2].index("i")]
    for number, place in enumerate(window):
        axis = str(number)
        sizes = (left[labels[1].index(axis)], out[labels[3].index(axis)])
        steps *= _pairs(*sizes, *place)
    return 2 * steps


def _window(rest: str) -> list[tuple[int, int, int, int, int]]:
    """Size, stride, padding before, dilation of the array and of the window, of each axis."""
    found = re.search(r"window=\{([^}]*)\}", rest)
    fields = dict(field.split("=") for field in found[1].split()) if found else {}
    if "size" not in fields:
        return []
    sizes = fields["size"].split("x")
    columns = [[int(size) for size in sizes]]
    for name, plain in (("stride", "1"), ("pad", "0_0"), ("lhs_dilate", "1"), ("rhs_dilate", "1")):
        given = fields[name].split("x") if name in fields else [plain] * len(sizes)
        columns.append([int(value.split("_")[0]) for value in given])
    return list(zip(*columns, strict=True))  # type: ignore[arg-type]


@functools.lru_cache
def _pairs(size: int, out: int, window: int, stride: int, pad: int, left: int, right: int) -> int:
    """Pairs of a place of the result and one of the window that meet an element of the array."""
    total = 0
    places = np.arange(out, dtype=np.int64) * stride - pad
    for step in range(window):
        at = places + step * right
        total += int(np.sum((at >= 0) & (at <= (size - 1) * left) & (at % left == 0)))
    return total
