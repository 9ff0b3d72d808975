"""Functions of arrays, written again in what Mosaic, the compiler of Pallas kernels for TPUs, can lower.

A memory's chunk is written once, for XLA (`memory_chunk`). Mosaic lacks some of what it uses: running
sums, products of float32 in three passes, masks of one axis, arrays without entries. So a kernel traces
the function and evaluates each of its operations by the operation itself, or where Mosaic does not have
it by another way to the same number.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

_SHAPES = ("broadcast_in_dim", "reshape", "squeeze", "slice", "concatenate", "transpose", "split")
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def for_mosaic(function: Callable[..., list[jax.Array]], *args: Any) -> list[jax.Array]:
    """Calls a function of arrays, its operations replaced where Mosaic does not have them.

    Args:
      function: of arrays, to a list of arrays; differentiation inside it is done before.
      args: what it is called with, pytrees of arrays.

    Returns:
      What it gives, equal to rounding.

    Example:
      >>> import jax.numpy as jnp
      >>> [x.tolist() for x in for_mosaic(lambda x: [jnp.cumsum(x)], jnp.ones(3))]
      [[1.0, 2.0, 3.0]]
    """
    traced = jax.make_jaxpr(function)(*args)
    out = _evaluate(traced.jaxpr, traced.consts, jax.tree.leaves(args))
    return [_laid_out(array) for array in out]


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluates what the outputs need, operation by operation."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    read = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]
    for equation in _needed(jaxpr):
        out = _apply(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, out, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


class _Source:
    """An array that is made when it is asked for, as it is or with its two long axes swapped."""

    def __init__(self, make: Callable[[bool], Any], prefers: Callable[[], bool] = lambda: False):
        self.make, self.prefers = make, prefers
        self.made: dict[bool, Any] = {}

    def get(self, swapped: bool) -> Any:
        if swapped not in self.made:
            self.made[swapped] = self.make(swapped)
        return self.made[swapped]

    def order(self) -> bool:
        """Whether what is there already, or is had for least, is swapped."""
        return next(iter(self.made), None) if self.made else self.prefers()


class _Lazy:
    """An array on its way to another shape, or transposed, which few operations have to see.

    Memories of a bank have an axis, and one memory an axis of length 1. In front of an array it costs
    nothing, in its middle every row lies in registers of its own: what passes through such a shape on
    its way to another is never laid out in it. Products take their operands transposed or not at the
    same cost, and can be formed transposed.
    """

    def __init__(self, source: _Source, shape: tuple[int, ...], dtype: Any, swapped: bool = False):
        self.source, self.shape, self.dtype, self.swapped = source, shape, dtype, swapped
        self.size = math.prod(shape)

    def laid_out(self) -> Any:
        array = self.source.get(self.swapped)
        if array.shape == self.shape:
            return array
        if self.dtype == bool:
            return jnp.where(array, 1.0, 0.0).reshape(self.shape) > 0.5
        return array.reshape(self.shape)


def _lazy(array: Any) -> _Lazy:
    if isinstance(array, _Lazy):
        return array
    array = jnp.asarray(array)
    matrix = lambda: array.reshape([size for size in array.shape if size > 1])
    source = _Source(lambda swapped: matrix().T if swapped else array)
    return _Lazy(source, array.shape, array.dtype)


def _laid_out(array: Any) -> Any:
    return array.laid_out() if isinstance(array, _Lazy) else array


def _moved(name: str, array: _Lazy, out: Any, params: Any) -> _Lazy | None:
    """The outcome of an operation that moves axes of length 1 alone, or swaps the two others."""
    long = lambda shape: [size for size in shape if size > 1]
    swapped = array.swapped
    if name == "transpose":
        order = [axis for axis in params["permutation"] if array.shape[axis] > 1]
        if order != sorted(order):
            if len(order) != 2 or array.dtype == bool:
                return None
            swapped = not swapped
    elif name not in ("reshape", "squeeze", "broadcast_in_dim") or long(array.shape) != long(
        out.shape
    ):
        return None
    return _Lazy(array.source, out.shape, out.dtype, swapped)


def _converted(array: _Lazy, dtype: Any) -> _Lazy:
    source = array.source
    convert = lambda swapped: source.get(swapped).astype(dtype)
    return _Lazy(_Source(convert, source.order), array.shape, jnp.dtype(dtype), array.swapped)


def _needed(jaxpr: Jaxpr) -> list[JaxprEqn]:
    needed = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed.update(atom for atom in equation.invars if not isinstance(atom, Literal))
            kept.append(equation)
    return kept[::-1]


def _apply(equation: JaxprEqn, given: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    shapes: list[Any] = [atom.aval for atom in equation.outvars]
    if name in _SHAPES and len(given) == 1 and shapes[0].size and given[0].size:
        moved = _moved(name, _lazy(given[0]), shapes[0], params)
        if moved is not None:
            return [moved]
    if name == "convert_element_type" and isinstance(given[0], _Lazy):
        return [_converted(given[0], params["new_dtype"])]
    if name not in _CALLS and name != "dot_general":
        given = [_laid_out(array) for array in given]
    if not any(shape.size for shape in shapes):
        return [np.zeros(shape.shape, shape.dtype) for shape in shapes]
    if name in _CALLS:
        inner = params[_CALLS[name]]
        if isinstance(inner, ClosedJaxpr):
            return _evaluate(inner.jaxpr, inner.consts, given)
        return _evaluate(inner, (), given)
    if not all(getattr(array, "size", 1) for array in given):
        return [_without_empty(name, given, shapes[0], params)]
    if name == "split" and not all(shape.size for shape in shapes):
        return [
            _part(given[0], start, shape, **params) for start, shape in _starts(shapes, **params)
        ]
    if name == "cond" and isinstance(given[0], int):
        branch = params["branches"][given[0]]
        return _evaluate(branch.jaxpr, branch.consts, given[1:])
    if name in _OWN:
        return [_OWN[name](*given, **params)]
    bind = lambda *arrays: equation.primitive.bind(*arrays, **params)
    if name in _SHAPES and shapes[0].dtype == bool:
        # Mosaic lays out masks as the numbers that they were compared from, and cannot reshape them.
        out = bind(*(jnp.where(mask, 1.0, 0.0) for mask in given))
        many = equation.primitive.multiple_results
        return [number > 0.5 for number in (out if many else [out])]
    out = bind(*given)
    return list(out) if equation.primitive.multiple_results else [out]


def _without_empty(name, given, shape, params):
    """What is left of an operation when some of what it is given has no entries."""
    if name == "concatenate":
        some = [array for array in given if np.size(array)]
        return some[0] if len(some) == 1 else jnp.concatenate(some, params["dimension"])
    if name in ("reduce_sum", "dot_general", "pad"):
        value = given[1] if name == "pad" else jnp.zeros((), shape.dtype)
        return jnp.broadcast_to(value, shape.shape)
    raise NotImplementedError(f"{name} of an array without entries")


def _starts(shapes, *, sizes, axis):
    return zip(np.cumsum([0, *sizes])[:-1].tolist(), shapes, strict=True)


def _part(array, start, shape, *, sizes, axis):
    if not shape.size:
        return np.zeros(shape.shape, shape.dtype)
    return jax.lax.slice_in_dim(array, start, start + shape.shape[axis], axis=axis)


def _platform_index(*, platforms):
    """The branch for TPUs, also where the kernel is interpreted on another machine."""
    return next(i for i, names in enumerate(platforms) if names is None or "tpu" in names)


def _iota(*, dtype, shape, dimension, sharding=None):
    del sharding
    if len(shape) == 1:
        return jax.lax.broadcasted_iota(dtype, (1, *shape), 1).reshape(shape)
    return jax.lax.broadcasted_iota(dtype, shape, dimension)


def _cumsum(rows, *, axis, reverse):
    """Running sums along the last axis: a product with a triangle of ones."""
    if axis != rows.ndim - 1:
        raise NotImplementedError(f"a running sum along axis {axis} of {rows.shape}")
    size = rows.shape[-1]
    place = [jax.lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1)]
    ones = jnp.where(place[0] >= place[1] if reverse else place[0] <= place[1], 1.0, 0.0)
    flat = rows.astype(jnp.float32).reshape(-1, size)
    sums = jnp.matmul(flat, ones, precision=jax.lax.Precision.HIGHEST).reshape(rows.shape)
    return (jnp.round(sums) if jnp.issubdtype(rows.dtype, jnp.integer) else sums).astype(rows.dtype)


def _expm1(x, **_):
    return jnp.tanh(x / 2) * (jnp.exp(x) + 1)


def _dot_general(left, right, *, dimension_numbers, precision, preferred_element_type, **_):
    """A product of matrices, axes of length 1 left out; in three passes where XLA offers them."""
    (of_left, of_right), (along_left, along_right) = dimension_numbers
    for number, (i, j) in enumerate(zip(along_left, along_right, strict=True)):
        if left.shape[i] > 1:  # of several matrices, one after the other
            pairs = zip(_along(left, i), _along(right, j), strict=True)
            again = functools.partial(
                _dot_general,
                dimension_numbers=dimension_numbers,
                precision=precision,
                preferred_element_type=preferred_element_type,
            )
            return jnp.concatenate([_laid_out(again(*pair)) for pair in pairs], axis=number)
    batch = [left.shape[axis] for axis in along_left]
    free = [
        [n for axis, n in enumerate(array.shape) if axis not in (*of, *along)]
        for array, of, along in ((left, of_left, along_left), (right, of_right, along_right))
    ]
    shape = (*batch, *free[0], *free[1])
    left, left_axis = _as_matrix(left, of_left)
    right, right_axis = _as_matrix(right, of_right)
    dtype = jnp.dtype(preferred_element_type or jnp.promote_types(left.dtype, right.dtype))
    if left_axis is None or 1 in (left.ndim, right.ndim):
        left, right = left.astype(dtype), right.astype(dtype)
    if left_axis is None:
        return (left.reshape(-1, 1) * right.reshape(1, -1)).reshape(shape)
    if 1 in (left.ndim, right.ndim):
        # A unit for matrices would be used for one of its columns.
        vector, (matrix, axis) = (
            (left, (right, right_axis)) if left.ndim == 1 else (right, (left, left_axis))
        )
        return jnp.sum(matrix * jnp.expand_dims(vector, 1 - axis), axis).reshape(shape)

    def dot(left, right, swapped, precision=None):
        if swapped:
            (left, left_along), (right, right_along) = (right, right_axis), (left, left_axis)
        else:
            left_along, right_along = left_axis, right_axis
        dims = ((left_along,), (right_along,)), ((), ())
        return jax.lax.dot_general(
            left, right, dims, precision, preferred_element_type=preferred_element_type
        )

    def make(swapped):
        high = jax.lax.Precision.HIGH
        if precision not in (high, (high, high)):
            return dot(left, right, swapped, precision)
        (above, below), (over, under) = _halves(left), _halves(right)
        rest = dot(above, under, swapped) + dot(below, over, swapped)
        return dot(above, over, swapped) + rest

    return _Lazy(_Source(make), shape, dtype)


def _along(array, axis):
    array = _laid_out(array)
    return [jax.lax.slice_in_dim(array, i, i + 1, axis=axis) for i in range(array.shape[axis])]


def _as_matrix(array, contracted):
    """The array without axes of length 1, and which of its axes is contracted, if any."""
    array = _lazy(array)
    long = [axis for axis, size in enumerate(array.shape) if size > 1 or axis in contracted]
    if len(contracted) > 1 or len(long) > 2:
        raise NotImplementedError(f"a product over axes {contracted} of {array.shape}")
    axis = long.index(contracted[0]) if contracted else None
    sizes = [array.shape[i] for i in long]
    if len(long) < 2 or 1 in sizes:
        return array.laid_out().reshape(sizes), axis
    order = array.source.order()
    if order != array.swapped:
        axis, sizes = None if axis is None else 1 - axis, sizes[::-1]
    return array.source.get(order).reshape(sizes), axis


def _halves(matrix):
    """A float32 matrix as the sum of two of bfloat16, to 16 bits."""
    above = matrix.astype(jnp.bfloat16)
    return above, (matrix - above.astype(jnp.float32)).astype(jnp.bfloat16)


_OWN: dict[str, Callable[..., Any]] = {
    "platform_index": _platform_index,
    "iota": _iota,
    "cumsum": _cumsum,
    "expm1": _expm1,
    "dot_general": _dot_general,
    # Hints to XLA and to rematerialisation.
    "layout_constraint": lambda array, **_: array,
    "name": lambda array, **_: array,
}
