"""Wake and sleep in turn: a reader goes through a stream of tokens, and each level has its nights."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from hope_jax.inference.level_tools import learnt_in
from hope_jax.inference.sampling import Context, score
from hope_jax.layers.chunk_stream import OpenChunk
from hope_jax.models.config import LanguageModelConfig
from hope_jax.models.language_model import LanguageModel, ModelState
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.cycle import Night, NightSoFar, sleep


class Life(NamedTuple):
    """Where a life is; with the stream behind `position`, all that is needed to go on.

    Attributes:
      context: what has been read, by who has slept so often.
      position: tokens that have been read.
      slept: how many of the nights that are due at this position are over.
      night: the next one of them so far, or its leaves; None before its first step.
    """

    context: Context
    position: int
    slept: int
    night: NightSoFar | list[Any] | None = None


def night_periods(
    config: LanguageModelConfig, experts: int, given: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Tokens after which each level sleeps, fastest first.

    Args:
      config: of the model.
      experts: room beside each level.
      given: in the place of the chunk size of the next slower level and, for the slowest, of `experts`
        times its own.

    Raises:
      ValueError: if no level learns in context, or there is too little room from one night of a level to
        the next.
    """
    learning = config.in_context_config
    if learning is None:
        raise ValueError(
            "no level of this model learns in context (model.in_context): it cannot sleep"
        )
    chunks = learning.chunks
    periods = tuple(given) if given else (*chunks[1:], experts * chunks[-1])
    if len(periods) != len(chunks):
        raise ValueError(f"nights={periods} must hold a number for each of the chunks {chunks}")
    for level, (fast, slow) in enumerate(zip(periods, periods[1:], strict=False)):
        if slow % fast:
            raise ValueError(f"each of nights must divide the next, fastest first; got {periods}")
        if slow // fast > experts:
            raise ValueError(
                f"level {level} sleeps {slow // fast} times before level {level + 1} does (nights="
                f"{periods}), and there is room for experts={experts}; set experts={slow // fast}"
            )
    return periods


def levels_due(periods: Sequence[int], position: int) -> tuple[int, ...]:
    """Which levels sleep at a position, fastest first.

    Example:
      >>> levels_due((8, 32), 24), levels_due((8, 32), 32)
      ((0,), (0, 1))
    """
    return tuple(level for level, period in enumerate(periods) if position % period == 0)


def block_size(periods: Sequence[int], most: int = 512) -> int:
    """Tokens that are read at a time, so that every night falls between two blocks.

    Example:
      >>> block_size((768, 1536))
      384
    """
    common = math.gcd(*periods)
    return max(size for size in range(1, min(most, common) + 1) if common % size == 0)


def tokens_read(model: LanguageModel, state: ModelState) -> int:
    """How many tokens a state has read, as its chunks count them."""
    adapting, continuum = learnt_in(state)
    learning, held = model.config.in_context_config, adapting.open_chunk
    assert learning is not None
    in_open = int(held.filled) if isinstance(held, OpenChunk) else 0
    return int(continuum.chunks) * learning.chunks[0] + in_open


def live(
    model: LanguageModel,
    params: Any,
    life: Life,
    blocks: Iterable[Int[np.ndarray, "B T"]],
    periods: Sequence[int],
    key: Array,
    settings: SleepConfig,
    optimizer: optax.GradientTransformation,
    *,
    rehearsed: Int[Array, "N T"] | Int[np.ndarray, "N T"] | None = None,
    vocab_size: int | None = None,
    wake: Callable[[Context], Context] = lambda context: context,
    on_read: Callable[[Life, Float[np.ndarray, "B T"]], None] = lambda life, losses: None,
    on_step: Callable[[Life, int, NightSoFar], None] = lambda life, level, so_far: None,
    on_night: Callable[[Life, int, Night], None] = lambda life, level, night: None,
) -> Life:
    """Reads a stream to its end, and sleeps where that is due.

    A night that is dropped changes nothing, and reading goes on. What happens depends on the arguments
    alone: from any `Life` that was handed out, with the blocks behind it, all comes to the same bits.

    Args:
      model: that lives.
      params: of the model; they do not change.
      life: to begin with. Give its state room for experts first (`make_room`), or the first night has
        reading compiled anew.
      blocks: tokens behind the life's position, such that nights fall between them (`block_size`).
      periods: tokens after which each level sleeps, from `night_periods`.
      key: random key of all nights.
      settings: of a night; the schedule says whose.
      optimizer: see `sleep`.
      rehearsed: see `sleep`.
      vocab_size: see `sleep`.
      wake: what a reader does who has just slept, such as to begin a context.
      on_read: called after each block, with its losses in nats.
      on_step: called after each step of a night, with the level that sleeps and the night so far.
      on_night: called after each night.

    Returns:
      The life at the end of the stream, all nights that were due there included.
    """
    left = iter(blocks)
    while True:
        for level in levels_due(periods, life.position)[life.slept :]:
            own = jax.random.fold_in(jax.random.fold_in(key, life.position), level)
            asleep = life

            def tell(so_far: NightSoFar, level: int = level, asleep: Life = asleep) -> None:
                on_step(asleep._replace(night=so_far), level, so_far)

            state, night = sleep(
                model,
                params,
                life.context,
                jax.random.split(own, life.context.logits.shape[0]),
                dataclasses.replace(settings, level=level),
                optimizer,
                rehearsed=rehearsed,
                vocab_size=vocab_size,
                begun=life.night,
                on_step=tell,
            )
            context = life.context
            if night.kept:
                context = wake(Context(state, context.logits))
            life = Life(context, life.position, life.slept + 1)
            on_night(life, level, night)
        tokens = next(left, None)
        if tokens is None:
            return life
        size = tokens.shape[1]
        losses, context = score(model, params, jnp.asarray(tokens), life.context, segment=size)
        life = Life(context, life.position + size, 0)
        on_read(life, losses)
