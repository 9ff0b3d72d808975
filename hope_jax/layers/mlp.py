"""The gated feed-forward network of a Transformer block."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class MLPWeights(NamedTuple):
    """The three maps of a `SwiGLU`, or anything else of their shapes, such as a gradient.

    Attributes:
      gate: W_gate.
      up: W_up.
      down: W_down.
    """

    gate: Float[Array, "*batch D H"]
    up: Float[Array, "*batch D H"]
    down: Float[Array, "*batch H D"]


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


def swiglu(
    x: Float[Array, "B T D"], weights: MLPWeights, dtype: DTypeLike
) -> tuple[Float[Array, "B T D"], MLPWeights]:
    """`SwiGLU` with weights of its own for each sequence.

    Args:
      x: input.
      weights: one of each for every sequence, (B, ...).
      dtype: dtype of the computation.

    Returns:
      The output, and the input that each of the three maps has read.
    """
    x = x.astype(dtype)
    gate, up, down = (jnp.asarray(weight, dtype) for weight in weights)
    inner = nn.silu(jnp.einsum("btd,bdh->bth", x, gate)) * jnp.einsum("btd,bdh->bth", x, up)
    return jnp.einsum("bth,bhd->btd", inner, down), MLPWeights(x, x, inner)
