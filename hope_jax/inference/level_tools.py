"""Setting back what a level has learnt in context, and making it permanent."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array

from hope_jax.layers.continuum import ContinuumState
from hope_jax.layers.level_learning import LevelState, start_over
from hope_jax.models.config import LanguageModelConfig
from hope_jax.models.in_context import AdaptingState, levels_of, slow_weights
from hope_jax.models.language_model import LanguageModel, ModelState


def reset_level(
    model: LanguageModel, params: Any, state: ModelState, chunk_index: int
) -> ModelState:
    """Lets one frequency forget: its levels return to their slow weights, all else stays.

    Args:
      model: whose state it is.
      params: of the model.
      state: after what has been read.
      chunk_index: which of `in_context.chunks`, 0 for the fastest.

    Returns:
      The state in which levels of that chunk size have learnt nothing.

    Raises:
      ValueError: if the model has no such level that learns in context.

    Example:
      >>> config = LanguageModelConfig(
      ...     vocab_size=256, width=16, num_layers=2, num_heads=2, mlp_width=32,
      ...     sequence_layer="attention", in_context={"chunks": (4,)},
      ... )
      >>> model, tokens = LanguageModel(config), jnp.arange(9)[None]
      >>> params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
      >>> _, state = jax.jit(model.apply)({"params": params}, tokens)
      >>> state = reset_level(model, params, state, 0)
    """
    mine = places_of(model.config, chunk_index)
    _, continuum = learnt_in(state)
    initial = slow_weights(model.config, nn.unbox(params))
    levels = []
    for index, (level, slow) in enumerate(zip(continuum.levels, initial, strict=True)):
        here = jnp.asarray(mine[:, index, None])
        rows = jnp.broadcast_to(here, level.weights.gate.shape[:2])
        levels.append(jax.vmap(start_over)(level, slow, rows))
    return with_levels(state, levels)


def with_levels(state: ModelState, levels: Iterable[LevelState]) -> ModelState:
    """The state with other levels."""
    adapting, continuum = learnt_in(state)
    blocks = adapting.blocks._replace(continuum=continuum._replace(levels=tuple(levels)))
    return state._replace(adapting=adapting._replace(blocks=blocks))


def merge_level(
    model: LanguageModel,
    params: Any,
    state: ModelState,
    chunk_index: int,
    sequence: int | None = None,
) -> Any:
    """Parameters whose slow weights have taken over what one frequency has learnt.

    A context that is read on with the new parameters keeps its fast weights. A file of it, which
    belongs to the old ones, is refused by `load_context`.

    Args:
      model: whose state it is.
      params: of the model.
      state: after what has been read.
      chunk_index: which of `in_context.chunks`, 0 for the fastest.
      sequence: of the batch, whose weights are taken; None for the mean of all.

    Returns:
      New parameters, without boxes; those of other levels are the same.

    Raises:
      ValueError: if the model has no such level that learns in context.
    """
    config = model.config
    mine = places_of(config, chunk_index)
    _, continuum = learnt_in(state)
    new = nn.unbox(params)
    first = config.num_layers - config.adapting_blocks
    changed: dict[str, Any] = dict(new["blocks"]["continuum"])
    for index, level in enumerate(continuum.levels):
        here = first + np.flatnonzero(mine[:, index])
        maps = dict(changed[f"level_{index}"])
        for name, fast in level.weights._asdict().items():
            fast = fast.mean(1) if sequence is None else fast[:, sequence]
            kernel: Array = maps[name]["kernel"]
            fast = fast[here - first].astype(kernel.dtype)
            maps[name] = {**maps[name], "kernel": kernel.at[here].set(fast)}
        changed[f"level_{index}"] = maps
    return {**new, "blocks": {**new["blocks"], "continuum": changed}}


def learnt_in(state: ModelState) -> tuple[AdaptingState, ContinuumState]:
    """State of the adapting blocks, and what their levels have learnt.

    Raises:
      ValueError: if the state is of a model whose levels do not learn in context.
    """
    adapting = state.adapting
    if not isinstance(adapting, AdaptingState):
        raise ValueError("this state is of a model whose levels do not learn in context")
    assert isinstance(adapting.blocks.continuum, ContinuumState)
    return adapting, adapting.blocks.continuum


def places_of(config: LanguageModelConfig, chunk_index: int) -> np.ndarray:
    """Which levels of which adapting blocks have that chunk size, (A, L).

    Raises:
      ValueError: if there is none.
    """
    learning = config.in_context_config
    count = 0 if learning is None else len(learning.chunks)
    if learning is None or not 0 <= chunk_index < count:
        raise ValueError(
            f"there is no level {chunk_index}: {count} chunk sizes learn in context here, counted "
            f"from 0, the fastest"
        )
    return learning.chunk_of_each(*levels_of(config)) == chunk_index
