"""Readers of a batch one by one, and one reader as a batch."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from hope_jax.inference.sampling import Context
from hope_jax.models.language_model import LanguageModel, ModelState, init_state
from hope_jax.models.parameter_count import parameter_shapes
from hope_jax.sleep.expansion import experts_of, with_experts


class Reader(NamedTuple):
    """What the readers of a batch are, or, mapped over `axes`, one of them.

    Attributes:
      leaves: arrays of the state but for the experts. Counters are the same for all.
      experts: of each, as `Experts`.
      logits: of the next token.
    """

    leaves: list[Any]
    experts: Any
    logits: Any


def readers_of(context: Context) -> Reader:
    """The readers of a context with room for experts."""
    bare = with_experts(context.state, ())
    return Reader(jax.tree.leaves(bare), experts_of(context.state), context.logits)


def axes(model: LanguageModel) -> Any:
    """The `in_axes` by which `jax.vmap` maps over a `Reader`."""
    return Reader([*_axes(model)[0]], 1, 0)


def as_batch(model: LanguageModel, reader: Reader, size: int) -> Context:
    """One reader as so many, which share their experts.

    Args:
      model: whose reader it is.
      reader: without an axis of readers.
      size: B.
    """

    def repeated(leaf: Array, axis: int | None) -> Array:
        if axis is None:
            return leaf
        return jnp.repeat(jnp.expand_dims(leaf, axis), size, axis)

    places, structure = _axes(model)
    leaves = [repeated(*pair) for pair in zip(reader.leaves, places, strict=True)]
    state: ModelState = jax.tree.unflatten(structure, leaves)
    return Context(with_experts(state, reader.experts), repeated(reader.logits, 0))


@functools.lru_cache
def _axes(model: LanguageModel) -> tuple[tuple[int | None, ...], Any]:
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
