"""The update of one linear map inside a memory: token by token, and a chunk at a time.

With the map's own input x_t, its direction u_t = x_t / max(|x_t|, 1), and a write row U_t = -eta_t d_t
(the negative step along the local error at the chunk's start), both forms compute

    S_t = theta_t S_{t-1} + x_t^T U_t
    W_t = (alpha_t I - beta_t u_t^T u_t) W_{t-1} + S_t

Given the write rows the recurrence is linear in (W, S), so a chunk of it has an exact form made of
matrix products. Nothing is approximated: the two forms agree to rounding.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hope_jax.memory.directions import direction
from hope_jax.memory.gates import ChunkDecay, Decay
from hope_jax.memory.triangular import triangle_precision, unit_lower_inverse


class LinearMapState(NamedTuple):
    """State of one linear map.

    Attributes:
      weight: W, shape (I, O), float32 or float64.
      momentum: S, same shape; `None` when the rule has no momentum.
    """

    weight: Float[Array, "I O"]
    momentum: Float[Array, "I O"] | None


class Projection(NamedTuple):
    """What the projector of a chunk needs; it depends on inputs and gates, not on the state.

    Attributes:
      directions: u, the inputs at a length of at most 1, shape (C, I).
      lengths: `max(|x|, 1)`, shape (C, 1).
      beta: strength, shape (C, 1).
      strict: L, shape (C, C).
      inverse: `(I + L)^-1`, shape (C, C).
      mixing: weight of write row i in what row t erases, shape (C, C).
    """

    directions: Float[Array, "C I"]
    lengths: Float[Array, "C 1"]
    beta: Float[Array, "C 1"]
    strict: Float[Array, "C C"]
    inverse: Float[Array, "C C"]
    mixing: Float[Array, "C C"]


class Reading(NamedTuple):
    """How much of each row a query finds; it depends on queries, inputs and gates only.

    Attributes:
      write: weight of write row i at query t, `b_{t,i} (q_t . x_i)`, shape (C, C).
      erase: weight of erased row i, `a_{t,i} (q_t . u_i)`, shape (C, C); `None` without projector.
    """

    write: Float[Array, "C C"]
    erase: Float[Array, "C C"] | None


class ChunkUpdate(NamedTuple):
    """One chunk's writes to one linear map, from which any state inside it can be read.

    Attributes:
      start: state before the chunk.
      initial: state that a reset returns to, shape (I, O); `None` without resets.
      inputs: x, shape (C, I).
      projection: of the inputs; `None` without projector.
      erased: E, shape (C, O); `None` without projector.
      writes: U, shape (C, O).
    """

    start: LinearMapState
    initial: Float[Array, "I O"] | None
    inputs: Float[Array, "C I"]
    projection: Projection | None
    erased: Float[Array, "C O"] | None
    writes: Float[Array, "C O"]


def dot(left: Array, right: Array, dtype: jnp.dtype) -> Array:
    """Multiplies matrices with operands in `dtype`, accumulating in at least float32."""
    return jnp.matmul(
        left.astype(dtype),
        right.astype(dtype),
        preferred_element_type=jnp.promote_types(dtype, jnp.float32),
    )


def write_token(
    state: LinearMapState,
    inputs: Float[Array, "P I"],
    writes: Float[Array, "P O"],
    alpha: Float[Array, ""],
    beta: Float[Array, ""] | None,
    theta: Float[Array, ""] | None,
) -> LinearMapState:
    """Writes one token: the recurrence itself, the reference for `write_chunk`.

    Args:
      state: state before the token; its momentum is `None` exactly when `theta` is.
      inputs: x, shape (P, I): those whose errors the token writes, its own x_t last. P is 1 but for
        the Omega rule.
      writes: U = -eta_t d of each, shape (P, O).
      alpha: retention, shape ().
      beta: projector strength, shape (), or `None` for no projector.
      theta: momentum decay, shape (), or `None` for no momentum.

    Returns:
      The state after the token.

    Example:
      >>> import jax.numpy as jnp
      >>> start = LinearMapState(jnp.zeros((2, 1)), None)
      >>> one = jnp.array(1.0)
      >>> x, row = jnp.array([[1.0, 0.0]]), jnp.array([[3.0]])
      >>> write_token(start, x, row, one, one, None).weight.tolist()
      [[3.0], [0.0]]
    """
    step = inputs.T @ writes
    momentum = None
    if theta is not None:
        step = momentum = theta * state.momentum + step
    weight = alpha * state.weight
    if beta is not None:
        along = direction(inputs[-1])[0]
        weight -= beta * jnp.outer(along, along @ state.weight)
    return LinearMapState(weight + step, momentum)


def prepare_projection(
    inputs: Float[Array, "*m C I"], beta: Float[Array, " C"], decay: ChunkDecay, dtype: jnp.dtype
) -> Projection:
    """Inverts the chunk's triangular system, in which each token erases what earlier ones wrote.

    `L_{t,i} = beta_t a_{t-1,i} (u_t . u_i)`. Maps that share inputs and gates share the result.

    Args:
      inputs: x, shape (C, I), or (M, C, I) for M maps with inputs of their own.
      beta: projector strength, shape (C,).
      decay: the chunk's coefficients.
      dtype: of the operands of products whose size grows with the memory.

    Returns:
      A `Projection`, in float32 (float64 for float64 inputs), with leading axis M if inputs have it.
    """
    return prepare_projections((inputs,), beta, decay, dtype)[0]


def prepare_projections(
    groups: Sequence[Float[Array, "*m C I"]],
    beta: Float[Array, " C"],
    decay: ChunkDecay,
    dtype: jnp.dtype,
) -> list[Projection]:
    """Prepares several groups of inputs, whose widths may differ, at once.

    The inverse is a chain of small products, as long for many systems as for one.

    Args:
      groups: each as in `prepare_projection`.
      beta: projector strength, shape (C,).
      decay: the chunk's coefficients.
      dtype: as there.

    Returns:
      A `Projection` for each group.
    """
    precision = triangle_precision(dtype)
    parts = []
    for inputs in groups:
        along, length = direction(inputs)
        similarity = jnp.matmul(along, along.mT, precision=precision)
        strict = beta[:, None] * decay.before.erase * similarity
        mixing = decay.before.write * similarity * length.mT
        parts.append((along, length, jnp.broadcast_to(beta[:, None], length.shape), strict, mixing))
    systems = [strict.reshape(-1, *strict.shape[-2:]) for *_, strict, _ in parts]
    inverses = unit_lower_inverse(jnp.concatenate(systems), precision)
    projections, taken = [], 0
    for system, (along, length, strength, strict, mixing) in zip(systems, parts, strict=True):
        inverse = inverses[taken : taken + len(system)].reshape(strict.shape)
        projections.append(Projection(along, length, strength, strict, inverse, mixing))
        taken += len(system)
    return projections


def write_chunk(
    start: LinearMapState,
    inputs: Float[Array, "C I"],
    writes: Float[Array, "C O"],
    decay: ChunkDecay,
    projection: Projection | None,
    initial: Float[Array, "I O"] | None,
    dtype: jnp.dtype,
) -> ChunkUpdate:
    """Finds the rows that the projector erases, E, so that every state inside the chunk is known.

    `(I + L) E = R` with `R_t = -beta_t (g_{t-1} u_t W_0 + c_{t-1} u_t S_0
    + sum_{i<t} b_{t-1,i} (u_t . x_i) U_i)`.

    Args:
      start: state before the chunk.
      inputs: x, shape (C, I).
      writes: U, shape (C, O).
      decay: the chunk's coefficients.
      projection: of these inputs; `None` for no projector.
      initial: the state that a reset returns to; `None` without resets.
      dtype: of the operands of products whose size grows with the memory.

    Returns:
      A `ChunkUpdate` for `read_chunk` and `end_chunk`.
    """
    if projection is None:
        return ChunkUpdate(start, initial, inputs, None, None, writes)
    held = _carried(start, initial, projection.directions, decay.before, dtype)
    held += dot(projection.mixing, writes, dtype)
    erased = _solve(projection.strict, projection.inverse, -projection.beta * held, dtype)
    return ChunkUpdate(start, initial, inputs, projection, erased, writes)


def prepare_reading(
    queries: Float[Array, "C I"],
    inputs: Float[Array, "C I"],
    projection: Projection | None,
    decay: Decay,
) -> Reading:
    """Compares queries with the chunk's inputs; it depends on no state.

    Args:
      queries: q, shape (C, I); their dtype is that of the operands.
      inputs: x, shape (C, I).
      projection: of the inputs; `None` without projector.
      decay: `ChunkDecay.before` or `ChunkDecay.after`.

    Returns:
      A `Reading`.
    """
    dtype = queries.dtype
    if projection is None:
        return Reading(decay.write * dot(queries, inputs.T, dtype), None)
    similarity = dot(queries, projection.directions.T, dtype)
    return Reading(decay.write * similarity * projection.lengths[:, 0], decay.erase * similarity)


def read_chunk(
    update: ChunkUpdate,
    queries: Float[Array, "C I"],
    reading: Reading,
    decay: Decay,
    dtype: jnp.dtype,
) -> Float[Array, "C O"]:
    """Reads each query from its own intermediate state: `q_t W_{t-1}` or `q_t W_t`, exactly.

    `q_t W_t = g_t q_t W_0 + c_t q_t S_0 + sum_i a_{t,i} (q_t.u_i) E_i + b_{t,i} (q_t.x_i) U_i`.

    Args:
      update: the chunk's writes.
      queries: q, shape (C, I).
      reading: from `prepare_reading`.
      decay: the one it was prepared with.
      dtype: of the operands.

    Returns:
      Values, shape (C, O), at least float32.
    """
    out = _carried(update.start, update.initial, queries, decay, dtype)
    out += dot(reading.write, update.writes, dtype)
    if update.erased is not None:
        out += dot(reading.erase, update.erased, dtype)
    return out


def read_chunk_of_transpose(
    update: ChunkUpdate,
    queries: Float[Array, "C O"],
    decay: Decay,
    dtype: jnp.dtype,
) -> Float[Array, "C I"]:
    """Reads the transpose of a map at each query's own intermediate state, `q_t W_t^T`, exactly.

    `q_t W_t^T = g_t q_t W_0^T + c_t q_t S_0^T + sum_i a_{t,i} (q_t.E_i) u_i + b_{t,i} (q_t.U_i) x_i`.

    Args:
      update: the chunk's writes to W, with a projector.
      queries: q, shape (C, O).
      decay: `ChunkDecay.before` or `ChunkDecay.after`.
      dtype: of the operands.

    Returns:
      Values, shape (C, I), at least float32.
    """
    flip = lambda weight: None if weight is None else weight.T
    start = LinearMapState(*map(flip, update.start))
    out = _carried(start, flip(update.initial), queries, decay, dtype)
    wrote = decay.write * dot(queries, update.writes.T, dtype)
    out += dot(wrote, update.inputs, dtype)
    erased = decay.erase * dot(queries, update.erased.T, dtype)
    return out + dot(erased, update.projection.directions, dtype)


def end_chunk(update: ChunkUpdate, decay: ChunkDecay, dtype: jnp.dtype) -> LinearMapState:
    """Forms the state after the chunk's last token.

    Args:
      update: the chunk's writes.
      decay: the chunk's coefficients.
      dtype: of the operands; the state keeps its own.

    Returns:
      The state after the chunk.
    """
    start, end, projection = update.start, decay.end, update.projection
    inputs, lengths = update.inputs, jnp.ones(())
    if projection is not None:
        # The inputs are the directions times their lengths, so one product serves both sums.
        inputs, lengths = projection.directions, projection.lengths
    rows = end.write[0][:, None] * lengths * update.writes
    if update.erased is not None:
        rows += end.erase[0][:, None] * update.erased
    weight = end.state[0] * start.weight
    if update.initial is not None:
        weight += end.restart[0] * update.initial
    if start.momentum is None:
        return LinearMapState(weight + dot(inputs.T, rows, dtype), None)
    momentum_rows = decay.momentum_write[:, None] * lengths * update.writes
    steps = dot(inputs.T, jnp.concatenate([rows, momentum_rows], axis=1), dtype)
    step, momentum_step = jnp.split(steps, 2, axis=1)
    weight += end.momentum[0] * start.momentum
    return LinearMapState(weight + step, decay.momentum_state * start.momentum + momentum_step)


def _carried(start, initial, rows, decay, dtype):
    """Reads what is left of the states from before the chunk."""
    if start.momentum is None:
        out = decay.state[:, None] * dot(rows, start.weight, dtype)
    else:
        # Weight and momentum side by side: one wide product costs an accelerator less than two.
        both = dot(rows, jnp.concatenate([start.weight, start.momentum], axis=1), dtype)
        held, moving = jnp.split(both, 2, axis=1)
        out = decay.state[:, None] * held + decay.momentum[:, None] * moving
    if initial is not None:
        out += decay.restart[:, None] * dot(rows, initial, dtype)
    return out


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _solve(strict, inverse, right, dtype):
    """Solves `(I + L) E = R` with an inverse that is already there.

    In reverse the derivative of the system costs two products as wide as R; that of the inverse
    would add two of C x C matrices in full precision, which no derivative of first order needs.
    """
    del strict
    return dot(inverse, right, dtype)


@_solve.defjvp
def _solve_jvp(dtype, primals, tangents):
    strict, inverse, right = primals
    strict_dot, _, right_dot = tangents
    erased = _solve(strict, inverse, right, dtype)
    # (I + L) dE = dR - dL E. The inverse is a function of L, so that its own tangent adds nothing;
    # it stays differentiable for derivatives of this one.
    residual = right_dot - dot(strict_dot, erased, dtype)
    return erased, _solve(strict, inverse, residual, dtype)
