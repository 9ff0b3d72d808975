"""Triangles between the tokens of a chunk: how exact, and their inverse in matrix products only."""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

# Up to this size a matrix is inverted whole, above it by its two halves. A TPU multiplies matrices
# smaller than its registers no faster than those that fill them, and spends most of its time on
# cutting them out; a CPU counts every multiplication.
_WHOLE_ON_TPU, _WHOLE = 128, 8

# Name under which rematerialisation can keep an inverse: it is small, and a chain of dependent
# products to form again.
INVERSE = "unit_lower_inverse"


def triangle_precision(dtype: jnp.dtype) -> jax.lax.Precision:
    """Precision of the products between tokens of a chunk, whose operands are always float32.

    Args:
      dtype: of the operands of the large products. Next to those of bfloat16, three passes of it lose
        nothing; else nothing less than float32 will do.
    """
    small = jnp.dtype(dtype).itemsize < 4
    return jax.lax.Precision.HIGH if small else jax.lax.Precision.HIGHEST


def unit_lower_inverse(
    strict: Float[Array, "... C C"], precision: jax.lax.Precision = jax.lax.Precision.HIGHEST
) -> Float[Array, "... C C"]:
    r"""Inverts `I + L` for a strictly lower triangular `L`.

    Blocks of two have the inverse `I - L`; then the block size doubles with

    .. math:: \begin{pmatrix} A & 0 \\ N & B \end{pmatrix}^{-1} =
        \begin{pmatrix} A^{-1} & 0 \\ -B^{-1} N A^{-1} & B^{-1} \end{pmatrix}

    until one block is left. Everything is a batched matrix product, which every accelerator likes
    better than a substitution, and no power of the matrix is ever formed: with all keys of a
    chunk equal the result stays within float32 rounding. The derivative is the closed form
    `dT = -T dL T` (and its transpose), not that of the steps above.

    Args:
      strict: L, shape (..., C, C), float32 or float64, any C. Entries on and above the diagonal
        are ignored.
      precision: of the products.

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
    flat = jnp.tril(strict, -1).reshape(-1, size, size)
    return _inverse(flat, precision).reshape(strict.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _inverse(strict, precision):
    form = functools.partial(inverse_by_blocks, precision=precision)
    return jax.lax.platform_dependent(
        strict,
        tpu=functools.partial(form, whole=_WHOLE_ON_TPU),
        default=functools.partial(form, whole=_WHOLE),
    )


@_inverse.defjvp
def _inverse_jvp(precision, primals, tangents):
    inverse = checkpoint_name(_inverse(*primals, precision), INVERSE)
    dot = functools.partial(jnp.matmul, precision=precision)
    return inverse, -dot(dot(inverse, jnp.tril(tangents[0], -1)), inverse)


def inverse_by_blocks(
    strict: Float[Array, "B C C"], whole: int, precision: jax.lax.Precision
) -> Float[Array, "B C C"]:
    """Inverts `I + L` by its two halves as long as these are larger than `whole`, a power of two."""
    size = strict.shape[-1]
    dot = functools.partial(jnp.matmul, precision=precision)
    # Halves of halves must come out even; rows of zeros below add rows of the unit matrix.
    missing = 0 if size <= whole else (1 << (size - 1).bit_length()) - size
    strict = jnp.pad(strict, [(0, 0), (0, missing), (0, missing)])
    return _inverse_by_halves(strict, whole, dot)[:, :size, :size]


def _inverse_by_halves(strict, whole, dot):
    if strict.shape[-1] <= whole:
        return _whole_inverse(strict, dot)
    half = strict.shape[-1] // 2
    halves = jnp.concatenate([strict[:, :half, :half], strict[:, half:, half:]])
    top, bottom = jnp.split(_inverse_by_halves(halves, whole, dot), 2)
    corner = -dot(dot(bottom, strict[:, half:, :half]), top)
    above = jnp.concatenate([top, jnp.zeros_like(top)], axis=-1)
    return jnp.concatenate([above, jnp.concatenate([corner, bottom], axis=-1)], axis=-2)


def _whole_inverse(strict, dot):
    """The same without cutting: the inverses of all blocks of a size lie on one diagonal."""
    size = strict.shape[-1]

    row, column = (jax.lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))

    def corners(half, matrices):
        """What lies below the inverses of blocks of `half` inside blocks of twice that."""
        level = half.bit_length() - 1
        block, other = row >> level, column >> level
        return jnp.where((block > other) & (block >> 1 == other >> 1), matrices, 0)

    inverse = jnp.eye(size, dtype=strict.dtype) - corners(1, strict)
    half = 2
    while half < size:
        inverse -= dot(corners(half, dot(inverse, strict)), inverse)
        half *= 2
    return inverse
