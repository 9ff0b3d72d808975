"""Memory as context: attention within a segment, to what the memory recalls for it (Titans' MAC)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from hope_jax.layers.attention import (
    Always,
    Kernel,
    document_starts,
    persistent_tokens,
    softmax_attention,
)
from hope_jax.layers.normalization import RMSNorm
from hope_jax.layers.projection import Projection
from hope_jax.layers.rotary import apply_rotary, rotary_frequencies
from hope_jax.layers.titans import SelfModifyingTitans, TitansConfig, TitansState
from hope_jax.memory.bank import Anchor, Weights
from hope_jax.memory.directions import unit


class SegmentState(NamedTuple):
    """What the layer carries from one call to the next. Slots are places in the open segment.

    Attributes:
      memory: of the memory, which has read all tokens so far.
      recalled: weights of the memory at the segment's start, from which is recalled; axes (B, H).
      keys: of the recalled rows and of the tokens themselves, by slot, shape (B, 2, S, H, N).
      values: likewise.
      slot: of the next token, shape (B,); S is that of the next segment's first.
      document: slot at which the open document began, -1 if before the segment, shape (B,).
    """

    memory: TitansState
    recalled: Weights
    keys: Float[Array, "B 2 S H N"]
    values: Float[Array, "B 2 S H N"]
    slot: Int[Array, " B"]
    document: Int[Array, " B"]


class MemoryAsContext(nn.Module):
    """Segments of tokens, each read by attention together with what the memory recalls for it.

    For each segment X, with M the memory as it was at the segment's start,

        H = norm(M(X W_q) W_h)                        one recalled row for each token
        Y = norm(Attention(X; [persistent, H, X]))    causal: row i sees H_j and X_j for j <= i
        O = Y * sigmoid(norm(Memory(Y)))              the memory learns from Y, token by token

    The norms keep what the memory reads from growing with what it gives.

    Attributes:
      config: of the memory.
      segment: S, tokens of a segment; a multiple of the memory's chunk sizes.
      persistent: learned rows that every query sees.
      rope_base: base of the rotary frequencies; a recalled row has the position of its token.
      kernel: of attention, as in `Attention`.
      dtype: of activations; the softmax is formed in float32.
      param_dtype: of parameters.

    Raises:
      ValueError: if the segment is no multiple of the chunk sizes, or heads have an odd width.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> memory = TitansConfig(width=8, num_heads=2, memory_chunk=2, generator_chunk=4)
      >>> layer = MemoryAsContext(memory, segment=4, persistent=1)
      >>> x = jax.random.normal(jax.random.key(0), (1, 10, 8))
      >>> (y, state), params = jax.jit(layer.init_with_output)(jax.random.key(1), x)
      >>> more, state = jax.jit(layer.apply)(params, x[:, :1], state)
      >>> y.shape, more.shape
      ((1, 10, 8), (1, 1, 8))
    """

    config: TitansConfig
    segment: int
    persistent: int = 0
    rope_base: float = 10_000.0
    kernel: Kernel | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: SegmentState | None = None,
        reset: Bool[Array, "B T"] | None = None,
        at_edge: bool = False,
    ) -> tuple[Float[Array, "B T D"], SegmentState]:
        """Reads T tokens of each sequence, learning from them.

        A fresh context is read a segment at a time, and so is one that goes on at a segment's edge. Any
        other, whose open segment can have any length, is read a token at a time.

        Args:
          x: inputs, shape (B, T, D).
          state: to continue from; `None` begins a context.
          reset: True where a token begins a new document, shape (B, T).
          at_edge: whether the state is known to have no open segment.

        Returns:
          Outputs, shape (B, T, D), and the state after the last token.
        """
        check_segment(self.config, self.segment)
        piece = _Piece(
            self.config,
            self.segment,
            self.persistent,
            self.rope_base,
            self.kernel,
            self.dtype,
            self.param_dtype,
            name="piece",
        )
        length = x.shape[1]
        if state is None:
            state, at_edge = piece.fresh(x), True
        size = self.segment if at_edge else 1
        count = length // size
        outputs = []
        if count:

            def cut(part: Array) -> Array:
                part = part[:, : count * size]
                return part.reshape(part.shape[0], count, size, *part.shape[2:])

            def read(piece, state, part):
                y, state = piece(part[0], state, part[1], at_edge)
                return state, y

            scan = nn.scan(
                read,
                variable_broadcast="params",
                split_rngs={"params": False},
                in_axes=1,
                out_axes=1,
            )
            state, y = scan(piece, state, (cut(x), None if reset is None else cut(reset)))
            outputs.append(y.reshape(x.shape[0], count * size, -1))
        if length > count * size or not length:
            rest = slice(count * size, None)
            y, state = piece(x[:, rest], state, None if reset is None else reset[:, rest], at_edge)
            outputs.append(y)
        return jnp.concatenate(outputs, axis=1), state


class _Piece(nn.Module):
    """Reads tokens of one segment: a whole one or its beginning, or wherever it is, one token."""

    config: TitansConfig
    segment: int
    persistent: int
    rope_base: float
    kernel: Kernel | None
    dtype: DTypeLike
    param_dtype: DTypeLike

    def setup(self) -> None:
        self.memory = SelfModifyingTitans(self.config, self.dtype, self.param_dtype)

    def fresh(self, x: Float[Array, "B T D"]) -> SegmentState:
        """The state of a context in which nothing has been read."""
        heads, size = self.config.num_heads, self.config.head_width
        memory = self.memory(x[:, :0])[1]
        empty = lambda: jnp.zeros((x.shape[0], 2, self.segment, heads, size), self.dtype)
        slot = jnp.zeros(x.shape[0], jnp.int32)
        # No array stands twice in a state, so that it can be donated.
        recalled = jax.tree.map(jnp.copy, memory.heads.memory.weights)
        return SegmentState(memory, recalled, empty(), empty(), slot, slot - 1)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B R D"],
        state: SegmentState,
        reset: Bool[Array, "B R"] | None,
        at_edge: bool,
    ) -> tuple[Float[Array, "B R D"], SegmentState]:
        """Reads R tokens that lie in one segment; `at_edge`, from where it begins."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        heads, size = self.config.num_heads, self.config.head_width

        def vectors(name: str) -> Projection:
            return Projection((heads, size), ("embed", "heads", "head_dim"), name=name, **dtypes)

        def joined(name: str) -> Projection:
            names, features = ("heads", "head_dim", "embed"), (self.config.width,)
            return Projection(features, names, axes=2, name=name, **dtypes)

        state = self._opened(state, at_edge)
        rows = x.shape[1]
        slots = state.slot[:, None] + jnp.arange(rows, dtype=jnp.int32)
        documents = document_starts(state.document, slots, reset)
        restarted = None if at_edge and reset is None else documents >= 0
        recalled = joined("recalled")(self._recall(vectors("recall")(x), state, restarted))
        recalled = RMSNorm(name="recalled_norm", **dtypes)(recalled)

        both = jnp.stack([recalled.astype(self.dtype), x.astype(self.dtype)], axis=1)
        key, value, plain_query = vectors("key"), vectors("value"), vectors("query")(x)
        frequencies = rotary_frequencies(size, self.rope_base)
        rotated = lambda x: apply_rotary(x, slots, frequencies)
        keys = _placed(state.keys, jax.vmap(rotated, 1, 1)(key(both)), slots, at_edge)
        values = _placed(state.values, value(both), slots, at_edge)

        places = jnp.arange(self.segment)
        visible = (places <= slots[..., None]) & (places >= documents[..., None])
        flat = lambda x: x.reshape(x.shape[0], 2 * self.segment, heads, size)
        query, persistent = rotated(plain_query), None
        if self.persistent:
            learned = persistent_tokens(self, self.persistent, x.shape[-1])
            persistent = Always(key(learned), value(learned), None)
            query = jnp.concatenate([query, plain_query], axis=-1)
        mixed = plain_query
        if rows:
            mixed = softmax_attention(
                query,
                flat(keys),
                flat(values),
                jnp.tile(visible, 2)[:, None],
                persistent=persistent,
                kernel=self.kernel,
            )
        near = RMSNorm(name="attention_norm", **dtypes)(joined("out")(mixed))
        far, memory = self.memory(near, state.memory, reset, at_edge)
        gate = jax.nn.sigmoid(RMSNorm(name="memory_norm", **dtypes)(far))
        last = documents[:, -1] if rows else state.document
        state = SegmentState(memory, state.recalled, keys, values, state.slot + rows, last)
        return near * gate, state

    def _opened(self, state: SegmentState, at_edge: bool) -> SegmentState:
        """A new segment in place of a full one."""
        full = jnp.ones_like(state.slot, bool) if at_edge else state.slot == self.segment
        at = lambda x: full.reshape(-1, *[1] * (x.ndim - 1))
        recalled = jax.tree.map(
            lambda now, then: jnp.where(at(now), now, then),
            state.memory.heads.memory.weights,
            state.recalled,
        )
        emptied = lambda x: jnp.where(at(x), 0, x)
        return SegmentState(
            memory=state.memory,
            recalled=recalled,
            keys=emptied(state.keys),
            values=emptied(state.values),
            slot=emptied(state.slot),
            document=jnp.where(full, -1, state.document),
        )

    def _recall(
        self,
        queries: Float[Array, "B R H N"],
        state: SegmentState,
        restarted: Bool[Array, "B R"] | None,
    ) -> Float[Array, "B R H N"]:
        """What the memory of the segment's start gives; where restarted, what it gives at first."""
        rule = self.config.rule.memory
        queries = unit(queries).astype(self.dtype).swapaxes(1, 2)
        initial = self.memory(jnp.zeros((1, 0, self.config.width), self.dtype))[1]
        initial = jax.tree.map(lambda w: w[0], initial.heads.memory.weights)

        def one(queries, weights, initial, restarted):
            anchor = Anchor(weights, initial, restarted)
            return rule.bank.forward(anchor, queries, self.dtype)[0].values[0]

        heads = jax.vmap(one, in_axes=(0, 0, 0, None))
        found = jax.vmap(heads, in_axes=(0, 0, None, 0))(
            queries, state.recalled, initial, restarted
        )
        return found.swapaxes(1, 2)


def check_segment(config: TitansConfig, segment: int) -> None:
    """Raises a ValueError if a memory cannot be read by segments of that many tokens."""
    grid = config.rule.grid
    if segment < 1 or segment % grid:
        raise ValueError(
            f"a segment of {segment} tokens is no multiple of the memory's chunk of {grid}; make it "
            f"one, or the chunks smaller"
        )
    if config.head_width % 2:
        raise ValueError(
            f"rotary embedding turns pairs of channels, so width / num_heads must be even; got "
            f"{config.width} / {config.num_heads}"
        )


def _placed(
    held: Float[Array, "B 2 S H N"],
    rows: Float[Array, "B 2 R H N"],
    slots: Int[Array, "B R"],
    at_edge: bool,
) -> Float[Array, "B 2 S H N"]:
    """Rows in their slots; those of a new segment are its first."""
    if at_edge:
        missing = held.shape[2] - rows.shape[2]
        return jnp.pad(rows, ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0)))
    return jax.vmap(lambda held, rows, slots: held.at[:, slots].set(rows))(held, rows, slots)
