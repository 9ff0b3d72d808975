"""Reading a stream chunk by chunk, in pieces of any size, with something learnt after each chunk."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree


class OpenChunk(NamedTuple):
    """The last tokens that were read: those from which nothing has been learnt yet.

    A chunk is learnt from when the token after it arrives, which for a next-token loss is its last
    target. So once something has been read, between 1 and C tokens are here.

    Attributes:
      items: what is known of each token; arrays (B, C, ...), zero beyond `filled`.
      filled: how many there are; the same for all sequences.
    """

    items: PyTree[Array]
    filled: Int[Array, ""]


Learn = Callable[[Any, Any, Any], tuple[Any, Any]]
Read = Callable[[Any, Any], tuple[Any, Any]]


def read_in_chunks(
    carry: Any,
    open_chunk: OpenChunk | None,
    items: PyTree[Array],
    size: int,
    learn: Learn,
    read: Read,
    read_next: Read,
) -> tuple[Any, OpenChunk, Any, Any]:
    """Reads tokens; after every whole chunk of the stream, wherever the calls were cut, it learns.

    Args:
      carry: what changes from chunk to chunk.
      open_chunk: what the last call returned; None starts a stream.
      items: what is known of each new token, arrays (B, T, ...).
      size: tokens in a chunk, C.
      learn: `(carry, chunk, following) -> (carry, outputs)`, from a whole chunk and the one token
        after it, (B, 1, ...). Rematerialised in the backward pass.
      read: `(carry, part) -> (outputs, end)`, of the first tokens of a chunk, C of them at most.
      read_next: the same of one token that follows the open chunk; the carry is its chunk's.

    Returns:
      The carry at the start of the open chunk; the open chunk; the outputs, (B, T, ...); and the
      `end` of the last part that was read, which holds stale tokens too where a call of more than
      one token went on from an open chunk.
    """
    tokens = jax.tree.leaves(items)[0].shape[1]
    learn = jax.checkpoint(learn, prevent_cse=False)
    if open_chunk is None:
        return _read_from_start(carry, items, tokens, size, learn, read)
    if tokens == 1:
        return _read_one_more(carry, open_chunk, items, size, learn, read_next)
    return _read_more(carry, open_chunk, items, tokens, size, learn, read)


def _read_from_start(
    carry: Any, items: PyTree[Array], tokens: int, size: int, learn: Learn, read: Read
) -> tuple[Any, OpenChunk, Any, Any]:
    chunks = max(0, tokens - 1) // size
    split = chunks * size
    done = None
    if chunks:

        def whole(x: Array) -> Array:
            return jnp.moveaxis(x[:, :split].reshape(x.shape[0], chunks, size, *x.shape[2:]), 1, 0)

        def after(x: Array) -> Array:
            return jnp.moveaxis(x[:, size : split + 1 : size, None], 1, 0)

        pairs = (jax.tree.map(whole, items), jax.tree.map(after, items))
        carry, done = jax.lax.scan(lambda carry, pair: learn(carry, *pair), carry, pairs)
    rest = jax.tree.map(lambda x: x[:, split:], items)
    outputs, end = read(carry, rest)
    if done is not None:
        joined = lambda done, rest: jnp.concatenate([_flat(done), rest], axis=1)
        outputs = jax.tree.map(joined, done, outputs)
    room = lambda x: jnp.pad(x, ((0, 0), (0, size - x.shape[1])) + ((0, 0),) * (x.ndim - 2))
    count = jnp.asarray(tokens - split, jnp.int32)
    return carry, OpenChunk(jax.tree.map(room, rest), count), outputs, end


def _read_one_more(
    carry: Any, open_chunk: OpenChunk, item: PyTree[Array], size: int, learn: Learn, read_next: Read
) -> tuple[Any, OpenChunk, Any, Any]:
    full = open_chunk.filled == size
    carry = jax.lax.cond(
        full, lambda carry: learn(carry, open_chunk.items, item)[0], lambda carry: carry, carry
    )
    place = jnp.where(full, 0, open_chunk.filled)

    def pushed(old: Array, new: Array) -> Array:
        old = jnp.where(full, jnp.zeros_like(old), old)
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), place, axis=1)

    outputs, end = read_next(carry, item)
    return carry, OpenChunk(jax.tree.map(pushed, open_chunk.items, item), place + 1), outputs, end


def _read_more(
    carry: Any,
    open_chunk: OpenChunk,
    items: PyTree[Array],
    tokens: int,
    size: int,
    learn: Learn,
    read: Read,
) -> tuple[Any, OpenChunk, Any, Any]:
    room = -(-tokens // size)  # chunks that the new tokens may complete

    def pushed(old: Array, new: Array) -> Array:
        space = jnp.zeros((old.shape[0], room * size, *old.shape[2:]), old.dtype)
        laid = jnp.concatenate([old, space], axis=1)
        return jax.lax.dynamic_update_slice_in_dim(
            laid, new.astype(old.dtype), open_chunk.filled, axis=1
        )

    laid = jax.tree.map(pushed, open_chunk.items, items)

    def part(start: Array, length: int) -> PyTree[Array]:
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, length, axis=1)
        return jax.tree.map(cut, laid)

    total = open_chunk.filled + tokens
    last = jnp.maximum(total - 1, 0) // size  # the chunk that stays open
    shapes, _ = jax.eval_shape(read, carry, part(total, size))
    blank = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def step(carry: Any, index: Array) -> tuple[Any, Any]:
        start = index * size
        whole = lambda carry: learn(carry, part(start, size), part(start + size, 1))
        return jax.lax.cond(index < last, whole, lambda carry: (carry, blank), carry)

    carry, done = jax.lax.scan(step, carry, jnp.arange(room))
    open_items = part(last * size, size)
    outputs, end = read(carry, open_items)

    def joined(done: Array, rest: Array) -> Array:
        flat = jnp.concatenate([_flat(done), jnp.zeros_like(rest)], axis=1)
        flat = jax.lax.dynamic_update_slice_in_dim(flat, rest, last * size, axis=1)
        return jax.lax.dynamic_slice_in_dim(flat, open_chunk.filled, tokens, axis=1)

    outputs = (
        jax.tree.map(joined, done, outputs)
        if room
        else jax.tree.map(lambda rest: rest[:, :0], outputs)
    )
    return carry, OpenChunk(open_items, total - last * size), outputs, end


def _flat(chunks: Array) -> Array:
    """(n, B, C, ...) to (B, n C, ...)."""
    chunks = jnp.moveaxis(chunks, 0, 1)
    return chunks.reshape(chunks.shape[0], -1, *chunks.shape[3:])
