"""A model that is to tell a whole text from what it has made of it at the last token."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from hope_jax.layers.normalization import RMSNorm
from hope_jax.models.language_model import LanguageModel, ModelState


def sinusoids(length: int, width: int) -> Float[np.ndarray, "T D"]:
    """`sin(t / 10000^(i / (h - 1)))` of h = D // 2 frequencies at each position t, then their cosines.

    Args:
      length: T.
      width: D; an odd one has a last channel of 0.

    Example:
      >>> sinusoids(2, 5).round(2).tolist()
      [[0.0, 0.0, 1.0, 1.0, 0.0], [0.84, 0.0, 0.54, 1.0, 0.0]]
    """
    half = width // 2
    frequencies = 10_000.0 ** (-np.arange(half) / max(1, half - 1))
    turned = np.arange(length)[:, None] * frequencies
    made = np.concatenate([np.sin(turned), np.cos(turned)], axis=1)
    return np.pad(made, ((0, 0), (0, width % 2)))


class AutoEncoder(LanguageModel):
    """A language model's blocks, and a decoder that gets their last activations alone.

    As in MAD's compression (Poli et al., 2024): to the activations at the last token, normed, sinusoids
    of each position are added, and an MLP of two layers, the same everywhere, tells the token there. A
    call's logits are those of its own tokens, at least one, not of the next ones; so are targets.

    Attributes:
      config: sizes and settings, of a language model.

    Example:
      >>> from hope_jax.models import LanguageModelConfig
      >>> sizes = dict(vocab_size=16, width=8, num_layers=1, num_heads=2, mlp_width=8)
      >>> model = AutoEncoder(LanguageModelConfig(**sizes, sequence_layer="attention"))
      >>> tokens = jnp.zeros((2, 5), jnp.int32)
      >>> (logits, state), _ = jax.jit(model.init_with_output)(jax.random.key(0), tokens)
      >>> logits.shape
      (2, 5, 16)
    """

    def setup(self) -> None:
        super().setup()
        config = self.config
        dtypes: dict[str, Any] = {
            "dtype": jnp.dtype(config.dtype),
            "param_dtype": jnp.dtype(config.param_dtype),
        }
        kernel: Any = nn.with_logical_partitioning(
            nn.initializers.lecun_normal(), ("embed", "activation_embed")
        )
        self.decoder = [nn.Dense(config.width, kernel_init=kernel, **dtypes) for _ in range(2)]
        self.decoder_norms = [RMSNorm(config.norm_epsilon, **dtypes) for _ in range(3)]

    def _advance(
        self,
        tokens: Array,
        state: ModelState | None,
        reset: Array | None,
        targets: Array | None = None,
    ) -> tuple[Array, ModelState]:
        hidden, state = super()._advance(tokens, state, reset)
        positions = sinusoids(tokens.shape[1], self.config.width)
        x = hidden[:, -1:] + jnp.asarray(positions, hidden.dtype)
        for norm, layer in zip(self.decoder_norms, self.decoder, strict=False):
            x = jax.nn.gelu(layer(norm(x)), approximate=False)
        x = self.decoder_norms[-1](x)
        if targets is not None:  # levels learn in context, from the tokens that follow
            return self._losses(x, targets, self._output_table()), state
        return x, state
