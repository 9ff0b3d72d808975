"""Low-rank experts beside the MLP of a level, each with a gate of its own, switched on one by one.

An expert is `E(x) = sigmoid(x . w / sqrt(D)) gelu(x A) B`. The sum of those that are switched on is added
to what a level's MLP makes. Their gates do not compete: under a softmax, or a router that picks the best
few, each new expert would take from the older ones what it gets. Here a further one leaves the output of
the others as it is, to the bit, and with B = 0, as it begins, that of the level too. The price is that
all experts for which there is room are computed, for all tokens.

Experts lie in pools. A pool takes in what levels of one frequency have learned, and belongs to the next
slower one or, for the slowest, to the weights below, which do not change while the model reads.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float


class Experts(NamedTuple):
    """Pools of experts, a reader's own or everyone's.

    Everyone's are `(P, E, ...)`, in several blocks with an axis in front; those that each sequence has
    for itself are `(B, P, E, ...)`. Arrays have their full shape from the start, so that switching one on
    compiles nothing.

    Attributes:
      down: A.
      up: B.
      router: w of the gate.
      active: which are switched on.
    """

    down: Float[Array, "... P E D r"]
    up: Float[Array, "... P E r D"]
    router: Float[Array, "... P E D"]
    active: Bool[Array, "... P E"]


def no_experts(*home: int, pools: int, experts: int, width: int, rank: int) -> Experts:
    """Room for experts of which none is switched on.

    Args:
      home: leading axes, such as blocks and sequences.
      pools: P.
      experts: E, of each pool.
      width: D.
      rank: r.
    """
    shape = (*home, pools, experts)
    return Experts(
        jnp.zeros((*shape, width, rank)),
        jnp.zeros((*shape, rank, width)),
        jnp.zeros((*shape, width)),
        jnp.zeros(shape, bool),
    )


def level_of_pool(pool: int, levels: int) -> int:
    """Beside which level of a chain a pool lies: that after its sender, the last one for the last's."""
    return min(pool + 1, levels - 1)


def read_experts(
    x: Float[Array, "B T D"], experts: Experts, pool: int, dtype: DTypeLike
) -> Float[Array, "B T D"]:
    """What the experts of one pool add.

    Args:
      x: what the level's MLP reads.
      experts: with an axis of sequences or without.
      pool: index of the pool.
      dtype: dtype of the computation.
    """
    own = experts.down.ndim == 5
    down, up, router, active = (leaf[:, pool] if own else leaf[pool] for leaf in experts)
    b = "b" if own else ""
    x, down, up, router = (jnp.asarray(array, dtype) for array in (x, down, up, router))
    score = jnp.einsum(f"btd,{b}ed->bte", x, router) / x.shape[-1] ** 0.5
    gate = jnp.where(active[:, None] if own else active, jax.nn.sigmoid(score), 0)
    inner = jax.nn.gelu(jnp.einsum(f"btd,{b}edr->bter", x, down)) * gate[..., None]
    return jnp.einsum(f"bter,{b}erd->btd", inner, up)
