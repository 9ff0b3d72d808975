"""The inverse of a unit lower triangular matrix, as matrix products only."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

# Inside a block of this size the product form below is used. Its powers grow binomially with the
# block's size when the rows of a chunk resemble each other; at 8 they are still harmless in float32.
_BLOCK = 8

# Name under which rematerialisation can keep an inverse: it is small, and a chain of dependent
# products to form again.
INVERSE = "unit_lower_inverse"


def unit_lower_inverse(strict: Float[Array, "... C C"]) -> Float[Array, "... C C"]:
    r"""Inverts `I + L` for a strictly lower triangular `L`.

    Blocks of 8 are inverted by `(I - L)(I + L^2)(I + L^4)`, which is exact because `L` is
    nilpotent; then the block size doubles with

    .. math:: \begin{pmatrix} A & 0 \\ N & B \end{pmatrix}^{-1} =
        \begin{pmatrix} A^{-1} & 0 \\ -B^{-1} N A^{-1} & B^{-1} \end{pmatrix}

    until one block is left. Everything is a batched matrix product, which every accelerator likes
    better than a substitution, and no power of the whole matrix is ever formed: with all keys of a
    chunk equal the result stays within float32 rounding. The derivative is the closed form
    `dT = -T dL T` (and its transpose), not that of the steps above.

    Args:
      strict: L, shape (..., C, C), float32 or float64, any C. Entries on and above the diagonal
        are ignored.

    Returns:
      `(I + L)^-1`, same shape and dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> unit_lower_inverse(jnp.array([[0.0, 0.0], [0.5, 0.0]])).tolist()
      [[1.0, 0.0], [-0.5, 1.0]]
    """
    # One axis holds all matrices and their blocks of all depths: XLA's CPU backend ends the process
    # at rank 8, and its TPU backend lays axes of length 1 out as if they were long.
    size = strict.shape[-1]
    return _inverse(jnp.tril(strict, -1).reshape(-1, size, size)).reshape(strict.shape)


@jax.custom_jvp
def _inverse(strict):
    size = strict.shape[-1]
    padded = _BLOCK
    while padded < size:
        padded *= 2
    if _BLOCK < size < padded:
        missing = padded - size
        strict = jnp.pad(strict, [(0, 0)] * (strict.ndim - 2) + [(0, missing), (0, missing)])
        return _inverse(strict)[..., :size, :size]
    if size <= _BLOCK:
        identity = jnp.eye(size, dtype=strict.dtype)
        square = _dot(strict, strict)
        fourth = _dot(square, square)
        return _dot(_dot(identity - strict, identity + square), identity + fourth)
    half = size // 2
    diagonal = [strict[..., :half, :half], strict[..., half:, half:]]
    top, bottom = jnp.split(_inverse(jnp.concatenate(diagonal, axis=-3)), 2, axis=-3)
    corner = -_dot(_dot(bottom, strict[..., half:, :half]), top)
    return jnp.concatenate(
        [
            jnp.concatenate([top, jnp.zeros_like(top)], axis=-1),
            jnp.concatenate([corner, bottom], axis=-1),
        ],
        axis=-2,
    )


@_inverse.defjvp
def _inverse_jvp(primals, tangents):
    inverse = checkpoint_name(_inverse(*primals), INVERSE)
    return inverse, -_dot(_dot(inverse, jnp.tril(tangents[0], -1)), inverse)


def _dot(left, right):
    # The inverse is needed to float32 accuracy whatever the default precision of the platform.
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
