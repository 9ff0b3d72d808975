"""A memory as a layer of one's own: make its state, update it, read it.

Everything here is for one head of one sequence; `jax.vmap` makes it any number of heads and
sequences, each with a memory of its own.

    >>> import jax, jax.numpy as jnp
    >>> rule = MemoryRule(momentum=False, chunk_size=4)
    >>> initial = rule.bank.init(jax.random.key(0), width=8)
    >>> keys, values = jax.random.normal(jax.random.key(1), (2, 10, 8)) / 8**0.5
    >>> gates = Gates(eta=jnp.full(10, 0.5), log_alpha=jnp.zeros(10), beta=jnp.full(10, 0.5))
    >>> state = update(rule, initial, init_state(rule, initial), keys, values, gates)
    >>> read(rule, state, keys).shape
    (10, 8)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hope_jax.memory.bank import Anchor, Weights
from hope_jax.memory.chunks import lay_on_grid, resume_chunks, scan_chunks, take_from_grid
from hope_jax.memory.gates import ChunkDecay, Gates, chunk_decay, windowed_decay
from hope_jax.memory.kernels.choice import chosen_loop
from hope_jax.memory.linear_map import Projection, Reading, prepare_projection, prepare_reading
from hope_jax.memory.rule import (
    BankState,
    MemoryRule,
    Recent,
    end_bank_chunk,
    evaluate,
    initial_state,
    read_bank_chunk,
    window_rows,
    write_bank_chunk,
    write_bank_token,
    write_rows,
)


class MemoryState(NamedTuple):
    """State of one memory in the middle of a sequence.

    Attributes:
      bank: what has been learned up to the last token.
      start: weights at the start of the chunk that is open, where local errors are taken.
      position: number of tokens read, modulo the chunk size, int32.
    """

    bank: BankState
    start: Weights
    position: Int[Array, ""]


class Tokens(NamedTuple):
    """What a memory is given at every token.

    Attributes:
      keys: k, shape (T, N), normally of unit length. Their dtype is that of the large products.
      values: v, shape (T, N).
      gates: eta, alpha, beta, theta, each (T,), at least float32.
      queries: q, shape (T, N); `None` to write only.
      reset: True where a token begins a new document, shape (T,); `None` for one document.
    """

    keys: Float[Array, "T N"]
    values: Float[Array, "T N"]
    gates: Gates
    queries: Float[Array, "T N"] | None = None
    reset: Bool[Array, " T"] | None = None


class Prepared(NamedTuple):
    """What a chunk needs that does not depend on the state.

    Attributes:
      decay: products of gates.
      projection: of the rows that are written along; `None` without projector.
      reading: of the queries on the keys; `None` without queries, when a chunk reads its start, and
        where it depends on the state after all.
      recent: with a window, which W - 1 of the tokens before the chunk and its own are the last ones,
        and whether they belong to the document that is open; else `None`.
      active: False where a place of the chunk holds no token; `None` if all do.
    """

    decay: ChunkDecay
    projection: Projection | None
    reading: Reading | None
    recent: tuple[Int[Array, " W"], Bool[Array, " W"]] | None
    active: Bool[Array, " C"] | None


def init_state(rule: MemoryRule, initial: Weights) -> MemoryState:
    """Makes the state of a memory that has read nothing.

    Args:
      rule: how the memory learns.
      initial: its initial weights, from `rule.bank.init`; an ordinary trainable parameter.

    Returns:
      A `MemoryState`. Its arrays are its own, so that it can be donated to a compiled function.
    """
    state = MemoryState(initial_state(rule, initial), initial, jnp.zeros((), jnp.int32))
    return jax.tree.map(jnp.copy, state)


def update(
    rule: MemoryRule,
    initial: Weights,
    state: MemoryState,
    keys: Float[Array, "T N"],
    values: Float[Array, "T N"],
    gates: Gates,
    reset: Bool[Array, " T"] | None = None,
) -> MemoryState:
    """Writes T tokens to a memory, in parallel inside each chunk, from wherever the state is.

    Args:
      rule: how the memory learns.
      initial: its initial weights.
      state: from `init_state` or an earlier update.
      keys: k, shape (T, N).
      values: v, shape (T, N).
      gates: each (T,).
      reset: True where a token begins a new document, shape (T,).

    Returns:
      The state after the last token.
    """
    return update_and_read(rule, initial, Tokens(keys, values, gates, None, reset), state)[1]


def read(rule: MemoryRule, state: MemoryState, queries: Float[Array, "R N"]) -> Float[Array, "R N"]:
    """Reads a memory as it is now, `M(q)`, without writing.

    Args:
      rule: how the memory learns; only its network matters here.
      state: of the memory.
      queries: q, shape (R, N).

    Returns:
      M(q), shape (R, N), at least float32.
    """
    return rule.bank.forward(Anchor(state.bank.weights), queries, queries.dtype)[0].values[0]


def update_and_read(
    rule: MemoryRule, initial: Weights, tokens: Tokens, state: MemoryState | None = None
) -> tuple[Float[Array, "T N"] | None, MemoryState]:
    """Writes T tokens and reads, at each, the state that `rule.read` names.

    Args:
      rule: how the memory learns.
      initial: its initial weights.
      tokens: keys, values, gates, and queries to read with.
      state: to continue from; `None` begins a context, and is the faster call.

    Returns:
      What was read, shape (T, N) (`None` without queries), and the state after the last token.

    Raises:
      ValueError: if the tokens do not fit the rule.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> rule = MemoryRule(momentum=False)
      >>> initial = rule.bank.init(jax.random.key(0), width=8)
      >>> keys = jax.random.normal(jax.random.key(1), (5, 8))
      >>> gates = Gates(eta=jnp.ones(5), log_alpha=jnp.zeros(5), beta=jnp.ones(5))
      >>> out, state = update_and_read(rule, initial, Tokens(keys, keys, gates, queries=keys))
      >>> out.shape, int(state.position)
      ((5, 8), 5)
    """
    check_tokens(rule, tokens)
    length = tokens.keys.shape[0]
    if state is None or not length:
        old = init_state(rule, initial) if state is None else state
        out, bank, start = scan_memory(rule, initial, old.bank, tokens)
        # At a chunk's edge these are the weights of the bank; no state holds one array twice.
        start = jax.tree.map(jnp.copy, start) if length else old.start
        return out, MemoryState(bank, start, (old.position + length) % rule.chunk_size)
    grid, active = lay_on_grid(tokens, state.position, rule.chunk_size)
    out, bank, start = resume_memory(rule, initial, state.bank, state.start, grid, active)
    out = take_from_grid(out, state.position, rule.chunk_size, length)
    return out, MemoryState(bank, start, (state.position + length) % rule.chunk_size)


def scan_memory(
    rule: MemoryRule, initial: Weights, state: BankState, tokens: Tokens
) -> tuple[Float[Array, "T N"] | None, BankState, Weights]:
    """Writes and reads tokens that begin at a chunk's edge; what runs the chunks is `rule.form`.

    Args:
      rule: how the memory learns.
      initial: its initial weights.
      state: before the first token.
      tokens: keys, values, gates, and queries to read with.

    Returns:
      What was read, the state after the last token, and the weights at the start of the chunk that is
      open there.
    """
    return scan_chunks(
        functools.partial(memory_chunk, rule, initial),
        state,
        tokens,
        rule.chunk_size,
        rule.states_every,
        functools.partial(prepare_chunk, rule),
        chosen_loop(rule, initial, tokens.keys.dtype),
    )


def resume_memory(
    rule: MemoryRule,
    initial: Weights,
    state: BankState,
    start: Weights,
    tokens: Tokens,
    active: Bool[Array, " P"],
) -> tuple[Float[Array, "P N"] | None, BankState, Weights]:
    """As `scan_memory`, from the middle of a chunk: see `resume_chunks`.

    Args:
      rule: how the memory learns.
      initial: its initial weights.
      state: before the first token.
      start: weights at the start of the chunk that is open.
      tokens: laid on the grid of chunks.
      active: False at places that hold no token.

    Returns:
      What was read, on the grid; the state; and the start of the chunk open there.
    """
    return resume_chunks(
        lambda state, start, given, prepared: memory_chunk(
            rule, initial, state, start, given[0], prepared
        ),
        state,
        start,
        (tokens, active),
        active,
        rule.chunk_size,
        rule.states_every,
        lambda given: prepare_chunk(rule, *given),
        chosen_loop(rule, initial, tokens.keys.dtype),
    )


def update_and_read_by_token(
    rule: MemoryRule, initial: Weights, tokens: Tokens, state: MemoryState | None = None
) -> tuple[Float[Array, "T N"] | None, MemoryState]:
    """The token-by-token form of `update_and_read`: slower, obvious, and equal to rounding."""
    check_tokens(rule, tokens)

    state, out = jax.lax.scan(
        lambda state, token: token_step(rule, initial, state, token)[::-1],
        init_state(rule, initial) if state is None else state,
        tokens,
    )
    return out, state


def token_step(
    rule: MemoryRule, initial: Weights, state: MemoryState, token: Tokens
) -> tuple[Float[Array, " N"] | None, MemoryState]:
    """Writes and reads one token: the recurrence, and the step of streaming decode.

    Args:
      rule: how the memory learns.
      initial: its initial weights.
      state: before the token.
      token: one row of `Tokens`, without the leading axis.

    Returns:
      What was read, shape (N,), and the state after the token.
    """
    bank, start = state.bank, state.start
    if token.reset is not None:
        fresh = initial_state(rule, initial)
        bank, start = jax.tree.map(
            lambda new, old: jnp.where(token.reset, new, old), (fresh, initial), (bank, start)
        )
    gates = token.gates
    row = jax.tree.map(lambda x: x[None], token)
    keys, values, gamma = _written(rule, bank, row)
    anchor = Anchor(start)
    given = evaluate(rule, anchor, keys, values)
    step = row.gates.eta if gamma is None else gates.eta * gamma
    writes = write_rows(rule, anchor, given, step, row.gates)
    theta = None if gates.log_theta is None else jnp.exp(gates.log_theta)
    new = write_bank_token(
        rule, bank, keys, given.hidden, writes, jnp.exp(gates.log_alpha), gates.beta, theta, initial
    )
    if rule.window > 1:
        last = jnp.arange(1, rule.window), jnp.ones(rule.window - 1, bool)
        new = new._replace(recent=_recent(bank.recent, row, last))
    out = None
    if token.queries is not None:
        seen = {"before": bank.weights, "after": new.weights, "chunk": start}[rule.read]
        out = rule.bank.forward(Anchor(seen), row.queries, token.keys.dtype)[0].values[0, 0]
    position = (state.position + 1) % rule.chunk_size
    start = jax.tree.map(lambda a, b: jnp.where(position == 0, a, b), new.weights, start)
    return out, MemoryState(new, start, position)


def prepare_chunk(
    rule: MemoryRule, tokens: Tokens, active: Bool[Array, " C"] | None = None
) -> Prepared:
    """Computes what a chunk needs from its tokens alone: products of gates, and the projector."""
    gates, dtype = tokens.gates, tokens.keys.dtype
    decay = chunk_decay(gates.log_alpha, gates.log_theta, tokens.reset, active, dtype)
    projection, reading, recent = None, None, None
    if rule.projects_first:
        along = tokens.values if rule.projector == "values" else tokens.keys
        projection = prepare_projection(along, gates.beta, decay, dtype)
    if rule.window > 1:
        recent = _last_tokens(rule.window - 1, tokens.keys.shape[0], tokens.reset, active)
    elif tokens.queries is not None and rule.read != "chunk" and rule.projector != "values":
        rows = _rows_read(rule, decay)
        reading = prepare_reading(tokens.queries, tokens.keys, projection, rows)
    return Prepared(decay, projection, reading, recent, active)


def memory_chunk(
    rule: MemoryRule,
    initial: Weights,
    state: BankState,
    start: Weights,
    tokens: Tokens,
    prepared: Prepared,
) -> tuple[BankState, Weights, Float[Array, "C N"] | None]:
    """Writes and reads one chunk of a single memory in parallel.

    Args:
      rule: how the memory learns.
      initial: its initial weights.
      state: before the chunk's first token.
      start: weights at which the chunk's local errors are taken.
      tokens: of the chunk.
      prepared: from `prepare_chunk`.

    Returns:
      The state after the chunk, the weights at which later tokens of the same chunk would take their
      errors, and what the queries read.
    """
    decay, dtype = prepared.decay, tokens.keys.dtype
    anchor = Anchor(start, None if decay.restarted is None else initial, decay.restarted)
    keys, values, gamma = _written(rule, state, tokens)
    gates, written_at = tokens.gates, anchor
    if rule.window > 1 and decay.restarted is not None:
        # No row from before the chunk is written by a token after a reset in it.
        written_at = anchor._replace(restarted=jnp.pad(decay.restarted, (rule.window - 1, 0)))
    given = evaluate(rule, written_at, keys, values)
    if gamma is None:
        writes = write_rows(rule, written_at, given, gates.eta, gates)
    else:
        steps = gates.eta[:, None] * gamma
        writes, steps = window_rows(rule, written_at, given, steps, gates)
        decay = windowed_decay(decay, steps, tokens.reset, prepared.active)
    update = write_bank_chunk(
        rule,
        state,
        keys,
        given.hidden,
        writes,
        gates.beta,
        decay,
        prepared.projection,
        initial,
    )
    out = None
    if tokens.queries is not None:
        if rule.read == "chunk":
            out = rule.bank.forward(anchor, tokens.queries, dtype)[0].values[0]
        else:
            rows, reading = _rows_read(rule, decay), prepared.reading
            if rule.window > 1:
                reading = prepare_reading(tokens.queries, keys, None, rows)
            out = read_bank_chunk(rule, update, tokens.queries, reading, rows, initial)[0]
    end = end_bank_chunk(rule, update, decay, initial, dtype)
    if rule.window > 1:
        end = end._replace(recent=_recent(state.recent, tokens, prepared.recent))
    return end, restarted_start(start, initial, decay), out


def restarted_start(start: Weights, initial: Weights, decay: ChunkDecay) -> Weights:
    """The weights at which later tokens of the same chunk take their errors."""
    if decay.restarted is None:
        return start
    return jax.tree.map(lambda a, b: jnp.where(decay.restarted[-1], a, b), initial, start)


def check_tokens(rule: MemoryRule, tokens: Tokens) -> None:
    """Raises a ValueError that says how tokens and rule do not fit."""
    if (rule.bank.num_values, rule.bank.num_gates) != (1, 0):
        raise ValueError(
            f"These functions drive one value memory, but the bank has {rule.bank.num_values} value "
            f"and {rule.bank.num_gates} gate memories; use Bank(num_values=1, num_gates=0)."
        )
    if tokens.keys.shape != tokens.values.shape or tokens.keys.ndim != 2:
        raise ValueError(
            f"keys {tokens.keys.shape} and values {tokens.values.shape} must both have shape (T, N); "
            "use jax.vmap for batch and heads."
        )
    gates = tokens.gates
    if (gates.log_theta is not None) != rule.momentum:
        raise ValueError(
            f"The rule has momentum={rule.momentum}, but Gates.log_theta is "
            f"{'missing' if gates.log_theta is None else 'given'}; set both or neither."
        )
    if (gates.beta is None) != (rule.projector == "none"):
        raise ValueError(
            f"The rule has projector={rule.projector!r}, but Gates.beta is "
            f"{'missing' if gates.beta is None else 'given'}; give beta (eta for DGD) exactly when "
            "the rule has a projector."
        )
    if (gates.gamma is None) != (rule.window == 1):
        raise ValueError(
            f"The rule has window={rule.window}, but Gates.gamma is "
            f"{'missing' if gates.gamma is None else 'given'}; give it exactly when window is above 1."
        )


def _rows_read(rule, decay):
    return decay.before if rule.read == "before" else decay.after


def _written(rule, state, tokens):
    """Rows whose errors are written: keys, what they should give, and with a window gamma of each."""
    keys, values = tokens.keys, tokens.values
    if rule.projector == "values":
        return values, keys, None
    if rule.window == 1:
        return keys, values, None
    recent = state.recent
    join = lambda before, own: jnp.concatenate([before.astype(own.dtype), own])
    return (
        join(recent.keys, keys),
        join(recent.values, values),
        join(recent.gamma, tokens.gates.gamma),
    )


def _last_tokens(count, size, reset, active):
    """Places, in `count` tokens before a chunk of `size` and the chunk, of the last `count` tokens."""
    before = jnp.arange(count)
    if active is None:
        place = size + before
    else:
        first, number = jnp.argmax(active), jnp.sum(active)
        place = number + before
        place = jnp.where(place < count, place, place + first)
    if reset is None:
        return place, jnp.ones(count, bool)
    document = jnp.pad(jnp.cumsum(reset), (count, 0))
    return place, document[place] == document[-1]


def _recent(recent, tokens, last):
    """The tokens that later ones still write."""
    place, same = last

    def take(before, own):
        rows = jnp.concatenate([before, own.astype(before.dtype)])[place]
        return jnp.where(same.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0)

    own = Recent(tokens.keys, tokens.values, tokens.gates.gamma)
    return Recent(*map(take, recent, own))
