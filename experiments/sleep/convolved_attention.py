"""Attention whose tokens know the few before them: a short causal convolution goes before it.

    --config.model.sequence_layer=convolved_attention.ConvolvedAttention

What is looked up in a text is found by what stood before it, such as the value of a fact by whose it is.
Attention alone must first learn to bring these together, in one layer for the next; a small model may
never do so.
"""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float
from optax.contrib import MuonDimensionNumbers

from hope_jax.layers.attention import Attention, AttentionState
from hope_jax.layers.convolution import CausalConvolution
from hope_jax.settings import setting


class ConvolvedState(NamedTuple):
    """What is carried from one call to the next.

    Attributes:
      tail: the last inputs of the convolution.
      attention: its cache.
    """

    tail: Float[Array, "B W D"]
    attention: AttentionState


class ConvolvedAttention(nn.Module):
    """Attention to a causal convolution of the tokens, and that beside it: `y = attention(c) + c`.

    Attributes:
      num_heads: of attention.
      window: tokens that attention sees.
      taps: tokens that the convolution sees, its own included.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    num_heads: int
    window: int = setting("tokens that attention sees", 256, least=1)
    taps: int = setting("tokens that the convolution sees, its own included", 5, least=1)
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    matrices: ClassVar = (
        ("convolution", None),
        ("(query|key|value)/kernel", MuonDimensionNumbers(reduction_axis=0, output_axis=(1, 2))),
        ("out/kernel", MuonDimensionNumbers(reduction_axis=(0, 1), output_axis=2)),
    )

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: ConvolvedState | None = None,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], ConvolvedState]:
        """Reads any number of tokens, from a fresh context or on from `state`."""
        tail, seen = (None, None) if state is None else state
        dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        near, tail = CausalConvolution(self.taps, **dtypes, name="convolution")(x, tail, reset)
        attention = Attention(self.num_heads, self.window, **dtypes, name="attention")
        y, seen = attention(near, seen, reset)
        return y + near, ConvolvedState(tail, seen)
