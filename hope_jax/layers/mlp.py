"""The gated feed-forward network of a Transformer block."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class SwiGLU(nn.Module):
    """`y = (silu(x W_gate) * (x W_up)) W_down`.

    Attributes:
      hidden: width between the projections.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters.
    """

    hidden: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate = self._projection(self.hidden, ("embed", "mlp"), "gate")(x)
        up = self._projection(self.hidden, ("embed", "mlp"), "up")(x)
        return self._projection(x.shape[-1], ("mlp", "embed"), "down")(nn.silu(gate) * up)

    def _projection(self, features: int, axes: tuple[str, str], name: str) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes),
            name=name,
        )
