"""One sequence's context as a batch of its copies."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from hope_jax.inference.sampling import Context
from hope_jax.models.language_model import LanguageModel, init_state
from hope_jax.models.parameter_count import parameter_shapes


@functools.lru_cache
def batch_axes(model: LanguageModel) -> tuple[tuple[int | None, ...], Any]:
    """Which axis of each array of a state is that of the sequences, and the state's structure."""
    params = parameter_shapes(model)
    two, three = (
        jax.eval_shape(lambda params, size=size: init_state(model, params, size), params)
        for size in (2, 3)
    )

    def differs(two: Any, three: Any) -> int | None:
        pairs = enumerate(zip(two.shape, three.shape, strict=True))
        return next((axis for axis, (a, b) in pairs if a != b), None)

    leaves = zip(jax.tree.leaves(two), jax.tree.leaves(three), strict=True)
    return tuple(differs(*pair) for pair in leaves), jax.tree.structure(two)


def repeated(leaf: Array, axis: int | None, size: int) -> Array:
    """An array of one sequence, without an axis for it, as one of so many."""
    if axis is None:
        return leaf
    return jnp.repeat(jnp.expand_dims(leaf, axis), size, axis)


def as_batch(model: LanguageModel, context: Context, size: int) -> Context:
    """A context of one sequence as so many, each of which can go on by itself.

    Args:
      model: that has read it.
      context: of a batch of one, whose reader has no experts of its own.
      size: B.
    """
    axes, structure = batch_axes(model)
    leaves = [
        leaf if axis is None else repeated(leaf.squeeze(axis), axis, size)
        for leaf, axis in zip(jax.tree.leaves(context.state), axes, strict=True)
    ]
    return Context(jax.tree.unflatten(structure, leaves), jnp.repeat(context.logits, size, 0))
