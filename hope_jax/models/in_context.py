"""The last blocks of a model, whose MLP levels learn while the model reads (sections 2.5, 7.1)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from hope_jax.layers.chunk_stream import OpenChunk, read_in_chunks
from hope_jax.layers.continuum import (
    ContinuumState,
    chunk_gradient,
    counted_tokens,
    drop_finished,
    init_continuum,
    open_levels,
)
from hope_jax.layers.level_learning import Adaptation, FastWeights, LevelState, learn_level
from hope_jax.layers.mlp import MLPWeights
from hope_jax.models.blocks import BlockState
from hope_jax.models.config import LanguageModelConfig

Stack = Callable[..., tuple[Float[Array, "B T D"], BlockState]]


class AdaptingState(NamedTuple):
    """What the adapting blocks carry from one call to the next.

    Attributes:
      blocks: their states after the last token, every array `(blocks, batch, ...)`, but for counters.
      chunk_start: states of their sequence layers at the start of the open chunk; `()` with the
        local objective.
      open_chunk: inputs of the adapting blocks that have not been learnt from; `()` with the local
        objective, where each level keeps its own.
    """

    blocks: BlockState
    chunk_start: PyTree[Array]
    open_chunk: OpenChunk | tuple[()]


class Head(NamedTuple):
    """What turns the output of the last block into losses.

    Attributes:
      norm: the final normalisation.
      losses: of normed activations and targets, (B, T).
    """

    norm: Callable[[Array], Array]
    losses: Callable[[Array, Array], Array]


def make_adaptation(
    config: LanguageModelConfig,
    block_params: Any,
    log_step: Float[Array, "A L"] | None,
    keys: Float[Array, "A L D D"] | None,
    values: Float[Array, "A L D D"] | None,
) -> Adaptation:
    """Gathers what the levels of the adapting blocks learn by.

    Args:
      config: of the model.
      block_params: parameters of the adapting blocks, stacked and without boxes.
      log_step: learned factors of the step sizes.
      keys: projections of the local objective.
      values: likewise.

    Returns:
      Arrays with the leading axis of the adapting blocks.
    """
    learning = config.in_context_config
    assert learning is not None
    chunk = learning.chunk_of_each(config.adapting_blocks, config.cms_levels)
    period = jnp.array(learning.chunks)[chunk] // learning.chunks[0]
    restart = jnp.zeros_like(period)
    if config.cms_connection == "nested":
        restart = restart.at[:, :-1].set(period[:, 1:])
    step = jnp.array(learning.step_sizes)[chunk]
    if log_step is not None:
        step = step * jnp.exp(log_step)
    return Adaptation(_slow_weights(config, block_params), step, period, restart, keys, values)


def slow_weights(config: LanguageModelConfig, params: Any) -> tuple[MLPWeights, ...]:
    """The parameters that the levels of the adapting blocks begin with, (A, D, H) and so on.

    They are float32 or wider whatever the parameters are, and so is all that is learnt from there: the
    changes of many chunks would be lost in the rounding of a narrower type.

    Args:
      config: of the model.
      params: of the model, without boxes.
    """
    first = config.num_layers - config.adapting_blocks
    return _slow_weights(config, jax.tree.map(lambda w: w[first:], params["blocks"]))


def _slow_weights(config: LanguageModelConfig, block_params: Any) -> tuple[MLPWeights, ...]:
    continuum = block_params["continuum"]

    def wide(level: int, name: str) -> Array:
        kernel = continuum[f"level_{level}"][name]["kernel"]
        return kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))

    return tuple(
        MLPWeights(*(wide(level, name) for name in MLPWeights._fields))
        for level in range(config.cms_levels)
    )


def read_adapting(
    config: LanguageModelConfig,
    stack: Stack,
    head: Head,
    adaptation: Adaptation,
    x: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    state: AdaptingState | None,
    reset: Bool[Array, "B T"] | None,
    targets: Int[Array, "B T"] | None = None,
) -> tuple[Array, AdaptingState]:
    """Passes tokens through the adapting blocks and the final norm.

    Args:
      config: of the model.
      stack: `(x, block states, reset, fast, adaptation) -> (y, block states)` of these blocks.
      head: what follows them.
      adaptation: what their levels learn by.
      x: what the blocks below have made.
      tokens: ids.
      state: what an earlier call returned; None starts a context.
      reset: True where a token starts a new document.
      targets: the ids that follow; where they are given, losses are returned.

    Returns:
      Final activations, (B, T, D), or losses, (B, T); and the state after the last token.
    """
    learning = config.in_context_config
    assert learning is not None
    if learning.objective == "local":
        y, blocks = stack(x, None if state is None else state.blocks, reset, None, adaptation)
        y = head.norm(y)
        y = y if targets is None else head.losses(y, targets)
        return y, AdaptingState(blocks, (), ())
    return _read_next_token(config, stack, head, adaptation, x, tokens, state, reset, targets)


def _read_next_token(
    config: LanguageModelConfig,
    stack: Stack,
    head: Head,
    adaptation: Adaptation,
    x: Array,
    tokens: Array,
    state: AdaptingState | None,
    reset: Array | None,
    targets: Array | None,
) -> tuple[Array, AdaptingState]:
    learning = config.in_context_config
    assert learning is not None
    size, batch, length = learning.chunks[0], *tokens.shape
    initial = adaptation.initial
    before = state  # this call
    resets = reset is not None
    # Resets of earlier calls are in the open chunk. What is learnt from, and the sequence layers that
    # go through it again, heed them; the levels' weights have been started over already.
    flags = resets or before is not None
    flagged = lambda part: part["reset"] if flags else None
    newly_flagged = lambda part: part["reset"] if resets else None

    if state is None:
        _, nothing = stack(x[:, :0], None, None, None, None)
        fresh = jax.vmap(lambda initial: init_continuum(initial, batch, learning))(initial)
        continuum = ContinuumState(fresh.levels, jnp.zeros((), jnp.int32), ())
        state = AdaptingState(BlockState(nothing.sequence, continuum), nothing.sequence, ())
    now, memory = state.blocks.sequence, state.blocks.continuum
    assert isinstance(memory, ContinuumState)

    def learn(carry: Any, chunk: Any, following: Any) -> tuple[Any, Array]:
        levels, sequence, chunks = carry
        fast, started = _open(levels, initial, newly_flagged(chunk))
        counted = jnp.ones((batch, size), bool)
        if flags:
            counted = counted_tokens(chunk["reset"], following["reset"])
        ids = chunk.get("targets")
        if ids is None:
            ids = jnp.concatenate([chunk["tokens"][:, 1:], following["tokens"]], axis=1)

        def loss(weights: tuple[MLPWeights, ...]) -> tuple[Array, Any]:
            used = tuple(f._replace(after=w) for f, w in zip(fast, weights, strict=True))
            y, after = stack(chunk["x"], BlockState(sequence, ()), flagged(chunk), used, None)
            y = head.norm(y)
            losses = head.losses(y, ids)
            return jnp.sum(losses * counted), (y if targets is None else losses, after)

        gradients, (outputs, after) = jax.grad(loss, has_aux=True)(
            tuple(level.weights for level in started)
        )

        def learnt(level, state, gradient, read):
            def one(state, gradient, read, initial, step, period, restart):
                gradient = chunk_gradient(gradient, read, state.weights, counted, learning)
                return learn_level(
                    state, gradient, initial, step, period, restart, chunks, learning
                )

            return jax.vmap(one)(
                state,
                gradient,
                read,
                initial[level],
                adaptation.step[:, level],
                adaptation.period[:, level],
                adaptation.restart[:, level],
            )

        levels = tuple(map(learnt, range(len(levels)), started, gradients, after.continuum))
        return (levels, after.sequence, chunks + 1), outputs

    def read_from(sequence: Any, levels: Any, part: Any, reset: Any) -> tuple[Array, Any]:
        fast = None
        if before is not None or length > size:
            # Before anything is learnt the parameters themselves are read, to the same bits.
            fast, _ = _open(levels, initial, newly_flagged(part))
        y, after = stack(part["x"], BlockState(sequence, ()), reset, fast, None)
        y = head.norm(y)
        return y if targets is None else head.losses(y, part["targets"]), after.sequence

    items = {"x": x, "tokens": tokens, "reset": reset}
    if reset is None:
        items["reset"] = jnp.zeros(tokens.shape, bool)
    if targets is not None:
        items["targets"] = targets
    (levels, sequence, chunks), open_chunk, outputs, end = read_in_chunks(
        (memory.levels, state.chunk_start, memory.chunks),
        state.open_chunk if isinstance(state.open_chunk, OpenChunk) else None,
        items,
        size,
        learn,
        lambda carry, part: read_from(carry[1], carry[0], part, flagged(part)),
        lambda carry, token: read_from(now, carry[0], token, reset),
    )
    if resets:
        levels = jax.vmap(drop_finished, (0, 0, None, None))(
            levels, initial, open_chunk.items["reset"], open_chunk.filled
        )
    if before is not None and length != 1:
        # What was read of a full chunk ends where the chunk does.
        end = jax.lax.cond(
            open_chunk.filled == size,
            lambda: end,
            lambda: _end_of(stack, levels, initial, sequence, open_chunk),
        )
    continuum = ContinuumState(levels, chunks, ())
    return outputs, AdaptingState(BlockState(end, continuum), sequence, open_chunk)


def _open(
    levels: tuple[LevelState, ...], initial: tuple[MLPWeights, ...], reset: Array | None
) -> tuple[tuple[FastWeights, ...], tuple[LevelState, ...]]:
    return jax.vmap(open_levels, (0, 0, None))(levels, initial, reset)


def _end_of(
    stack: Stack,
    levels: tuple[LevelState, ...],
    initial: tuple[MLPWeights, ...],
    sequence: Any,
    open_chunk: OpenChunk,
) -> Any:
    """States of the sequence layers after the last token of an open chunk, token by token."""
    fast, _ = _open(levels, initial, None)

    def step(sequence: Any, inputs: Any) -> tuple[Any, None]:
        index, x, reset = inputs
        read = lambda sequence: (
            stack(x[:, None], BlockState(sequence, ()), reset[:, None], fast, None)[1].sequence
        )
        there = index < open_chunk.filled
        return jax.lax.cond(there, read, lambda sequence: sequence, sequence), None

    x, reset = open_chunk.items["x"], open_chunk.items["reset"]
    along = (jnp.arange(x.shape[1]), jnp.moveaxis(x, 1, 0), jnp.moveaxis(reset, 1, 0))
    return jax.lax.scan(step, sequence, along)[0]
