"""Who wakes: the reader with the new weights of a level, computed before anything is overwritten."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from hope_jax.inference.level_tools import learnt_in, places_of, reset_level, with_levels
from hope_jax.layers.level_learning import LevelState, learn_level
from hope_jax.models.in_context import AdaptingState, adapting_params, make_adaptation
from hope_jax.models.language_model import LanguageModel, ModelState, init_state
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.expansion import free_experts


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def student_of(
    model: LanguageModel, params: Any, state: ModelState, settings: SleepConfig
) -> ModelState:
    """The state after the level's update, which is applied to nothing else; the teacher keeps `state`.

    The level has its new weights and none of the experts that it had taken in. All other levels and their
    experts are as they were. Unless the context is kept, no token has been read.

    Args:
      model: whose state it is.
      params: of the model.
      state: of any number of readers.
      settings: which level, and what its new weights are.

    Raises:
      ValueError: if the model has no such level that learns in context.
    """
    new = reset_level if settings.new_weights == "slow" else apply_pending
    after = free_experts(model, new(model, params, state, settings.level), settings.level)
    return after if settings.keep_context else forget_context(model, params, after)


def apply_pending(
    model: LanguageModel, params: Any, state: ModelState, chunk_index: int
) -> ModelState:
    """Changes the levels of one frequency by the gradients gathered so far, as at the end of a period.

    A level that changes after every chunk has gathered none. The chunk that is open is not learned from.

    Args:
      model: whose state it is.
      params: of the model.
      state: after what has been read.
      chunk_index: which of `in_context.chunks`, 0 for the fastest.
    """
    config, params = model.config, nn.unbox(params)
    mine = jnp.asarray(places_of(config, chunk_index))
    _, continuum = learnt_in(state)
    adaptation = make_adaptation(
        config, adapting_params(config, params), params.get("log_step"), None, None
    )

    def change(level: LevelState, *learning: Any) -> LevelState:
        nothing = jax.tree.map(jnp.zeros_like, level.gradient)
        initial, step, period = learning
        never = jnp.zeros((), jnp.int32)
        settings = config.in_context_config
        return learn_level(level, nothing, initial, step, period, never, period - 1, settings)

    levels = []
    for index, level in enumerate(continuum.levels):
        if level.gradient != ():
            learning = adaptation.step[:, index], adaptation.period[:, index]
            new = jax.vmap(change)(level, adaptation.initial[index], *learning)
            here = mine[:, index]
            choose = lambda new, old, here=here: jnp.where(
                here.reshape(-1, *(1,) * (old.ndim - 1)), new, old
            )
            level = jax.tree.map(choose, new, level)
        levels.append(level)
    return with_levels(state, levels)


def forget_context(model: LanguageModel, params: Any, state: ModelState) -> ModelState:
    """A context in which nothing has been read, by who has learned what the levels and experts hold."""
    adapting, continuum = learnt_in(state)
    readers = continuum.levels[0].weights.gate.shape[1]
    fresh = init_state(model, params, readers)
    blank, empty = learnt_in(fresh)
    continuum = empty._replace(levels=continuum.levels, chunks=continuum.chunks)
    new = AdaptingState(
        blank.blocks._replace(continuum=continuum),
        blank.chunk_start,
        blank.open_chunk,
        adapting.experts,
    )
    return fresh._replace(adapting=new)
