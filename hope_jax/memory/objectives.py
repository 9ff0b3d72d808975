"""Inner objectives of a memory: each function returns the local error `d = dL/dy` at its output."""

import dataclasses

import jax.numpy as jnp
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


@dataclasses.dataclass(frozen=True)
class LpError:
    """Local error of L_p regression, `L = 1/p sum |M(k) - v|^p` (Miras).

    Attributes:
      power: p, at least 2: below, the derivative of the error has no bound.

    Example:
      >>> import jax.numpy as jnp
      >>> LpError(3.0)(jnp.array([1.0]), jnp.array([3.0])).tolist()
      [-4.0]
    """

    power: float

    def __post_init__(self) -> None:
        if self.power < 2:
            raise ValueError(f"the power of an L_p objective must be at least 2, got {self.power}")

    def __call__(
        self, output: Float[Array, "*shape"], target: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """`sign(e) |e|^(p - 1)` with `e = M(k) - v`."""
        error = output - target
        some = error != 0  # at zero the derivatives of a power of one are no numbers
        size = jnp.abs(jnp.where(some, error, 1))
        return error * jnp.where(some, size ** (self.power - 2), self.power == 2)


@dataclasses.dataclass(frozen=True)
class HuberError:
    """Local error of Huber's loss: L2 up to an error of `delta`, linear beyond (Miras).

    Attributes:
      delta: where the gradient is clipped, entry by entry.

    Example:
      >>> import jax.numpy as jnp
      >>> HuberError(1.5)(jnp.array([1.0]), jnp.array([3.0])).tolist()
      [-1.5]
    """

    delta: float

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"the delta of Huber's loss must be positive, got {self.delta}")

    def __call__(
        self, output: Float[Array, "*shape"], target: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """`e = M(k) - v`, clipped."""
        return jnp.clip(output - target, -self.delta, self.delta)
