"""Causal depthwise convolution over tokens."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float


class CausalConvolution(nn.Module):
    """`y_t = sum_j w_j * x_{t-j}` for `0 <= j < window`, channel by channel.

    Attributes:
      window: number of tokens that an output sees, its own included.
      dtype: of the result.
      param_dtype: of the parameters.
    """

    window: int = 4
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        tail: Float[Array, "B W D"] | None = None,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B W D"]]:
        """Convolves.

        Args:
          x: inputs, shape (B, T, D).
          tail: the last `window - 1` inputs before x; `None` for the beginning of a context.
          reset: True where a token begins a new document, which sees nothing before it.

        Returns:
          Outputs, shape (B, T, D), and the new tail. A tail never reaches back over a reset.
        """
        init: Callable[..., Any] = nn.with_logical_partitioning(
            _identity_plus_noise, ("conv", "activation_embed")
        )
        shape = (self.window, x.shape[-1])
        kernel = self.param("kernel", init, shape, self.param_dtype).astype(self.dtype)
        length, before = x.shape[1], self.window - 1
        if tail is None:
            tail = jnp.zeros((x.shape[0], before, x.shape[-1]), self.dtype)
        padded = jnp.concatenate([tail, x.astype(self.dtype)], axis=1)
        # Documents are numbered so that a tap can see whether it reads its own; what lies in the tail
        # belongs to document 0.
        document = None
        if reset is not None:
            document = jnp.pad(jnp.cumsum(reset, axis=1), ((0, 0), (before, 0)))
        out = jnp.zeros((), self.dtype)
        for j in range(self.window):
            tap = padded[:, before - j : before - j + length]
            if document is not None and j:
                same = document[:, before - j : before - j + length] == document[:, before:]
                tap = jnp.where(same[..., None], tap, 0)
            out += kernel[j] * tap
        new_tail = padded[:, length:]
        if document is not None:
            new_tail = jnp.where((document[:, length:] == document[:, -1:])[..., None], new_tail, 0)
        return out, new_tail


def _identity_plus_noise(key, shape, dtype):
    """The present token at weight one, the earlier ones at small random weights."""
    noise = nn.initializers.normal(0.5 / shape[0] ** 0.5)(key, shape, dtype)
    return noise.at[0].set(1)
