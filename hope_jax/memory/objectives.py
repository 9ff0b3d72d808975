"""Inner objectives of a memory: each function returns the local error `d = dL/dy` at its output."""

from jaxtyping import Array, Float


def l2_error(
    output: Float[Array, "*shape"], target: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Local error of L2 regression, `L = 1/2 |M(k) - v|^2` (Eq. 93).

    Args:
      output: M(k), any shape.
      target: v, same shape.

    Returns:
      `M(k) - v`.

    Example:
      >>> import jax.numpy as jnp
      >>> l2_error(jnp.array([1.0]), jnp.array([3.0])).tolist()
      [-2.0]
    """
    return output - target


def dot_error(
    output: Float[Array, "*shape"], target: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Local error of the dot product, `L = -<M(k), v>` (Eq. 92, Hebbian).

    Args:
      output: M(k), any shape; the error does not depend on it.
      target: v, same shape.

    Returns:
      `-v`.

    Example:
      >>> import jax.numpy as jnp
      >>> dot_error(jnp.array([1.0]), jnp.array([3.0])).tolist()
      [-3.0]
    """
    del output
    return -target
