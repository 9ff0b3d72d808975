"""Gates of a memory and their products over a chunk, formed in log space."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float

from hope_jax.memory.triangular import triangle_precision


class Gates(NamedTuple):
    """What decides, at every token, how a memory is written.

    Attributes:
      eta: step size of the inner gradient, shape (T,).
      log_alpha: logarithm of the retention alpha, shape (T,), from -inf, which forgets everything, to
        0; zeros switch decay off.
      beta: strength of the projector `I - beta u^T u`, shape (T,): `eta` is Delta Gradient Descent
        (Eq. 57), `None` is plain gradient descent.
      log_theta: logarithm of the momentum's decay theta, shape (T,), from -inf to 0; `None` is no
        momentum.
      gamma: weight of the token's error in the windows of itself and of the tokens after it (the
        Omega rule), shape (T,); `None` where every token writes its own error alone.
    """

    eta: Float[Array, " T"]
    log_alpha: Float[Array, " T"]
    beta: Float[Array, " T"] | None = None
    log_theta: Float[Array, " T"] | None = None
    gamma: Float[Array, " T"] | None = None


class Decay(NamedTuple):
    """Coefficients of the states W_r seen at R places of a chunk of C tokens.

    With U the write rows, E the erased rows, x the inputs and u their directions (`linear_map.py`),

        W_r = state_r W_0 + momentum_r S_0 + restart_r W_init
              + sum_i erase_{r,i} u_i^T E_i + write_{r,i} x_i^T U_i

    Attributes:
      state: g, shape (R,).
      momentum: c, shape (R,); `None` without momentum.
      restart: weight of the initial state after a reset, shape (R,); `None` without resets.
      erase: a, shape (R, C).
      write: b, shape (R, C).
    """

    state: Float[Array, " R"]
    momentum: Float[Array, " R"] | None
    restart: Float[Array, " R"] | None
    erase: Float[Array, "R C"]
    write: Float[Array, "R C"]


class RunningSum(NamedTuple):
    """The running sum of logarithms in two parts, whose sum it is.

    Attributes:
      coarse: exact, shape (C,).
      fine: what is missing, shape (C,).
    """

    coarse: Float[Array, " C"]
    fine: Float[Array, " C"]


class ChunkDecay(NamedTuple):
    """The coefficients of one chunk.

    Attributes:
      before: states just before each token's own write, `W_{t-1}`, R = C.
      after: states just after it, `W_t`, R = C.
      end: the state after the last token, R = 1.
      momentum_state: weight of S_0 in the last S, shape (); `None` without momentum.
      momentum_write: weight of each `x_i^T U_i` in the last S, shape (C,); `None` without momentum.
      restarted: whether a reset lies at or before the token, shape (C,); `None` without resets.
    """

    before: Decay
    after: Decay
    end: Decay
    momentum_state: Float[Array, ""] | None
    momentum_write: Float[Array, " C"] | None
    restarted: Bool[Array, " C"] | None


def chunk_decay(
    log_alpha: Float[Array, " C"],
    log_theta: Float[Array, " C"] | None = None,
    reset: Bool[Array, " C"] | None = None,
    active: Bool[Array, " C"] | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> ChunkDecay:
    """Forms every product of gates that a chunk needs.

    `a_{t,i} = prod_{i<s<=t} alpha_s` is one exponential of a difference of sums (`running_sums`),
    masked before the exponential so that nothing overflows. The momentum's
    `b_{t,i} = sum_j a_{t,j} theta_{j,i}` is one product of two such triangles: the state is the decayed
    sum of the momenta. That gives the states before each write; those after it follow by one step of
    the recurrence.

    Args:
      log_alpha: logarithm of the retention, shape (C,), float32 or float64, from -inf to 0.
      log_theta: logarithm of the momentum's decay, shape (C,), or `None`.
      reset: True where a token begins a new document: the state returns to its initial value, and
        the momentum to zero, before that token is read or written. Shape (C,), or `None`.
      active: False where a place of the chunk holds no token, shape (C,), or `None`. Such places
        change nothing, provided that the caller gives them `log_alpha`, `log_theta`, `eta` and
        `beta` of 0.
      dtype: of the operands of the memory's large products, which says how exact the product of two
        triangles has to be.

    Returns:
      A `ChunkDecay`, in the dtype of `log_alpha`.

    Example:
      >>> import jax.numpy as jnp
      >>> decay = chunk_decay(jnp.log(jnp.array([0.5, 0.5])))
      >>> decay.after.state.tolist(), decay.before.state.tolist()
      ([0.5, 0.25], [1.0, 0.5])
    """
    precision = triangle_precision(dtype)
    size = log_alpha.shape[0]
    place = jnp.arange(size)
    alpha = jnp.exp(log_alpha)
    logs = [log_alpha] if log_theta is None else [log_alpha, log_theta]
    total, *theta_total = running_sums(*logs)
    earlier = jax.tree.map(lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]]), total)
    segment = None if reset is None else jnp.cumsum(reset)
    own = (place[:, None] == place).astype(alpha.dtype)

    momentum = carried = None  # weights of the writes, and of S_0, in every S_t
    last: tuple[Array | None, Array | None] = None, None  # those in the last one
    if log_theta is not None:
        (moved,) = theta_total
        momentum = _triangle(moved, moved, place[:, None] >= place, segment)
        carried = jnp.exp(sum(moved))
        if segment is not None:
            carried = jnp.where(segment == 0, carried, 0)
        # Places without a token at the end keep S: their log_theta is 0, so the last row holds.
        last = carried[-1], momentum[-1]
        if active is not None:
            momentum = jnp.where(active[:, None], momentum, 0)
            carried = jnp.where(active, carried, 0)

    erase = _triangle(earlier, total, place[:, None] > place, segment)
    state, restart = jnp.exp(sum(earlier)), None
    if segment is not None:
        state = jnp.where(segment == 0, state, 0)
        starts = reset & (segment == segment[:, None])
        since = lambda part: part - jnp.sum(jnp.where(starts, part, 0), axis=1)
        restart = jnp.where(segment > 0, jnp.exp(sum(map(since, earlier))), 0)
    write, moving = erase, None
    if momentum is not None:
        write = jnp.matmul(erase, momentum, precision=precision)
        moving = jnp.matmul(erase, carried, precision=precision)

    def step(rows):
        """States just after the tokens' own writes, `alpha_t W_{t-1} + S_t`."""
        kept = alpha[rows]
        erased = kept[:, None] * erase[rows] + own[rows]
        return Decay(
            state=kept * state[rows],
            momentum=None if moving is None else kept * moving[rows] + carried[rows],
            restart=None if restart is None else kept * restart[rows],
            erase=erased,
            write=erased if momentum is None else kept[:, None] * write[rows] + momentum[rows],
        )

    return ChunkDecay(
        before=Decay(state, moving, restart, erase, write),
        after=step(slice(None)),
        end=step(slice(-1, None)),
        momentum_state=last[0],
        momentum_write=last[1],
        restarted=None if segment is None else segment > 0,
    )


def windowed_decay(
    decay: ChunkDecay,
    steps: Float[Array, "C P"],
    reset: Bool[Array, " C"] | None = None,
    active: Bool[Array, " C"] | None = None,
) -> ChunkDecay:
    """Coefficients where a token writes the errors of a whole window (the Omega rule, Eq. 68).

    Token t writes `steps_{t,i} x_i^T U_i` for each of the last W tokens i of its document, itself
    included. Row i of the result has the weight `sum_t b_{r,t} steps_{t,i}` over those t that write it.

    Args:
      decay: of the chunk, from `chunk_decay`.
      steps: how strongly token t writes the error of token i, shape (C, W - 1 + C), for the W - 1
        tokens before the chunk and those of the chunk; 0 at places t that hold no token. Those that
        t does not see are left out here.
      reset: as for `chunk_decay`.
      active: as for `chunk_decay`; the places that hold a token are neighbours.

    Returns:
      The coefficients with `write` of shape (R, W - 1 + C), for the W - 1 tokens before the chunk and
      those of the chunk, and `momentum_write` of shape (W - 1 + C,).

    Example:
      >>> import jax.numpy as jnp
      >>> decay = chunk_decay(jnp.zeros(2))
      >>> windowed_decay(decay, jnp.ones((2, 3))).end.write.tolist()
      [[1.0, 2.0, 1.0]]
    """
    size, rows = steps.shape
    window = rows - size + 1
    count = jnp.arange(size) if active is None else jnp.cumsum(active) - 1
    number = jnp.concatenate([jnp.arange(1 - window, 0), count])
    age = count[:, None] - number
    written = (age >= 0) & (age < window)
    if reset is not None:
        segment = jnp.cumsum(reset)
        written &= segment[:, None] == jnp.pad(segment, (window - 1, 0))
    band = jnp.where(written, steps, 0)
    spread = lambda rows: jnp.matmul(rows, band, precision=jax.lax.Precision.HIGHEST)
    wide = lambda part: part._replace(write=spread(part.write))
    return decay._replace(
        before=wide(decay.before),
        after=wide(decay.after),
        end=wide(decay.end),
        momentum_write=None if decay.momentum_write is None else spread(decay.momentum_write),
    )


def running_sums(*logs: Float[Array, " C"]) -> list[RunningSum]:
    """Sums logarithms of gates so that differences of the sums lose nothing.

    One gate that forgets everything would leave no digits of the others in a running sum. So the
    logarithms are cut where their exponential is zero, and what is left is split: multiples of a step
    so large that their sums are exact, and a rest so small that its sums hardly round.

    Args:
      logs: logarithms, each of shape (C,), from -inf to 0.

    Returns:
      The two running sums of each. Their derivative is that of the plain sum, and zero where the
      exponential is.

    Example:
      >>> import jax.numpy as jnp
      >>> (sums,) = running_sums(jnp.array([-jnp.inf, -1e-6, -1e-6]))
      >>> sum(part[2] - part[0] for part in sums).round(8).item()
      -1.9999999949504854e-06
    """
    stacked = jnp.stack(logs)
    info = jnp.finfo(stacked.dtype)
    # Powers of two: 2^7 in float32, where exp(-104) is zero, and 2^10 in float64.
    least = 2.0 ** np.ceil(np.log2(-np.log(info.smallest_subnormal)))
    size = 2.0 ** np.ceil(np.log2(stacked.shape[1]))
    step = least * size / 2.0 ** (info.nmant + 1)
    cut = jnp.maximum(stacked, -least)
    coarse = jax.lax.stop_gradient(jnp.round(cut / step) * step)
    sums = jnp.cumsum(jnp.stack([coarse, cut - coarse]), axis=-1)
    return [RunningSum(*sums[:, i]) for i in range(len(logs))]


def _triangle(row_total, total, seen, segment):
    if segment is not None:
        seen = seen & (segment[:, None] == segment)
    difference = sum(row[:, None] - column for row, column in zip(row_total, total, strict=True))
    triangle = jnp.where(seen, jnp.exp(jnp.where(seen, difference, 0)), 0)
    # Gates come with heads as their minor axis. Left alone, a TPU's compiler lays out these and all that
    # meets them likewise, with 16 heads in registers for 128. Elsewhere nothing is gained, and where the
    # compiler itself splits a program over devices it makes whatever has a layout whole on each.
    return jax.lax.platform_dependent(
        triangle,
        tpu=lambda x: with_layout_constraint(x, Layout(major_to_minor=(0, 1))),
        default=lambda x: x,
    )
