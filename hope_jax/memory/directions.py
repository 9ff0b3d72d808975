"""Rows at unit length, and the directions along which a projector erases.

Both divide by the length, and neither where it is small: the direction of a row that has decayed to
rounding noise is noise, another one in each form of a computation, and erasing along it at full
strength takes away what was learnt along others.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

# Keys, queries and values are some units long. Noise of 1e-7 is then at most 1e-5 of a unit vector.
_LEAST = 1e-2


def unit(rows: Float[Array, "*shape I"]) -> Float[Array, "*shape I"]:
    """Brings rows to unit length, `x / max(|x|, 0.01)`.

    Args:
      rows: x, shape (..., I).

    Returns:
      Rows of length 1, at least float32; shorter where x is shorter than 0.01, and zero for a zero
      row. Derivatives of all orders are finite.

    Example:
      >>> import jax.numpy as jnp
      >>> unit(jnp.array([[0.0, 4.0], [0.0, 0.0]])).tolist()
      [[0.0, 1.0], [0.0, 0.0]]
    """
    return _scaled(rows, _LEAST)[0]


def direction(
    rows: Float[Array, "*shape I"],
) -> tuple[Float[Array, "*shape I"], Float[Array, "*shape 1"]]:
    """Splits the inputs of a map into what a projector erases along and a scale.

    A projector `I - beta u^T u` has `u = x / max(|x|, 1)`: unit length for keys, and for any input
    that long. Along a shorter one it erases in proportion to `|x|^2`, as a write along it is in
    proportion to that: nothing is erased along what hardly is an input.

    Args:
      rows: x, shape (..., I).

    Returns:
      u, shape (..., I), and `max(|x|, 1)`, shape (..., 1), so that their product is x; at least
      float32.

    Example:
      >>> import jax.numpy as jnp
      >>> u, scale = direction(jnp.array([[3.0, 4.0], [0.3, 0.4]]))
      >>> scale.tolist()
      [[5.0], [1.0]]
    """
    return _scaled(rows, 1.0)


def _scaled(rows, least):
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    squared = jnp.sum(rows * rows, axis=-1, keepdims=True)
    # The root is of a constant where the row is short, so that its derivative is never that at zero.
    length = jnp.sqrt(jnp.maximum(squared, least**2))
    return rows / length, length
