"""What levels do while a text is read: how far they move, and whether it helps."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int

from hope_jax.counts import count
from hope_jax.inference.level_tools import learnt_in
from hope_jax.inference.sampling import score, score_segment
from hope_jax.models.in_context import levels_of, slow_weights
from hope_jax.models.language_model import LanguageModel


class LevelTrace(NamedTuple):
    """What happened while one sequence was read.

    Attributes:
      losses: of all tokens but the first, in nats.
      plain_losses: the same where nothing learns in context.
      chunks: C_l in tokens, of each frequency.
      distance: of the weights of each frequency from their slow weights after each of the smallest
        chunks, over the norm of the slow weights.
      change: of the weights in each of the smallest chunks, over the same norm.
    """

    losses: Float[np.ndarray, " T-1"]
    plain_losses: Float[np.ndarray, " T-1"]
    chunks: tuple[int, ...]
    distance: Float[np.ndarray, "chunks levels"]
    change: Float[np.ndarray, "chunks levels"]


def trace_levels(model: LanguageModel, params: Any, tokens: Int[np.ndarray, " T"]) -> LevelTrace:
    """Reads a text with and without learning, and looks at the levels after every chunk.

    Args:
      model: whose levels learn in context.
      params: of the model.
      tokens: ids, at least two.

    Returns:
      What happened.

    Raises:
      ValueError: if no level of the model learns in context, or there are too few tokens.
    """
    learning = model.config.in_context_config
    if learning is None:
        raise ValueError(
            "no level of this model learns in context, so there is nothing to look at; train one "
            "with --config.model.in_context, or import a checkpoint with hope_jax.commands.convert"
        )
    if len(tokens) < 2:
        raise ValueError(
            f"a text of {count(len(tokens), 'token')} has none to foretell; give at least two"
        )
    plain = LanguageModel(dataclasses.replace(model.config, in_context=None))
    plain_losses, _ = score(plain, params, jnp.asarray(tokens[None]))
    losses, distance, change = [], [], []
    state = None
    size = learning.chunks[0]
    for start in range(0, len(tokens) - 1, size):
        end = min(start + size, len(tokens) - 1)
        part = tokens[None, start:end], tokens[None, start + 1 : end + 1]
        loss, new = score_segment(model, params, *part, state)
        moved = _norms(model, params, new, new if state is None else state)
        losses.append(np.asarray(loss[0]))
        distance.append(moved[0])
        change.append(moved[1])
        state = new
    return LevelTrace(
        np.concatenate(losses),
        plain_losses[0],
        learning.chunks,
        np.stack(jax.device_get(distance)),
        np.stack(jax.device_get(change)),
    )


@functools.partial(jax.jit, static_argnames="model")
def _norms(model, params, state, before):
    """Distance from the slow weights, and from `before`, of each frequency."""
    config = model.config
    initial = slow_weights(config, nn.unbox(params))
    frequency = config.in_context_config.chunk_of_each(*levels_of(config))
    levels, old_levels = (learnt_in(s)[1].levels for s in (state, before))
    squares = lambda tree: sum(
        jnp.sum(jnp.square(x.astype(jnp.float32)), axis=range(1, x.ndim)) for x in tree
    )
    count = len(config.in_context_config.chunks)
    size, distance, change = (jnp.zeros(count) for _ in range(3))
    for index, slow in enumerate(initial):
        fast = [w[:, 0] for w in levels[index].weights]
        old = [w[:, 0] for w in old_levels[index].weights]
        place = frequency[:, index]
        size = size.at[place].add(squares(slow))
        distance = distance.at[place].add(squares([a - b for a, b in zip(fast, slow, strict=True)]))
        change = change.at[place].add(squares([a - b for a, b in zip(fast, old, strict=True)]))
    return jnp.sqrt(distance / size), jnp.sqrt(change / size)
