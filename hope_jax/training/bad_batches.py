"""Batches that are not learnt from: whose numbers are none, or whose gradient is far above the usual."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Gradient norms of which the median is taken, and how many there must be.
WINDOW = 100
ENOUGH = 20


class SeenBatches(NamedTuple):
    """What was seen of the batches so far; a part of the training state, so that it is saved.

    Attributes:
      norms: gradient norms of the last batches that were learnt from, in no order; no number in the
        places that are not filled yet.
      learnt: batches that were learnt from.
      skipped: batches that were not.
      in_a_row: of these, those since the last that was learnt from.
    """

    norms: Float[Array, "window"]  # noqa: F821 - a name of jaxtyping
    learnt: Int[Array, ""]
    skipped: Int[Array, ""]
    in_a_row: Int[Array, ""]


def no_batches() -> SeenBatches:
    """Nothing has been seen yet."""
    norms = jnp.full(WINDOW, jnp.nan, jnp.float32)
    return SeenBatches(norms, *(jnp.zeros((), jnp.int32) for _ in range(3)))


def judge(
    seen: SeenBatches,
    loss: Float[Array, ""],
    gradient_norm: Float[Array, ""],
    update_norm: Float[Array, ""],
    above: float = 0.0,
) -> tuple[Bool[Array, ""], SeenBatches]:
    """Says whether a batch is to be skipped, and notes it.

    Args:
      seen: before it.
      loss: of the batch.
      gradient_norm: of its gradient, before clipping.
      update_norm: of what the optimiser makes of that.
      above: how many times the median of the last 100 gradient norms its own may be, once there are
        20; 0 for any.

    Returns:
      Whether it is bad, and what was seen with it.

    Example:
      >>> bad, seen = judge(no_batches(), jnp.nan, 1.0, 1.0)
      >>> bool(bad), int(seen.skipped)
      (True, 1)
    """
    bad = ~jnp.all(jnp.isfinite(jnp.stack([loss, gradient_norm, update_norm])))
    if above:
        usual = jnp.nanmedian(seen.norms)
        bad |= (seen.learnt >= ENOUGH) & (gradient_norm > above * usual)
    norm = jnp.asarray(gradient_norm, seen.norms.dtype)
    norms = seen.norms.at[seen.learnt % WINDOW].set(norm)
    learnt = SeenBatches(norms, seen.learnt + 1, seen.skipped, jnp.zeros_like(seen.in_a_row))
    skipped = seen._replace(skipped=seen.skipped + 1, in_a_row=seen.in_a_row + 1)
    return bad, jax.tree.map(lambda one, other: jnp.where(bad, one, other), skipped, learnt)
