"""Linear projections to and from heads."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class Projection(nn.Module):
    """A linear map without bias from the last axes of its input to any number of axes.

    As `nn.DenseGeneral`, except that the kernel is drawn in its final shape, so that the axis names
    fit it wherever Flax looks at them.

    Attributes:
      features: shape of the output's last axes, such as (H, N).
      names: logical axis names of the kernel.
      axes: number of input axes that are summed over.
      dtype: of the product.
      param_dtype: of the kernel.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> to_heads = Projection((2, 4), ("embed", "heads", "head_dim"))
      >>> x = jnp.ones((1, 3, 8))
      >>> to_heads.apply(to_heads.init(jax.random.key(0), x), x).shape
      (1, 3, 2, 4)
    """

    features: tuple[int, ...]
    names: tuple[str, ...]
    axes: int = 1
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch F"]:
        inputs = x.shape[x.ndim - self.axes :]
        in_axis = tuple(range(self.axes))
        out_axis = tuple(range(self.axes, self.axes + len(self.features)))
        init: Callable[..., Any] = nn.with_logical_partitioning(
            nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis, out_axis),
            self.names,
        )
        kernel = self.param("kernel", init, (*inputs, *self.features), self.param_dtype)
        return jnp.tensordot(x.astype(self.dtype), kernel.astype(self.dtype), self.axes)
