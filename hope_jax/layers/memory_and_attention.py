"""Memory beside attention and memory below it: two of Titans' three ways of joining them.

The third, memory as context, is in `memory_as_context.py`. In all three, persistent tokens are learned
rows of attention that every query sees; what the memory knows before the first token is its own
meta-learned initial state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from hope_jax.layers.attention import Attention, AttentionState
from hope_jax.layers.normalization import RMSNorm
from hope_jax.layers.titans import SelfModifyingTitans, TitansState


class JoinedState(NamedTuple):
    """What a memory and an attention carry from one call to the next.

    Attributes:
      memory: of the memory.
      attention: of attention.
    """

    memory: TitansState
    attention: AttentionState


class MemoryAsGate(nn.Module):
    """Attention and memory read the same tokens, and one gates the other (MAG).

    `o = norm(Attention(x)) * sigmoid(norm(Memory(x)))`.

    Attributes:
      attention: makes the attention layer, given a name.
      memory: makes the memory layer, given a name.
      dtype: of the result.
      param_dtype: of the parameters.

    Example:
      >>> import functools, jax, jax.numpy as jnp
      >>> from hope_jax.layers.titans import TitansConfig
      >>> layer = MemoryAsGate(
      ...     functools.partial(Attention, num_heads=2, window=4, persistent=3),
      ...     functools.partial(SelfModifyingTitans, TitansConfig(width=8, num_heads=2)),
      ... )
      >>> x = jnp.ones((1, 6, 8))
      >>> jax.jit(layer.init_with_output)(jax.random.key(0), x)[0][0].shape
      (1, 6, 8)
    """

    attention: Callable[..., Attention]
    memory: Callable[..., SelfModifyingTitans]
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: JoinedState | None = None,
        reset: Bool[Array, "B T"] | None = None,
        at_edge: bool = False,
    ) -> tuple[Float[Array, "B T D"], JoinedState]:
        """Reads tokens; arguments and results as those of `SelfModifyingTitans`."""
        of_memory, of_attention = (None, None) if state is None else state
        near, of_attention = self.attention(name="attention")(x, of_attention, reset)
        far, of_memory = self.memory(name="memory")(x, of_memory, reset, at_edge)
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        near = RMSNorm(name="attention_norm", **dtypes)(near)
        gate = jax.nn.sigmoid(RMSNorm(name="memory_norm", **dtypes)(far))
        return near * gate, JoinedState(of_memory, of_attention)


class MemoryAsLayer(nn.Module):
    """Memory reads the tokens, and attention what it has made of them (MAL).

    `o = Attention(norm(Memory(x)))`.

    Attributes:
      attention: makes the attention layer, given a name.
      memory: makes the memory layer, given a name.
      dtype: of the result.
      param_dtype: of the parameters.
    """

    attention: Callable[..., Attention]
    memory: Callable[..., SelfModifyingTitans]
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: JoinedState | None = None,
        reset: Bool[Array, "B T"] | None = None,
        at_edge: bool = False,
    ) -> tuple[Float[Array, "B T D"], JoinedState]:
        """Reads tokens; arguments and results as those of `SelfModifyingTitans`."""
        of_memory, of_attention = (None, None) if state is None else state
        far, of_memory = self.memory(name="memory")(x, of_memory, reset, at_edge)
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = RMSNorm(name="memory_norm", **dtypes)(far)
        y, of_attention = self.attention(name="attention")(y, of_attention, reset)
        return y, JoinedState(of_memory, of_attention)
