"""Causal softmax attention over a sliding window, with a ring-buffer cache."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from hope_jax.layers.projection import Projection
from hope_jax.layers.rotary import RotaryScaling, apply_rotary, rotary_frequencies

Kernel = Literal["xla", "cudnn"]


class Sinks(NamedTuple):
    """First tokens of a document.

    Attributes:
      keys: rotated as if the document began at 0.
      values: their values.
    """

    keys: Float[Array, "*B S K N"]
    values: Float[Array, "*B S K N"]


class StackedRing(NamedTuple):
    """The ring of one layer, where it lies among those of others.

    Attributes:
      rings: of all of them.
      layer: whose it is.
    """

    rings: Float[Array, "L B K W N"]
    layer: Int[Array, ""]


class AttentionState(NamedTuple):
    """What a window of attention carries from one call to the next.

    The token at position `p` lies in slot `p mod W` of the ring. Slots lie within heads, so that the
    products of one query with all of them read the ring as it lies in memory.

    Attributes:
      ring_keys: rotated keys of the last W tokens.
      ring_values: their values.
      position: number of tokens read so far, which is the next token's position.
      document: position of the first token of the current document.
      sinks: the first S tokens of the document, as far as they are read; `()` for a layer without.
    """

    ring_keys: Float[Array, "B K W N"]
    ring_values: Float[Array, "B K W N"]
    position: Int[Array, " B"]
    document: Int[Array, " B"]
    sinks: Sinks | tuple[()] = ()


class Attention(nn.Module):
    """Multi-head attention to the last `window` tokens of the same document, itself included.

    Positions are rotary and absolute, so scores depend on distances only, and a document that
    starts at position 100,000 is read as one that starts at 0.

    Attributes:
      num_heads: heads of the queries; they share the width of the input equally.
      num_kv_heads: heads of keys and values, each for as many neighbouring heads of queries; None
        for `num_heads`.
      window: tokens that a query sees, and slots of the cache.
      rope_base: base of the rotary frequencies.
      rope_scaling: how they are lowered, if at all.
      persistent: learned tokens that every query sees beside the window (the persistent memory of
        Titans). They have no position: their keys are not rotated, and no distance counts.
      sinks: first tokens of its document that a query goes on to see when the window has left them
        behind, at the distance of the window's end. A model that was trained to see all of a text
        leans on them: softmax has to look somewhere. Not beside persistent tokens, which are learned
        for the same end.
      kernel: implementation of `jax.nn.dot_product_attention`; `cudnn` is the fused one of NVIDIA
        GPUs, which wants a dtype of 16 bits. None leaves the choice to JAX.
      dtype: dtype of the computation; the softmax is formed in float32.
      param_dtype: dtype of the parameters.
    """

    num_heads: int
    window: int
    num_kv_heads: int | None = None
    rope_base: float = 10_000.0
    rope_scaling: RotaryScaling | None = None
    persistent: int = 0
    sinks: int = 0
    kernel: Kernel | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: AttentionState | None = None,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], AttentionState]:
        """Reads any number of tokens, from a fresh context or on from `state`.

        Args:
          x: input tokens.
          state: what an earlier call returned; None starts a context.
          reset: True where a token starts a new document.

        Returns:
          Output of the shape of `x`, and the state after the last token.
        """
        batch, tokens, width = x.shape
        if width % self.num_heads or (width // self.num_heads) % 2:
            raise ValueError(
                f"attention needs heads of equal, even width (rotary embedding turns pairs of "
                f"channels): width {width} does not split so into {self.num_heads} heads; "
                f"change width or num_heads"
            )
        head_dim = width // self.num_heads
        kv_heads = self.num_kv_heads or self.num_heads
        if self.num_heads % kv_heads:
            raise ValueError(
                f"num_kv_heads {kv_heads} must divide num_heads {self.num_heads}, so that each is "
                f"shared by equally many"
            )
        if self.sinks and self.persistent:
            raise ValueError(
                f"sinks={self.sinks} and persistent={self.persistent} serve the same end; set one of "
                f"them to 0"
            )
        project = {
            name: Projection(
                (heads, head_dim),
                ("embed", "heads", "head_dim"),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )
            for name, heads in (("query", self.num_heads), ("key", kv_heads), ("value", kv_heads))
        }
        plain_query, plain_key, value = (projection(x) for projection in project.values())

        fresh = state is None
        if state is None:
            state = _empty_state(batch, self.window, self.sinks, value)
        positions = state.position[:, None] + jnp.arange(tokens, dtype=jnp.int32)
        documents = document_starts(state.document, positions, reset)
        frequencies = rotary_frequencies(head_dim, self.rope_base, self.rope_scaling)
        query = apply_rotary(plain_query, positions, frequencies)
        key = apply_rotary(plain_key, positions, frequencies)
        after = _remember(state, key, value, positions, documents)

        persistent: Always | None = None
        sinks_of: Callable[[Array], Sinks] | None = None
        if self.sinks and tokens:
            turn = functools.partial(apply_rotary, frequencies=frequencies)
            sinks_of = functools.partial(_sinks_of, state, plain_key, value, turn)
            keys, values = sinks_of(after.document[:, None])
            after = after._replace(sinks=Sinks(keys[:, 0], values[:, 0]))
        attend = functools.partial(softmax_attention, kernel=self.kernel)
        whole = fresh and tokens <= self.window  # so that no window leaves anything behind
        if sinks_of is not None and not whole:
            furthest = self.window + self.sinks - 1
            from_first = turn(plain_query, jnp.minimum(positions - documents, furthest))
            query = jnp.concatenate([query, from_first], axis=-1)
        elif self.persistent:
            learned = persistent_tokens(self, self.persistent, width)
            persistent = Always(project["key"](learned), project["value"](learned), None)
            query = jnp.concatenate([query, plain_query], axis=-1)
        if tokens == 0:
            mixed = plain_query
        elif whole:
            same_document = None
            if reset is not None:
                same_document = positions[:, None, None, :] >= documents[:, None, :, None]
            mixed = attend(query, key, value, same_document, persistent=persistent, is_causal=True)
        elif tokens == 1:
            if isinstance(after.sinks, Sinks):
                behind = _behind_window(positions, documents, after.document, self)
                persistent = Always(*after.sinks, behind)
            mixed = _attend_to_ring(query, after, persistent)
        else:
            mixed = _attend_to_window(
                self, attend, query, key, value, positions, documents, state, persistent, sinks_of
            )

        y = Projection(
            (width,),
            ("heads", "head_dim", "embed"),
            axes=2,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="out",
        )(mixed)
        return y, after


def _empty_state(
    batch: int, window: int, sinks: int, value: Float[Array, "B T K N"]
) -> AttentionState:
    # An array for each field, so that a state can be donated.
    heads, size = value.shape[2:]
    ring = lambda: jnp.zeros((batch, heads, window, size), value.dtype)
    room = lambda: jnp.zeros((batch, sinks, heads, size), value.dtype)
    count = lambda: jnp.zeros((batch,), jnp.int32)
    first = Sinks(room(), room()) if sinks else ()
    return AttentionState(ring(), ring(), count(), count(), first)


def _held(position: Int[Array, " B"], window: int) -> Int[Array, "B W"]:
    """Position of the token in each slot, the last below `position` that is the slot's number modulo W.

    It is negative where none was written.
    """
    last = position[:, None] - 1
    return last - (last - jnp.arange(window)) % window


def document_starts(
    carried: Int[Array, " B"], positions: Int[Array, "B T"], reset: Bool[Array, "B T"] | None
) -> Int[Array, "B T"]:
    """Position of the first token of every token's document."""
    if reset is None:
        return jnp.broadcast_to(carried[:, None], positions.shape)
    starts = jnp.where(reset, positions, carried[:, None])
    return jax.lax.cummax(starts, axis=1)


def _sinks_of(
    state: AttentionState,
    plain_key: Float[Array, "B T K N"],
    value: Float[Array, "B T K N"],
    turn: Callable[[Array, Array], Array],
    documents: Int[Array, "B C"],
) -> Sinks:
    """First tokens of documents, (B, C, S, K, N), each of this call or the one carried into it.

    Those that are not read yet are no token's.

    Args:
      state: before this call.
      plain_key: keys of this call, not rotated.
      value: its values.
      turn: rotates heads by positions.
      documents: positions of the documents' first tokens.
    """
    assert isinstance(state.sinks, Sinks)
    carried, tokens = state.sinks, plain_key.shape[1]
    behind = jnp.arange(carried.keys.shape[1])
    place = documents[..., None] + behind - state.position[:, None, None]
    rows = jnp.arange(place.shape[0])[:, None, None]
    keys, values = (x[rows, jnp.clip(place, 0, tokens - 1)] for x in (plain_key, value))
    flat = keys.reshape(-1, *keys.shape[2:])
    keys = turn(flat, jnp.broadcast_to(behind, flat.shape[:2])).reshape(keys.shape)
    own = (place >= 0)[..., None, None]
    pairs = zip((keys, values), carried, strict=True)
    return Sinks(*(jnp.where(own, here, before[:, None]) for here, before in pairs))


def _behind_window(
    positions: Int[Array, "B T"],
    documents: Int[Array, "B T"],
    document: Int[Array, " B"],
    layer: Attention,
) -> Bool[Array, "B 1 T S"]:
    """Whether a query's window has left each of a document's first tokens behind; not of another's."""
    first = document[:, None] + jnp.arange(layer.sinks)
    far = positions[:, :, None] - first[:, None] >= layer.window
    return (far & (documents == document[:, None])[..., None])[:, None]


def persistent_tokens(module: nn.Module, count: int, width: int) -> Float[Array, "P D"]:
    """The parameter of that name of a compact module: learned rows that every query sees."""
    init: Callable[..., Any] = nn.with_logical_partitioning(
        nn.initializers.normal(1.0), ("persistent", "embed")
    )
    return module.param("persistent", init, (count, width), module.param_dtype)


class Always(NamedTuple):
    """Rows that queries see wherever they stand.

    Attributes:
      keys: of which the second half of a query of twice the width makes scores; the same for all
        sequences, or of each.
      values: likewise.
      visible: which queries see them; None for all.
    """

    keys: Float[Array, "*B P K N"]
    values: Float[Array, "*B P K N"]
    visible: Bool[Array, "B 1 T P"] | None


def softmax_attention(
    query: Float[Array, "B T H Q"],
    key: Float[Array, "B S K N"],
    value: Float[Array, "B S K N"],
    mask: Bool[Array, " B #H T S"] | None,
    *,
    persistent: Always | None = None,
    is_causal: bool = False,
    kernel: Kernel | None = None,
) -> Float[Array, "B T H N"]:
    """JAX's fused attention, with rows beside that every query sees wherever it stands.

    A score with a key is of rotated vectors, one with a row that is always there of others. Vectors of
    twice the width, of which either half of every key is zero, give both in one softmax.

    Args:
      query: rotated queries; with such rows, these and those that they are compared with, Q = 2 N.
      key: rotated keys, in as many heads or fewer.
      value: values.
      mask: True where a query sees a key; None for everywhere.
      persistent: the rows that are always there.
      is_causal: whether a query sees only the keys up to its own place.
      kernel: of `jax.nn.dot_product_attention`.
    """
    size, options = key.shape[-1], {}
    if persistent is not None:
        options["scale"] = size**-0.5  # what JAX takes from the width of the vectors
        if is_causal:
            causal = jnp.tril(jnp.ones((query.shape[1], key.shape[1]), bool))[None, None]
            mask, is_causal = causal if mask is None else mask & causal, False
        keys, values, visible = persistent
        if mask is not None and visible is None:
            added = ((0, 0), (0, 0), (0, 0), (0, keys.shape[-3]))
            mask = jnp.pad(mask, added, constant_values=True)
        elif mask is not None:
            mask = jnp.concatenate([mask, visible], axis=-1)

        def beside(rows: Array, always: Array, half: tuple[int, int]) -> Array:
            rows = jnp.pad(rows, ((0, 0), (0, 0), (0, 0), (0, size)))
            always = jnp.pad(always, ((0, 0),) * (always.ndim - 1) + (half,)).astype(rows.dtype)
            always = jnp.broadcast_to(always, (rows.shape[0], *always.shape[-3:]))
            return jnp.concatenate([rows, always], axis=1)

        key = beside(key, keys, (size, 0))
        value = beside(value, values, (0, size))
    mixed = jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=mask,
        is_causal=is_causal,
        implementation=kernel,
        **options,
    )
    return mixed[..., :size]


def layer_of(states: Any, layer: Int[Array, ""]) -> Any:
    """The state of one of several layers, for reading one token.

    Args:
      states: of all of them, any tree; its arrays are stacked on axis 0.
      layer: which.

    Returns:
      The tree of one; rings of attention are not taken out, since that copies them.
    """

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, AttentionState):
            return leaf[layer]
        keys, values, *rest = leaf
        rings: list[Any] = [StackedRing(ring, layer) for ring in (keys, values)]
        return AttentionState(*rings, *jax.tree.map(lambda x: x[layer], rest))

    return jax.tree.map(one, states, is_leaf=lambda x: isinstance(x, AttentionState))


def with_layer(states: Any, state: Any, layer: Int[Array, ""]) -> Any:
    """States of several layers, with what became of one that `layer_of` has taken from them."""

    def put(old: Any, new: Any) -> Any:
        if isinstance(new, StackedRing):
            return new.rings
        return jax.lax.dynamic_update_index_in_dim(old, new, layer, 0)

    return jax.tree.map(put, states, state, is_leaf=lambda x: isinstance(x, StackedRing))


def _attend_to_ring(
    query: Float[Array, "B 1 H Q"], state: AttentionState, persistent: Always | None
) -> Float[Array, "B 1 H N"]:
    """Attention of the last token, which the ring holds.

    What `softmax_attention` makes, which however would bring the whole ring into another order first,
    and copy it to put other rows beside it.

    Args:
      query: of the token; with rows beside the ring Q = 2 N, and its second half is compared with them.
      state: after the token.
      persistent: rows that are seen as well.
    """
    ring, ring_values = (_own(ring) for ring in (state.ring_keys, state.ring_values))
    rows, heads, window, size = ring.shape
    held = _held(state.position, window)
    queries = query.reshape(rows, heads, -1, query.shape[-1])
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bkgn,bkwn->bkgw", queries[..., :size], ring, preferred_element_type=wide)
    seen = jnp.broadcast_to((held >= state.document[:, None])[:, None, None], scores.shape)
    if persistent is not None:
        always = [jnp.broadcast_to(x, (rows, *x.shape[-3:])) for x in persistent[:2]]
        keys, values = (x.astype(ring.dtype) for x in always)
        beside = jnp.einsum(
            "bkgn,bpkn->bkgp", queries[..., size:], keys, preferred_element_type=wide
        )
        visible = True if persistent.visible is None else persistent.visible
        seen = jnp.concatenate([seen, jnp.broadcast_to(visible, beside.shape)], axis=-1)
        scores = jnp.concatenate([scores, beside], axis=-1)
    scores = jnp.where(seen, scores * size**-0.5, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(ring.dtype)
    mixed = jnp.einsum("bkgw,bkwn->bkgn", weights[..., :window], ring_values)
    if persistent is not None:
        mixed += jnp.einsum("bkgp,bpkn->bkgn", weights[..., window:], values)
    return mixed.reshape(*query.shape[:-1], size)


def _attend_to_window(
    layer: Attention,
    attend: Callable[..., Any],
    query: Float[Array, "B T H Q"],
    key: Float[Array, "B T K N"],
    value: Float[Array, "B T K N"],
    positions: Int[Array, "B T"],
    documents: Int[Array, "B T"],
    state: AttentionState,
    persistent: Always | None,
    sinks_of: Callable[[Array], Sinks] | None,
) -> Float[Array, "B T H N"]:
    """Attention in pieces of at most a window: a piece sees itself and the W tokens before it.

    The pieces are a batch axis and no score outside the band of two windows is formed. Before the
    first piece lies the cache; the order of its slots does not matter, since masks go by position.
    First tokens that a window leaves behind within a piece lie before it, in the document that its
    first query belongs to.
    """
    batch, tokens = positions.shape
    window = state.ring_keys.shape[2]
    size = min(tokens, window)
    count = -(-tokens // size)
    held = _held(state.position, window)

    def pieces(x: Array) -> Array:
        padding = ((0, 0), (0, count * size - tokens)) + ((0, 0),) * (x.ndim - 2)
        x = jnp.pad(x, padding, constant_values=-1)  # as a position: before every document
        return x.reshape(batch, count, size, *x.shape[2:])

    def with_previous(cached: Array, x: Array) -> Array:
        own = pieces(x)
        previous = cached[:, None]
        if count > 1:
            previous = jnp.concatenate([previous, own[:, :-1]], axis=1)
        joined = jnp.concatenate([previous, own], axis=2)
        return joined.reshape(batch * count, *joined.shape[2:])

    def flat(x: Array) -> Array:
        return pieces(x).reshape(batch * count, size, *x.shape[2:])

    query_position = flat(positions)[:, None, :, None]
    key_position = with_previous(held, positions)[:, None, None, :]
    visible = (
        (key_position <= query_position)
        & (key_position > query_position - window)
        & (key_position >= flat(documents)[:, None, :, None])
    )
    if sinks_of is not None:
        first = documents[:, ::size]
        keys, values = (x.reshape(batch * count, *x.shape[2:]) for x in sinks_of(first))
        behind = _behind_window(flat(positions), flat(documents), first.reshape(-1), layer)
        persistent = Always(keys, values, behind)
    mixed = attend(
        flat(query),
        with_previous(jnp.swapaxes(state.ring_keys, 1, 2), key),
        with_previous(jnp.swapaxes(state.ring_values, 1, 2), value),
        visible,
        persistent=persistent,
    )
    return mixed.reshape(batch, count * size, *mixed.shape[2:])[:, :tokens]


def _remember(
    state: AttentionState,
    key: Float[Array, "B T K N"],
    value: Float[Array, "B T K N"],
    positions: Int[Array, "B T"],
    documents: Int[Array, "B T"],
) -> AttentionState:
    """Writes the last W tokens into the ring; one into a `StackedRing`, too."""
    tokens = positions.shape[1]
    if tokens == 0:
        return state
    after = state._replace(position=positions[:, -1] + 1, document=documents[:, -1])
    if tokens == 1:
        put = functools.partial(_written, position=state.position)
        return after._replace(
            ring_keys=put(state.ring_keys, key[:, 0]),
            ring_values=put(state.ring_values, value[:, 0]),
        )
    window = state.ring_keys.shape[2]
    kept = slice(max(0, tokens - window), None)
    slots = positions[:, kept] % window
    # By row, which says that no row writes into another's: where both rows and heads are spread over
    # devices, the compiler's partitioner fails otherwise.
    put_all = jax.vmap(lambda ring, slots, new: ring.at[:, slots].set(new, unique_indices=True))
    return after._replace(
        ring_keys=put_all(state.ring_keys, slots, jnp.swapaxes(key[:, kept], 1, 2)),
        ring_values=put_all(state.ring_values, slots, jnp.swapaxes(value[:, kept], 1, 2)),
    )


def _own(ring: Any) -> Float[Array, "B K W N"]:
    """A ring, taken out from those of other layers if it lies among them."""
    if not isinstance(ring, StackedRing):
        return ring
    return jax.lax.dynamic_index_in_dim(ring.rings, ring.layer, keepdims=False)


def _written(ring: Any, new: Float[Array, "B K N"], position: Int[Array, " B"]) -> Any:
    """A ring after one token, whose position is given; XLA writes it in place."""
    if not isinstance(ring, StackedRing):
        return _written(StackedRing(ring[None], jnp.zeros((), jnp.int32)), new, position).rings[0]
    slot = (position % ring.rings.shape[3])[:, None]
    place = jnp.stack(jnp.broadcast_arrays(ring.layer, slot.astype(jnp.int32)), axis=-1)
    dimensions = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(2,),
        inserted_window_dims=(0, 3),
        scatter_dims_to_operand_dims=(0, 3),
        # By row and head, which says that none writes into another's.
        operand_batching_dims=(1, 2),
        scatter_indices_batching_dims=(0, 1),
    )
    rings = jax.lax.scatter(
        ring.rings,
        jnp.broadcast_to(place, (*new.shape[:2], 2)),
        new.astype(ring.rings.dtype),
        dimensions,
        unique_indices=True,
        mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    return StackedRing(rings, ring.layer)
