"""Cross-entropy of next-token logits that are never whole in memory."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


def logits_of(
    hidden: Float[Array, "B T D"], table: Float[Array, "V D"], dtype: DTypeLike
) -> Float[Array, "B T V"]:
    """Logits `hidden table^T`, multiplied in `dtype` and summed in float32 or wider."""
    return jnp.einsum(
        "btd,vd->btv",
        hidden.astype(dtype),
        table.astype(dtype),
        preferred_element_type=jnp.promote_types(dtype, jnp.float32),
    )


def chunked_cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    chunk: int,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "B T"]:
    """Loss of every token, `log sum_v exp(z_v) - z_target` with `z = hidden table^T`, in nats.

    Logits exist for `chunk` tokens of each sequence at a time, in the backward pass too, where
    they are formed again. The split runs along T, so that a batch spread over devices stays so.

    Args:
      hidden: final activations.
      table: one row for each token id.
      targets: ids to be predicted.
      chunk: tokens of each sequence taken at a time; need not divide T.
      dtype: dtype of the matrix product's operands.

    Returns:
      Losses, float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> losses = chunked_cross_entropy(
      ...     jnp.zeros((1, 3, 4)), jnp.ones((8, 4)), jnp.zeros((1, 3), int), chunk=2
      ... )
      >>> losses.round(3).tolist()  # log 8
      [[2.0789999961853027, 2.0789999961853027, 2.0789999961853027]]
    """
    batch, tokens = targets.shape
    chunk = max(1, min(chunk, tokens))
    padding = -tokens % chunk

    def chunks(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        x = x.reshape(batch, (tokens + padding) // chunk, chunk, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    # The table enters in float32, or wider, and is cast inside, so that its gradient is summed over
    # chunks at that precision.
    table = table.astype(jnp.promote_types(table.dtype, jnp.float32))

    def losses_of(part: tuple[Array, Array]) -> Array:
        hidden, targets = part
        logits = logits_of(hidden, table, dtype)
        # A masked sum where an index would do: it needs no gather when V is spread over devices.
        at_target = jnp.arange(table.shape[0]) == targets[..., None]
        target = jnp.sum(jnp.where(at_target, logits, 0), axis=-1)
        return jax.nn.logsumexp(logits, axis=-1) - target

    if chunk == tokens:  # there is no other piece whose logits these would lie beside
        return losses_of((hidden, targets))
    losses = jax.lax.map(jax.checkpoint(losses_of), (chunks(hidden), chunks(targets)))
    return jnp.moveaxis(losses, 0, 1).reshape(batch, tokens + padding)[:, :tokens]
