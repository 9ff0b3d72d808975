"""Readers of a batch one by one, and one reader as a batch."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool

from hope_jax.inference.batch_of_one import batch_axes, repeated
from hope_jax.inference.level_tools import learnt_in
from hope_jax.inference.sampling import Context
from hope_jax.layers.experts import Experts
from hope_jax.models.in_context import HeldState
from hope_jax.models.language_model import LanguageModel, ModelState
from hope_jax.sleep.expansion import Expert, experts_of, last_active, put, take, with_experts


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
    return Reader([*batch_axes(model)[0]], 1, 0)


def newest(reader: Reader, here: Bool[np.ndarray, "A P"]) -> Expert:
    """The newest expert of one reader, of those that lie in some pools."""
    return take(reader.experts, here, last_active(reader.experts.active, here))


def equipped(reader: Reader, expert: Expert, here: Bool[np.ndarray, "A P"]) -> Reader:
    """One reader with another newest expert, of those that lie in some pools."""
    slot = last_active(reader.experts.active, here)
    return reader._replace(experts=put(reader.experts, expert, here, slot))


def as_batch(model: LanguageModel, reader: Reader, size: int) -> Context:
    """One reader as so many, which share their levels, held as they are, and experts.

    Args:
      model: whose reader it is.
      reader: without an axis of readers.
      size: B.
    """

    places, structure = batch_axes(model)

    def repeated_by(size: int) -> ModelState:
        leaves = [repeated(*pair, size) for pair in zip(reader.leaves, places, strict=True)]
        return jax.tree.unflatten(structure, leaves)

    state = repeated_by(size)
    # Of one, so that no more copies of its levels are made.
    adapting: Any = held(repeated_by(1), reader.experts).adapting
    adapting = adapting._replace(sequence=learnt_in(state)[0].blocks.sequence)
    return Context(state._replace(adapting=adapting), repeated(reader.logits, 0, size))


def held(state: ModelState, experts: Experts | tuple[()] = ()) -> ModelState:
    """A state whose levels do not learn: those of its first sequence, shared by all.

    Args:
      state: of a model whose levels learn in context.
      experts: beside them.
    """
    adapting, continuum = learnt_in(state)
    weights = tuple(jax.tree.map(lambda w: w[:, 0], level.weights) for level in continuum.levels)
    return state._replace(adapting=HeldState(adapting.blocks.sequence, weights, experts))
