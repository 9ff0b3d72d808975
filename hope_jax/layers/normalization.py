"""Normalisation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class RMSNorm(nn.Module):
    """`y = scale * x / sqrt(mean(x^2) + epsilon)` over the last axis, formed in float32.

    Attributes:
      epsilon: keeps an all-zero row finite.
      dtype: dtype of the result.
      param_dtype: dtype of the scale.
      axis: logical axis of the scale.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        init: Callable[..., Any] = nn.with_logical_partitioning(
            nn.initializers.ones_init(), (self.axis,)
        )
        scale = self.param("scale", init, (x.shape[-1],), self.param_dtype)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * scale).astype(self.dtype)
