"""Rotary position embedding whose angles are exact at every 32-bit position."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hope_jax.settings import check_fields, setting


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """How frequencies were lowered for contexts longer than those of pre-training.

    Raises:
      ValueError: on construction, for values that do not fit each other.
    """

    # "linear" divides all frequencies by `factor`; "llama3" those whose wave is longer than
    # `original_context / low_frequency` and, going over smoothly, none whose wave is shorter than
    # `original_context / high_frequency`.
    kind: Literal["linear", "llama3"] = setting("all frequencies alike, or the low ones")
    factor: float = setting("by which they are divided", least=1)
    low_frequency: float = setting("of llama3: waves in the original context", 1.0, above=0)
    high_frequency: float = setting("of llama3: waves in the original context", 4.0, above=0)
    original_context: int = setting("tokens", 8192, least=1)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.low_frequency < self.high_frequency:
            raise ValueError(
                f"low_frequency={self.low_frequency} must be below "
                f"high_frequency={self.high_frequency}"
            )


def rotary_frequencies(
    head_dim: int, base: float, scaling: RotaryScaling | None = None
) -> np.ndarray:
    """Radians a token, `base^(-2f / head_dim)` before scaling, one for each pair of channels.

    Args:
      head_dim: width of a head, even; there are `F = head_dim / 2` frequencies.
      base: ratio that sets the longest wavelength, 10,000 in the original.
      scaling: how they are lowered, if at all.

    Returns:
      Frequencies, float64, shape (F,).

    Example:
      >>> rotary_frequencies(4, 10_000.0).tolist()
      [1.0, 0.01]
      >>> rotary_frequencies(4, 10_000.0, RotaryScaling("linear", 2.0)).tolist()
      [0.5, 0.005]
    """
    frequencies = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    waves = scaling.original_context * frequencies / (2 * np.pi)  # in the original context
    kept = (waves - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
    kept = np.clip(kept, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotary_angles(positions: Int[Array, "..."], frequencies: np.ndarray) -> Float[Array, "... F"]:
    """Angles `position * frequency`, up to whole turns.

    A float32 product of position and frequency is off by 4e-3 radians at position 100,000. The
    frequency is kept in turns instead, as a 48-bit fixed-point fraction, and the product is formed
    in unsigned integers, where overflow drops exactly the whole turns. The error is below 1e-6
    radians at any non-negative int32 position.

    Args:
      positions: absolute positions, non-negative integers of any shape.
      frequencies: from `rotary_frequencies`, shape (F,).

    Returns:
      Angles in [-pi, pi), float32, shaped as `positions` with one more axis of size F.
    """
    turns = frequencies / (2 * np.pi)
    fixed = np.round(turns * 2.0**48).astype(np.uint64)
    high = jnp.asarray((fixed >> np.uint64(16)).astype(np.uint32))
    low = jnp.asarray((fixed & np.uint64(0xFFFF)).astype(np.uint32))
    position = positions.astype(jnp.uint32)[..., None]
    # position * low / 2^16, in halves so that no intermediate needs more than 32 bits.
    carried = (position >> 16) * low + (((position & 0xFFFF) * low) >> 16)
    phase = position * high + carried
    return phase.astype(jnp.int32).astype(jnp.float32) * np.float32(2 * np.pi / 2.0**32)


def apply_rotary(
    x: Float[Array, "B T H N"], positions: Int[Array, "B T"], frequencies: np.ndarray
) -> Float[Array, "B T H N"]:
    """Rotates channel pairs `(n, n + N/2)` of every head by the angle of the token's position.

    Args:
      x: queries or keys.
      positions: absolute position of every token.
      frequencies: from `rotary_frequencies`, shape (N / 2,).

    Returns:
      Rotated array of the shape and dtype of `x`.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> x = jnp.ones((1, 1, 1, 2))
      >>> apply_rotary(x, jnp.zeros((1, 1), jnp.int32), np.ones(1)).tolist()
      [[[[1.0, 1.0]]]]
    """
    angles = rotary_angles(positions, frequencies)[:, :, None, :]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x, 2, axis=-1)
    rotated = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
