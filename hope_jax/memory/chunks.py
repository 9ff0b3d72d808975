"""Running over a sequence in chunks: full ones in a scan, the open one at its end, and any piece.

Chunks lie on a fixed grid that begins where the context began. A sequence need not fill its last
chunk, and a continued one need not begin at a chunk's edge.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from hope_jax.memory.bank import Weights
from hope_jax.memory.rule import BankState
from hope_jax.memory.triangular import INVERSE

# (state, start, tokens, prepared) -> (state, start for later tokens of the same chunk, outputs)
Chunk = Callable[[BankState, Weights, Any, Any], tuple[BankState, Weights, Any]]
# (body, carry, inputs) -> (carry, outputs), as `jax.lax.scan`
Loop = Callable[[Callable[[Any, Any], tuple[Any, Any]], Any, Any], tuple[Any, Any]]


def scan_chunks(
    chunk: Chunk,
    state: BankState,
    tokens: Any,
    size: int,
    states_every: int,
    prepare: Callable[[Any], Any] = lambda tokens: None,
    loop: Loop | None = None,
) -> tuple[Any, BankState, Weights]:
    """Applies `chunk` to consecutive chunks of a sequence that begins at a chunk's edge.

    The backward pass keeps the state of every `states_every`-th chunk and recomputes the rest.

    Args:
      chunk: `chunk(state, start, tokens, prepared) -> (state, start, outputs)`, with `start` the
        weights at the chunk's start; it returns those that later tokens of the same chunk would be
        given, which a reset changes. Called with `size` tokens, and with fewer for the open chunk
        at the end.
      state: before the first token.
      tokens: per-token inputs, a pytree of arrays of shape (T, ...).
      size: C.
      states_every: how many chunks share one kept state.
      prepare: what a chunk needs that does not depend on the state, from its tokens; computed for
        all chunks at once.
      loop: runs the full chunks, each of which then prepares itself; `None` is a scan of XLA's.

    Returns:
      Outputs of shape (T, ...), the state after the last token, and the weights at the start of the
      chunk that is open there.
    """

    def body(state, tokens, prepared):
        state, _, outputs = chunk(state, state.weights, tokens, prepared)
        return state, outputs

    start = state.weights
    length = jax.tree.leaves(tokens)[0].shape[0]
    if not length:
        one = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), tokens)
        _, shapes = jax.eval_shape(lambda state, x: body(state, x, prepare(x)), state, one)
        return jax.tree.map(lambda y: jnp.zeros((0, *y.shape[1:]), y.dtype), shapes), state, start
    count = length // size
    full = jax.tree.map(lambda x: x[: count * size].reshape(count, size, *x.shape[1:]), tokens)
    outputs = []
    if count:
        state, parts = _scan(body, prepare, state, full, states_every, loop)
        outputs.append(jax.tree.map(lambda y: y.reshape(count * size, *y.shape[2:]), parts))
        start = state.weights
    if length > count * size:
        rest = jax.tree.map(lambda x: x[count * size :], tokens)
        state, start, part = jax.checkpoint(chunk)(state, start, rest, prepare(rest))
        outputs.append(part)
    return jax.tree.map(lambda *y: jnp.concatenate(y), *outputs), state, start


def resume_chunks(
    chunk: Chunk,
    state: BankState,
    start: Weights,
    tokens: Any,
    active: Bool[Array, " T"],
    size: int,
    states_every: int,
    prepare: Callable[[Any], Any] = lambda tokens: None,
    loop: Loop | None = None,
) -> tuple[Any, BankState, Weights]:
    """Continues a sequence in the middle of a chunk; see `scan_chunks` for what is not named here.

    Args:
      chunk: as above; it must leave the state alone at places that are not active.
      state: before the first token.
      start: weights at the start of the chunk that is open.
      tokens: inputs laid on the grid by `lay_on_grid`, so their length is a multiple of `size`.
      active: False at places that hold no token.
      size: C.
      states_every: how many chunks share one kept state.
      prepare: as above.
      loop: as above.

    Returns:
      Outputs on the grid, the state after the last token, and the start of the chunk open there.
    """

    def body(carry, inputs, prepared):
        state, start = carry
        tokens, complete = inputs
        state, start, outputs = chunk(state, start, tokens, prepared)
        start = jax.tree.map(lambda new, old: jnp.where(complete, new, old), state.weights, start)
        return (state, start), outputs

    count = active.shape[0] // size
    full = jax.tree.map(lambda x: x.reshape(count, size, *x.shape[1:]), tokens)
    complete = active.reshape(count, size)[:, -1]
    (state, start), outputs = _scan(
        body,
        lambda inputs: prepare(inputs[0]),
        (state, start),
        (full, complete),
        states_every,
        loop,
    )
    outputs = jax.tree.map(lambda y: y.reshape(count * size, *y.shape[2:]), outputs)
    return outputs, state, start


def lay_on_grid(tokens: Any, position: Int[Array, ""], size: int) -> tuple[Any, Bool[Array, " P"]]:
    """Places T tokens behind `position mod size` empty places, so that chunks keep to their grid.

    Args:
      tokens: a pytree of arrays of shape (T, ...).
      position: tokens read before these.
      size: of the grid.

    Returns:
      The tokens in arrays of shape (P, ...), zero where empty, and which places hold a token.
      P is the smallest multiple of `size` that fits any position.
    """
    length = jax.tree.leaves(tokens)[0].shape[0]
    places = -(-(length + size - 1) // size) * size
    first = position % size

    def lay(x):
        empty = jnp.zeros((places, *x.shape[1:]), x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(empty, x, first, 0)

    place = jnp.arange(places)
    return jax.tree.map(lay, tokens), (place >= first) & (place < first + length)


def take_from_grid(outputs: Any, position: Int[Array, ""], size: int, length: int) -> Any:
    """Takes the outputs of the T tokens that `lay_on_grid` placed."""
    return jax.tree.map(
        lambda y: jax.lax.dynamic_slice_in_dim(y, position % size, length, 0), outputs
    )


def _scan(body, prepare, carry, inputs, states_every, loop):
    """Scans with rematerialisation, keeping the carry of every n-th step."""
    if loop is None:
        keep = jax.checkpoint_policies.save_only_these_names(INVERSE)
        step = jax.checkpoint(
            lambda carry, given: body(carry, *given), prevent_cse=False, policy=keep
        )
        inputs = inputs, jax.vmap(prepare)(inputs)
        run = functools.partial(jax.lax.scan, step)
    else:
        run = functools.partial(loop, lambda carry, inputs: body(carry, inputs, prepare(inputs)))
    count = jax.tree.leaves(inputs)[0].shape[0]
    groups = count // states_every if states_every > 1 else 0
    if groups <= 1:
        return run(carry, inputs)
    cut = groups * states_every
    grouped = jax.tree.map(lambda x: x[:cut].reshape(groups, states_every, *x.shape[1:]), inputs)
    carry, outputs = jax.lax.scan(jax.checkpoint(run, prevent_cse=False), carry, grouped)
    outputs = jax.tree.map(lambda y: y.reshape(cut, *y.shape[2:]), outputs)
    if cut == count:
        return carry, outputs
    carry, rest = run(carry, jax.tree.map(lambda x: x[cut:], inputs))
    return carry, jax.tree.map(lambda *y: jnp.concatenate(y), outputs, rest)
