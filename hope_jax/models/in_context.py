"""The last blocks of a model, whose MLP levels learn while the model reads (sections 2.5, 7.1)."""

import dataclasses
from collections.abc import Callable, Mapping
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
    lay_out,
    open_levels,
)
from hope_jax.layers.experts import Experts
from hope_jax.layers.inner_loop import INNER_LOOP
from hope_jax.layers.level_learning import (
    Adaptation,
    FastWeights,
    InContextConfig,
    LevelState,
    learn_level,
)
from hope_jax.layers.mlp import MLPWeights
from hope_jax.models.blocks import BlockState
from hope_jax.models.config import LanguageModelConfig
from hope_jax.models.wavefront import wavefront

Stack = Callable[..., tuple[Float[Array, "B T D"], BlockState]]
Step = Callable[..., tuple[Float[Array, "B 1 D"], BlockState]]


class AdaptingState(NamedTuple):
    """What the adapting blocks carry from one call to the next.

    Attributes:
      blocks: their states after the last token, every array `(blocks, batch, ...)`, but for counters.
      chunk_start: states of their sequence layers at the start of the open chunk; `()` with the
        local objective.
      open_chunk: inputs of the adapting blocks that have not been learnt from; `()` with the local
        objective, where each level keeps its own.
      experts: of each sequence, (blocks, batch, pools, E, ...), or of all of a batch together, (blocks,
        pools, E, ...); `()` where nobody has slept. They belong to who reads, not to what is read, and
        outlast a reset.
    """

    blocks: BlockState
    chunk_start: PyTree[Array]
    open_chunk: OpenChunk | tuple[()]
    experts: Experts | tuple[()] = ()


class HeldState(NamedTuple):
    """What the adapting blocks carry while their levels are held: they are read and do not learn.

    Attributes:
      sequence: states of the sequence layers after the last token, every array `(blocks, batch, ...)`.
      weights: of each level, (blocks, ...), which all sequences of a batch share.
      experts: as in `AdaptingState`.
    """

    sequence: PyTree[Array]
    weights: tuple[MLPWeights, ...]
    experts: Experts | tuple[()] = ()


class Head(NamedTuple):
    """What turns the output of the last block into losses.

    Attributes:
      norm: the final normalisation.
      losses: of normed activations and targets, (B, T).
    """

    norm: Callable[[Array], Array]
    losses: Callable[[Array, Array], Array]


def at_least_float32(x: Array) -> Array:
    """An array in float32, or in its own dtype where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def levels_of(config: LanguageModelConfig) -> tuple[int, int]:
    """How many blocks adapt, and how many levels each of them has."""
    return config.adapting_blocks, config.cms_levels


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
    chunk = learning.chunk_of_each(*levels_of(config))
    period = jnp.array(learning.chunks)[chunk] // learning.chunks[0]
    restart = jnp.zeros_like(period)
    if config.cms_connection == "nested":
        restart = restart.at[:, :-1].set(period[:, 1:])
    step = jnp.array(learning.step_sizes)[chunk]
    if log_step is not None:
        step = step * jnp.exp(log_step)
    if keys is not None and values is not None:
        keys, values = at_least_float32(keys), at_least_float32(values)
    return Adaptation(_slow_weights(config, block_params), step, period, restart, keys, values)


def slow_weights(config: LanguageModelConfig, params: Any) -> tuple[MLPWeights, ...]:
    """The parameters that the levels of the adapting blocks begin with, (A, D, H) and so on.

    They are float32 or wider whatever the parameters are, and so is all that is learnt from there: the
    changes of many chunks would be lost in the rounding of a narrower type.

    Args:
      config: of the model.
      params: of the model, without boxes.
    """
    return _slow_weights(config, adapting_params(config, params))


def adapting_params(config: LanguageModelConfig, params: Any) -> Any:
    """Parameters of the adapting blocks, stacked, of a model's without boxes."""
    first = config.num_layers - config.adapting_blocks
    return jax.tree.map(lambda w: w[first:], params["blocks"])


def _slow_weights(config: LanguageModelConfig, block_params: Any) -> tuple[MLPWeights, ...]:
    continuum = block_params["continuum"]

    return tuple(
        MLPWeights(
            *(
                at_least_float32(continuum[f"level_{level}"][name]["kernel"])
                for name in MLPWeights._fields
            )
        )
        for level in range(config.cms_levels)
    )


def read_adapting(
    config: LanguageModelConfig,
    stack: Stack,
    step: Step,
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
      step: `(x, block states, reset, fast) -> (y, block states)`, the same for one token.
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
    if learning.local_loss is not None:
        y, blocks = stack(x, None if state is None else state.blocks, reset, None, adaptation)
        y = head.norm(y)
        y = y if targets is None else head.losses(y, targets)
        return y, AdaptingState(blocks, (), ())
    return _read_next_token(
        learning, stack, step, head, adaptation, x, tokens, state, reset, targets
    )


class _ChunkStart(NamedTuple):
    """The adapting blocks at the start of a chunk, all that one chunk hands to the next.

    Attributes:
      levels: what each level has learnt.
      sequence: states of the sequence layers.
      chunks: how many chunks of the smallest size were learnt from.
    """

    levels: tuple[LevelState, ...]
    sequence: PyTree[Array]
    chunks: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class _Call:
    """What one call does with a chunk: it opens the levels, reads, and learns.

    A part of the stream is a dictionary of `x`, `tokens`, `reset`, and `targets` where losses are
    wanted, arrays (B, T, ...).

    Attributes:
      stack: see `read_adapting`.
      head: what follows it.
      adaptation: what the levels learn by.
      learning: its settings.
      resets: whether tokens of this call may begin documents.
      goes_on: whether a context is continued. Resets of earlier calls are in its open chunk: what is
        learnt from, and the sequence layers that go through it again, heed them; the levels'
        weights have been started over already.
      plain: whether nothing has been learnt before this call ends, so that the parameters
        themselves are read, to the same bits.
    """

    stack: Stack
    head: Head
    adaptation: Adaptation
    learning: InContextConfig
    resets: bool
    goes_on: bool
    plain: bool

    def open(
        self, levels: tuple[LevelState, ...], part: Mapping[str, Array]
    ) -> tuple[tuple[FastWeights, ...], tuple[LevelState, ...]]:
        """Weights for the tokens of a chunk, and the levels from which its last document goes on."""
        return _open(levels, self.adaptation.initial, part["reset"] if self.resets else None)

    def read(self, start: _ChunkStart, part: Mapping[str, Array]) -> tuple[Array, PyTree[Array]]:
        """Outputs of the first tokens of a chunk, and the sequence layers' states after them."""
        fast = None if self.plain else self.open(start.levels, part)[0]
        states = BlockState(start.sequence, ())
        y, after = self.stack(part["x"], states, self._heeded(part), fast, None)
        return self._output(y, part), after.sequence

    def read_next(
        self, step: Step, start: _ChunkStart, now: PyTree[Array], token: Mapping[str, Array]
    ) -> tuple[Array, PyTree[Array]]:
        """The same of one token within a chunk, before which the sequence layers' states are `now`."""
        fast, _ = self.open(start.levels, token)
        reset = token["reset"] if self.resets else None
        y, after = step(token["x"], BlockState(now, ()), reset, fast)
        return self._output(y, token), after.sequence

    @jax.named_scope(INNER_LOOP)  # the forward pass, too, which is also what is read
    def learn(
        self, start: _ChunkStart, chunk: Mapping[str, Array], following: Mapping[str, Array]
    ) -> tuple[_ChunkStart, Array]:
        """The start of the next chunk, which `following` begins, and the outputs of this one."""
        fast, started = self.open(start.levels, chunk)
        counted = jnp.ones(chunk["tokens"].shape, bool)
        if self.resets or self.goes_on:
            counted = counted_tokens(chunk["reset"], following["reset"])
        gradients, (outputs, after) = jax.grad(self._loss, has_aux=True)(
            tuple(level.weights for level in started),
            fast,
            start.sequence,
            chunk,
            following,
            counted,
        )
        adaptation, learnt = self.adaptation, []
        for level, parts in enumerate(zip(started, gradients, after.continuum, strict=True)):
            change = jax.vmap(self._change, in_axes=(0,) * 7 + (None, None))
            learnt.append(
                change(
                    *parts,
                    adaptation.initial[level],
                    adaptation.step[:, level],
                    adaptation.period[:, level],
                    adaptation.restart[:, level],
                    counted,
                    start.chunks,
                )
            )
        levels = lay_out(tuple(learnt))
        return _ChunkStart(levels, after.sequence, start.chunks + 1), outputs

    def _heeded(self, part: Mapping[str, Array]) -> Array | None:
        return part["reset"] if self.resets or self.goes_on else None

    def _output(self, y: Array, part: Mapping[str, Array]) -> Array:
        y = self.head.norm(y)
        return self.head.losses(y, part["targets"]) if "targets" in part else y

    def _loss(
        self,
        weights: tuple[MLPWeights, ...],
        fast: tuple[FastWeights, ...],
        sequence: PyTree[Array],
        chunk: Mapping[str, Array],
        following: Mapping[str, Array],
        counted: Array,
    ) -> tuple[Array, tuple[Array, BlockState]]:
        """Summed loss of the counted tokens; the chunk's outputs, and the blocks after it."""
        used = tuple(f._replace(after=w) for f, w in zip(fast, weights, strict=True))
        x, state = chunk["x"], BlockState(sequence, ())
        y, after = self.stack(x, state, self._heeded(chunk), used, None)
        y = self.head.norm(y)
        if "targets" in chunk:
            losses = self.head.losses(y, chunk["targets"])
            return jnp.sum(losses * counted), (losses, after)
        ids = jnp.concatenate([chunk["tokens"][:, 1:], following["tokens"]], axis=1)
        return jnp.sum(self.head.losses(y, ids) * counted), (y, after)

    def _change(
        self,
        state: LevelState,
        gradient: MLPWeights,
        inputs: MLPWeights,
        initial: MLPWeights,
        step: Array,
        period: Array,
        restart: Array,
        counted: Array,
        chunks: Array,
    ) -> LevelState:
        """One level of one block after a chunk."""
        gradient = chunk_gradient(gradient, inputs, state.weights, counted, self.learning)
        return learn_level(state, gradient, initial, step, period, restart, chunks, self.learning)


def _read_next_token(
    learning: InContextConfig,
    stack: Stack,
    step: Step,
    head: Head,
    adaptation: Adaptation,
    x: Array,
    tokens: Array,
    state: AdaptingState | None,
    reset: Array | None,
    targets: Array | None,
) -> tuple[Array, AdaptingState]:
    size, initial, length = learning.chunks[0], adaptation.initial, tokens.shape[1]
    goes_on = state is not None
    call = _Call(
        stack,
        head,
        adaptation,
        learning,
        resets=reset is not None,
        goes_on=goes_on,
        plain=not goes_on and length <= size,
    )
    if state is None:
        state = _nothing_read(learning, stack, initial, x)
    now, memory = state.blocks.sequence, state.blocks.continuum
    assert isinstance(memory, ContinuumState)
    items = {"x": x, "tokens": tokens, "reset": reset}
    if reset is None:
        items["reset"] = jnp.zeros(tokens.shape, bool)
    open_chunk = state.open_chunk if isinstance(state.open_chunk, OpenChunk) else None
    if targets is not None:
        items["targets"] = targets
        open_chunk = None if open_chunk is None else _with_targets(open_chunk, tokens)
    start, open_chunk, outputs, end = read_in_chunks(
        _ChunkStart(memory.levels, state.chunk_start, memory.chunks),
        open_chunk,
        items,
        size,
        call.learn,
        call.read,
        lambda start, token: call.read_next(step, start, now, token),
    )
    # A state is the same whether losses were asked for or not.
    kept = {name: item for name, item in open_chunk.items.items() if name != "targets"}
    open_chunk = open_chunk._replace(items=kept)
    levels = start.levels
    if call.resets:
        levels = jax.vmap(drop_finished, (0, 0, None, None))(
            levels, initial, open_chunk.items["reset"], open_chunk.filled
        )
    if goes_on and length != 1:
        # What was read of a full chunk ends where the chunk does.
        end = jax.lax.cond(
            open_chunk.filled == size,
            lambda: end,
            lambda: _end_of(step, levels, initial, start.sequence, open_chunk),
        )
    blocks = BlockState(end, ContinuumState(levels, start.chunks, ()))
    return outputs, AdaptingState(blocks, start.sequence, open_chunk)


def read_part_next_token(
    config: LanguageModelConfig,
    stack: Stack,
    head: Head,
    adaptation: Adaptation,
    x: Float[Array, "B P D"],
    tokens: Int[Array, "B P"],
    targets: Int[Array, "B P"],
    reset: Bool[Array, "B P"] | None,
    axis: str,
) -> Float[Array, "B P"]:
    """As `read_adapting` of whole sequences with targets, of which each device has one part.

    With the next-token objective what one chunk teaches reaches all adapting blocks before any of them
    reads the next. So the parts are read one after the other, and each device waits while others work.

    Args:
      config: of the model.
      stack: of the adapting blocks.
      head: what follows them.
      adaptation: what their levels learn by.
      x: what the blocks below have made of this device's part, which is a number of whole chunks.
      tokens: ids.
      targets: the ids that follow.
      reset: True where a token starts a new document.
      axis: of the mesh, on whose devices the parts lie.

    Returns:
      Losses, of this part.
    """
    learning = config.in_context_config
    assert learning is not None
    resets, size = reset is not None, learning.chunks[0]
    call = _Call(stack, head, adaptation, learning, resets, goes_on=False, plain=False)
    items = {"x": x, "tokens": tokens, "targets": targets}
    items["reset"] = reset if resets else jnp.zeros(tokens.shape, bool)
    learn = jax.checkpoint(call.learn, prevent_cse=False)

    def chunks(item: Array) -> Array:
        return jnp.moveaxis(item.reshape(item.shape[0], -1, size, *item.shape[2:]), 1, 0)

    own = jax.tree.map(chunks, items)
    # The token after a chunk says only whether it begins a document. That of the next part need not be
    # known: where it does, the levels are started over, whatever they have learnt.
    first = own["reset"][:, :, :1]
    following = {"reset": jnp.concatenate([first[1:], jnp.zeros_like(first[:1])])}

    def read(_: Array, losses: Array, start: _ChunkStart) -> tuple[Array, _ChunkStart]:
        start, read = jax.lax.scan(lambda start, pair: learn(start, *pair), start, (own, following))
        return jnp.moveaxis(read, 0, 1).reshape(losses.shape).astype(losses.dtype), start

    def fresh(_: Array) -> _ChunkStart:
        state = _nothing_read(learning, stack, adaptation.initial, x)
        memory = state.blocks.continuum
        assert isinstance(memory, ContinuumState)
        return _ChunkStart(memory.levels, state.chunk_start, memory.chunks)

    losses = at_least_float32(jnp.zeros(tokens.shape, x.dtype))
    return wavefront(read, fresh, 1, losses, axis)


def _with_targets(open_chunk: OpenChunk, following: Array) -> OpenChunk:
    """An open chunk with the targets of its tokens, of which the last is the first that follows."""
    tokens = open_chunk.items["tokens"]
    laid = jnp.pad(tokens, ((0, 0), (0, following.shape[1])))
    laid = jax.lax.dynamic_update_slice_in_dim(
        laid, following.astype(tokens.dtype), open_chunk.filled, axis=1
    )
    targets = jnp.pad(laid, ((0, 0), (0, 1)))[:, 1 : tokens.shape[1] + 1]
    return open_chunk._replace(items={**open_chunk.items, "targets": targets})


def _nothing_read(
    learning: InContextConfig, stack: Stack, initial: tuple[MLPWeights, ...], x: Array
) -> AdaptingState:
    _, nothing = stack(x[:, :0], None, None, None, None)
    fresh = jax.vmap(lambda initial: init_continuum(initial, x.shape[0], learning))(initial)
    continuum = ContinuumState(fresh.levels, jnp.zeros((), jnp.int32), ())
    return AdaptingState(BlockState(nothing.sequence, continuum), nothing.sequence, ())


def _open(
    levels: tuple[LevelState, ...], initial: tuple[MLPWeights, ...], reset: Array | None
) -> tuple[tuple[FastWeights, ...], tuple[LevelState, ...]]:
    return jax.vmap(open_levels, (0, 0, None))(levels, initial, reset)


def _end_of(
    step: Step,
    levels: tuple[LevelState, ...],
    initial: tuple[MLPWeights, ...],
    sequence: Any,
    open_chunk: OpenChunk,
) -> Any:
    """States of the sequence layers after the last token of an open chunk, token by token."""
    fast, _ = _open(levels, initial, None)

    def go_on(sequence: Any, inputs: Any) -> tuple[Any, None]:
        index, x, reset = inputs
        read = lambda sequence: (
            step(x[:, None], BlockState(sequence, ()), reset[:, None], fast)[1].sequence
        )
        there = index < open_chunk.filled
        return jax.lax.cond(there, read, lambda sequence: sequence, sequence), None

    x, reset = open_chunk.items["x"], open_chunk.items["reset"]
    along = (jnp.arange(x.shape[1]), jnp.moveaxis(x, 1, 0), jnp.moveaxis(reset, 1, 0))
    return jax.lax.scan(go_on, sequence, along)[0]
