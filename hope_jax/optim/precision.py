"""Sums in float32 whatever the weights' dtype, and lengths that neither overflow nor vanish."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformation, GradientTransformationExtraArgs, Params, Updates


def sum_dtype(x: Any) -> jnp.dtype:
    """The dtype in which sums over `x` (an array or a dtype) are kept: its own, at least float32.

    A bfloat16 number has eight bits: a sum of more than some dozens of equal parts stops growing.
    """
    return jnp.promote_types(jnp.result_type(x), jnp.float32)


def widen(tree: Any) -> Any:
    """A tree of arrays in `sum_dtype`."""
    return jax.tree.map(
        lambda x: x if jnp.result_type(x) == sum_dtype(x) else x.astype(sum_dtype(x)), tree
    )


def real_dtype(dtype: Any) -> jnp.dtype:
    """The dtype of the moduli of numbers of `dtype`."""
    return jnp.finfo(dtype).dtype


def squares(x: jax.Array) -> jax.Array:
    """Squared moduli, in a real `sum_dtype`; finite, and so are their sums, for any finite `x`."""
    size = jnp.abs(x.astype(sum_dtype(x)))
    # 2.6e15 in float32. What is larger is no gradient to learn a scale from.
    size = jnp.minimum(size, float(jnp.finfo(size.dtype).max) ** 0.4)
    return size * size


def length(x: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """Root of the sum of squared moduli over `axis`, which is kept, in a real `sum_dtype`."""
    size = jnp.abs(x.astype(sum_dtype(x)))
    largest = jnp.max(size, axis=axis, keepdims=True, initial=0)
    largest = jnp.where(largest >= jnp.finfo(size.dtype).tiny, largest, 1)
    return largest * jnp.sqrt(jnp.sum(jnp.square(size / largest), axis=axis, keepdims=True))


def unit(x: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    """`x` divided by its length over `axis`, in `sum_dtype`; zero stays zero."""
    size = length(x, axis)
    return x.astype(sum_dtype(x)) / jnp.where(size > 0, size, 1)


def in_float32(inner: GradientTransformation) -> GradientTransformationExtraArgs:
    """Runs `inner` on gradients and parameters of at least float32, and so its running sums.

    Where both are float32 already nothing changes. A second moment with a decay rate of 0.999 that
    is kept in bfloat16, as most transformations keep it for bfloat16 parameters, stops at a third
    of its value.
    """
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: Params) -> Any:
        return inner.init(widen(params))

    def update_fn(
        updates: Updates, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, Any]:
        wide = None if params is None else widen(params)
        new_updates, new_state = inner.update(widen(updates), state, wide, **extra_args)
        return optax.tree.cast_like(new_updates, updates), new_state

    return GradientTransformationExtraArgs(init_fn, update_fn)
