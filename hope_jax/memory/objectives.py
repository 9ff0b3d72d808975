"""Inner objectives of a memory: each function returns the local error `d = dL/dy` at its output."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hope_jax.named import calling, find

Loss = Callable[[Float[Array, " N"], Float[Array, " N"]], Float[Array, ""]]


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


@dataclasses.dataclass(frozen=True)
class GradientOf:
    """Local error of a loss of one's own: its gradient at what the memory gives.

    Attributes:
      loss: `loss(output, target)` of one answer of the memory: two vectors of the same width, which is 1
        for the memories of eta and alpha, to one number. It must have second derivatives, finite also
        where both vectors are equal.

    Example:
      >>> import jax.numpy as jnp
      >>> error = GradientOf(lambda output, target: jnp.sum((output - target) ** 2) / 2)
      >>> error(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 3.0]])).tolist()
      [[-2.0, -1.0]]
    """

    loss: Loss

    def __call__(
        self, output: Float[Array, "*rows N"], target: Float[Array, "*rows N"]
    ) -> Float[Array, "*rows N"]:
        """The gradient for each row."""
        return jnp.vectorize(jax.grad(self.loss), signature="(n),(n)->(n)")(output, target)

    def growth(
        self, output: Float[Array, "*rows N"], target: Float[Array, "*rows N"]
    ) -> Float[Array, "*rows"]:
        """How much faster than the output, moved along its error, the error changes; at least 1.

        With H the second derivative and d the error, `|H d| / |d|`: a step of 1 over it goes at most to
        where a quadratic loss is least along d.
        """
        error = self(output, target)
        of_output = lambda output: self(output, target)
        change = jax.jvp(of_output, (output,), (error,))[1]
        size = jnp.sum(jnp.square(error), axis=-1)
        some = size > 1e-12
        ratio = jnp.sum(jnp.square(change), axis=-1) / jnp.where(some, size, 1)
        return jnp.sqrt(jnp.maximum(1, jnp.where(some, ratio, 0)))


def own_loss(name: str) -> Loss:
    """The loss that a dotted name names, seen to be one without being run.

    Raises:
      ValueError: in one line, if it takes other arguments, gives anything but one number, or has no
        second derivative that can be differentiated, which steps that are bounded need.
    """
    loss = find(name)
    _check_loss(name, loss)
    return loss


@functools.cache
def _check_loss(name: str, loss: Loss) -> None:
    for width in (1, 3):
        answer = jax.ShapeDtypeStruct((width,), jnp.float32)
        with calling(name):
            given = jax.eval_shape(loss, answer, answer)
        if getattr(given, "shape", None) != () or not jnp.issubdtype(given.dtype, jnp.floating):
            found = getattr(given, "shape", type(given).__name__)
            raise ValueError(
                f"{name} gives {found} for two vectors of width {width}; a loss of one answer is one "
                f"number, as jnp.sum((output - target) ** 2) / 2 is"
            )
        bound = jax.grad(lambda *answer: GradientOf(loss).growth(*answer))
        with calling(name):
            jax.eval_shape(bound, answer, answer)
