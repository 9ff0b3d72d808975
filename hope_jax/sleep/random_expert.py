"""Unrelated knowledge enters a dream: each router opens one of its experts, whatever is being said."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from hope_jax.layers.experts import Experts
from hope_jax.models.config import LanguageModelConfig


def open_random_expert(key: Array, own: Experts, everyone: Experts | None = None) -> Experts:
    """One reader's experts, and in every pool of every block one more that opens a random one fully.

    It is a copy with the opposite router: as `sigmoid(s) + sigmoid(-s) = 1`, both together have a gate
    of 1. Where none is switched on, the copy is not either.

    Args:
      key: random key.
      own: of one reader, (blocks, pools, E, ...).
      everyone: of the model's parameters, (blocks, pools, E', ...), which may be opened as well.

    Returns:
      Experts with room for one more, of the larger rank of both.
    """
    rank = max(home.down.shape[-1] for home in (own, everyone) if home is not None)
    own = _of_rank(own, rank)
    known = own
    if everyone is not None:
        both = zip(own, _of_rank(everyone, rank), strict=True)
        known = Experts(*(jnp.concatenate(pair, axis=2) for pair in both))
    drawn = jnp.where(known.active, jax.random.uniform(key, known.active.shape), -1.0)
    place = jnp.argmax(drawn, axis=2, keepdims=True)

    def picked(leaf: Array) -> Array:
        return jnp.take_along_axis(leaf, place.reshape(*place.shape, *(1,) * (leaf.ndim - 3)), 2)

    copy = Experts(*map(picked, known))
    copy = copy._replace(router=-copy.router)
    return Experts(*(jnp.concatenate(pair, axis=2) for pair in zip(own, copy, strict=True)))


def everyones(config: LanguageModelConfig, params: Any) -> Experts | None:
    """The experts of a model's parameters; None where it has none."""
    if not config.in_context_config.experts:
        return None
    params = nn.unbox(params)
    down, up, router = (params[f"expert_{name}"] for name in ("down", "up", "router"))
    return Experts(down, up, router, jnp.ones(down.shape[:3], bool))


def _of_rank(experts: Experts, rank: int) -> Experts:
    """The same experts at a larger rank, filled up with zeros."""
    more, none = (0, rank - experts.down.shape[-1]), (0, 0)
    return experts._replace(
        down=jnp.pad(experts.down, (none,) * 4 + (more,)),
        up=jnp.pad(experts.up, (none,) * 3 + (more, none)),
    )
