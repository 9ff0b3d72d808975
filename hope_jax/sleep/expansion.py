"""Room for a reader's experts, and one of them switched on."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from hope_jax.inference.level_tools import learnt_in, places_of
from hope_jax.layers.experts import Experts, no_experts
from hope_jax.models.config import LanguageModelConfig
from hope_jax.models.in_context import levels_of
from hope_jax.models.language_model import LanguageModel, ModelState


class FullError(ValueError):
    """Raised when all experts for which there is room are in use."""


class Expert(NamedTuple):
    """One expert of one reader, in every block; what a night trains.

    Attributes:
      down: A.
      up: B.
      router: w of the gate.
    """

    down: Float[Array, "*readers blocks D r"]
    up: Float[Array, "*readers blocks r D"]
    router: Float[Array, "*readers blocks D"]


def experts_of(state: ModelState) -> Experts | tuple[()]:
    """A reader's own experts in a state, (blocks, batch, pools, E, ...); `()` where there is no room."""
    return learnt_in(state)[0].experts


def with_experts(state: ModelState, experts: Experts | tuple[()]) -> ModelState:
    """The state with other experts."""
    return state._replace(adapting=learnt_in(state)[0]._replace(experts=experts))


def pools_for(config: LanguageModelConfig, sender: int) -> Bool[np.ndarray, "blocks pools"]:
    """Where the knowledge of levels of one frequency goes."""
    places_of(config, sender)  # which says what is wrong
    return config.in_context_config.sender_of_each(*levels_of(config)) == sender


def make_room(model: LanguageModel, state: ModelState, experts: int, width: int) -> ModelState:
    """The state with room for so many experts in every pool, at least; what it holds stays.

    Args:
      model: whose state it is.
      state: of any number of readers.
      experts: E.
      width: rank of each.

    Raises:
      ValueError: if the model's levels do not learn in context, or its experts have another rank.
    """
    held, config = experts_of(state), model.config
    if isinstance(held, Experts) and held.down.shape[-1] != width:
        raise ValueError(
            f"expert_width={width}, but the experts in this state have rank {held.down.shape[-1]}; "
            f"set expert_width to that"
        )
    more = experts - (held.active.shape[-1] if isinstance(held, Experts) else 0)
    if more <= 0:
        return state
    blocks, pools = pools_for(config, 0).shape
    readers = learnt_in(state)[1].levels[0].weights.gate.shape[1]
    new = no_experts(blocks, readers, pools=pools, experts=more, width=config.width, rank=width)
    if isinstance(held, Experts):
        new = Experts(*(jnp.concatenate(pair, axis=3) for pair in zip(held, new, strict=True)))
    return with_experts(state, new)


def expand(model: LanguageModel, state: ModelState, sender: int, keys: Array) -> ModelState:
    """Switches one more expert on for every reader, where the knowledge of `sender` goes.

    Its A is random with variance 1 / D, its B and its router are zero: to the bit, the model says what it
    said.

    Args:
      model: whose state it is.
      state: with room, from `make_room`.
      sender: whose knowledge it is to take in, an index into `in_context.chunks`.
      keys: random keys, one for each reader.

    Raises:
      FullError: if there is no room left.
      ValueError: if there was none.
    """
    experts, here = experts_of(state), pools_for(model.config, sender)
    if not isinstance(experts, Experts):
        raise ValueError("the state has no room for experts; call make_room first")
    used = jax.vmap(lambda active: last_active(active, here) + 1, in_axes=1)(experts.active)
    if (np.asarray(used) >= experts.active.shape[-1]).any():
        slowest = sender == len(model.config.in_context_config.chunks) - 1
        mend = f"let level {sender + 1} sleep, which frees them, or " if not slowest else ""
        raise FullError(
            f"all {experts.active.shape[-1]} experts for what level {sender} has learned are in use; "
            f"{mend}set experts to a higher number"
        )
    return with_experts(state, _expanded(model, experts, sender, keys))


@functools.partial(jax.jit, static_argnames=("model", "sender"))
def _expanded(model: LanguageModel, experts: Experts, sender: int, keys: Array) -> Experts:
    here = pools_for(model.config, sender)
    blocks, _, _, _, width, rank = experts.down.shape

    def one(experts: Experts, key: Array) -> Experts:
        down = jax.random.normal(key, (blocks, width, rank)) / width**0.5
        expert = Expert(down, jnp.zeros((blocks, rank, width)), jnp.zeros((blocks, width)))
        return put(experts, expert, here, last_active(experts.active, here) + 1)

    return jax.vmap(one, in_axes=(1, 0), out_axes=1)(experts, keys)


def last_active(active: Bool[Array, "A P E"], here: Bool[np.ndarray, "A P"]) -> Int[Array, ""]:
    """Index of the last expert that one reader has switched on in some pools; -1 for none."""
    return jnp.sum(jnp.any(active & here[..., None], axis=(0, 1))) - 1


def put(
    experts: Experts, expert: Expert, here: Bool[np.ndarray, "A P"], slot: Int[Array, ""]
) -> Experts:
    """One reader's experts, (blocks, pools, E, ...), with one of them set and switched on."""
    place = here[..., None] & (jnp.arange(experts.active.shape[-1]) == slot)

    def chosen(old: Array, new: Array) -> Array:
        return jnp.where(
            place.reshape(*place.shape, *(1,) * (old.ndim - 3)), new[:, None, None], old
        )

    down, up, router = (chosen(*pair) for pair in zip(experts[:3], expert, strict=True))
    return Experts(down, up, router, experts.active | place)


def take(experts: Experts, here: Bool[np.ndarray, "A P"], slot: Int[Array, ""]) -> Expert:
    """The expert that `put` has set; zero in blocks that have none."""
    place = here[..., None] & (jnp.arange(experts.active.shape[-1]) == slot)

    def chosen(leaf: Array) -> Array:
        mine = place.reshape(*place.shape, *(1,) * (leaf.ndim - 3))
        return jnp.sum(jnp.where(mine, leaf, 0), axis=(1, 2))

    return Expert(*map(chosen, experts[:3]))


def free_experts(model: LanguageModel, state: ModelState, level: int) -> ModelState:
    """The state without the experts that a level has taken in; the slowest keeps those below it."""
    experts = experts_of(state)
    if not isinstance(experts, Experts) or level == 0:
        return state
    mine = jnp.asarray(pools_for(model.config, level - 1))[:, None, :, None]

    def cleared(leaf: Array) -> Array:
        gone = mine.reshape(*mine.shape, *(1,) * (leaf.ndim - 4))
        return jnp.where(gone, jnp.zeros_like(leaf), leaf)

    return with_experts(state, jax.tree.map(cleared, experts))
