"""Continuum Memory System: a chain of MLPs, one for each update frequency (section 7.1)."""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from hope_jax.layers.mlp import SwiGLU
from hope_jax.layers.normalization import RMSNorm

ContinuumState = tuple[()]


class ContinuumMemory(nn.Module):
    """Chain of pre-norm residual MLP levels (Eq. 73): `x <- x + MLP_l(RMSNorm(x))`, level by level.

    Level 0 is the fastest; a level's parameters carry its number, `level_0`, `level_1`, ..., in
    either order of the chain. One level is the MLP of a Transformer block.

    Attributes:
      levels: number of MLPs in the chain.
      hidden: hidden width of each.
      order: which end of the spectrum reads the input first.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters.
    """

    levels: int
    hidden: int
    order: Literal["fast_to_slow", "slow_to_fast"] = "fast_to_slow"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: ContinuumState | None = None,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], ContinuumState]:
        """Passes `x` through the chain. Its parameters are its only memory: the state is empty."""
        del state, reset
        levels = range(self.levels)
        for level in levels if self.order == "fast_to_slow" else reversed(levels):
            norm = RMSNorm(
                dtype=self.dtype, param_dtype=self.param_dtype, name=f"level_{level}_norm"
            )
            mlp = SwiGLU(
                self.hidden,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"level_{level}",
            )
            x = x + mlp(norm(x))
        return x, ()
