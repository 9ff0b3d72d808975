"""Newton-Schulz iteration: the orthogonal factor of a matrix by matrix products alone.

For `X = U S V^T` the iteration moves every singular value towards one and leaves U and V alone, so
it ends near `U V^T`. A step is an odd polynomial, `X <- a X + b (X X^T) X + c (X X^T)^2 X`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from optax import Updates

from hope_jax.optim.matrices import MatrixAxes, is_axes
from hope_jax.optim.precision import sum_dtype

Coefficients = Sequence[tuple[float, float, float]]
"""(a, b, c) of each step in turn; the last holds for all further steps."""

QUINTIC: Coefficients = ((3.4445, -4.7750, 2.0315),)
"""Steepest at zero: five steps bring all but the smallest singular values into 0.7 to 1.2."""

CUBIC: Coefficients = ((1.5, -0.5, 0.0),)
"""Eq. 44: converges to exactly one, but slowly; small singular values grow by 1.5 a step."""

# Optimal composition for singular values down to 1e-3, from the Polar Express paper's table. The
# cushion keeps rounding from pushing a singular value past the interval a step was made for.
_CUSHION = 1.01
POLAR_EXPRESS: Coefficients = tuple(
    (a / _CUSHION, b / _CUSHION**3, c / _CUSHION**5)
    for a, b, c in (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    )
) + ((1.875, -1.25, 0.375),)
"""Per-step coefficients that are optimal together (arXiv 2505.16932): closer to one, same cost."""


# Products of short sides between two looks at the whole matrix (`_iterate_gram`).
_STEPS_OF_GRAM = 3


def _scaled(x: jax.Array, sharded_over: tuple[str, ...] = ()) -> jax.Array:
    """Matrices over their norms."""
    # Dividing by the largest entry first keeps the norm of tiny or huge matrices in range; in
    # float16 even the reciprocal of that entry may lie outside.
    dtype, x = x.dtype, x.astype(sum_dtype(x))
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    if sharded_over:
        largest = jax.lax.pmax(largest, sharded_over)
    x = x / jnp.where(largest >= jnp.finfo(x.dtype).tiny, largest, 1)
    squared = jnp.sum(jnp.square(jnp.abs(x)), axis=(-2, -1), keepdims=True)
    if sharded_over:
        squared = jax.lax.psum(squared, sharded_over)
    # The largest entry is one, so the norm is at least that, except for the zero matrix.
    return (x * jax.lax.rsqrt(jnp.maximum(squared, 1))).astype(dtype)


def _iterate(
    x: jax.Array, per_step: Coefficients, precision: Any, sharded_over: tuple[str, ...] = ()
) -> jax.Array:
    """Runs the steps on (..., P, Q), P <= Q; Q may be sharded over mesh axes inside a shard_map."""
    x = _scaled(x, sharded_over)
    for a, b, c in per_step:
        gram = jnp.matmul(x, x.mT.conj(), precision=precision)
        if sharded_over:
            gram = jax.lax.psum(gram, sharded_over)
        polynomial = b * gram
        if c:
            polynomial += c * jnp.matmul(gram, gram, precision=precision)
        x = a * x + jnp.matmul(polynomial, x, precision=precision)
    return x


def _iterate_gram(x: jax.Array, per_step: Coefficients, precision: Any) -> jax.Array:
    """The same by products of the short side, for matrices (P, Q) at least twice as wide as high.

    With R = X X^T every step is X <- p(R) X, p(R) = a + b R + c R^2, and R <- p(R) R p(R), all of which
    commute. So the steps need R alone, and X only the product of the polynomials at the end: for Q = 4 P
    a third fewer operations. R has the squares of the singular values, whose rounding grows from step to
    step, so X is looked at again after every third. That is as exact as `_iterate` in float32, but not
    where products are of 16-bit numbers, which lose small singular values in R.
    """
    times = functools.partial(jnp.matmul, precision=precision)
    x = _scaled(x)
    for first in range(0, len(per_step), _STEPS_OF_GRAM):
        steps = per_step[first : first + _STEPS_OF_GRAM]
        gram, product = times(x, x.mT.conj()), None
        for number, (a, b, c) in enumerate(steps, 1):
            rest = b * gram + c * times(gram, gram) if c else b * gram  # p(R) - a
            if number < len(steps):
                gram = a * gram + times(gram, rest)
                gram = a * gram + times(rest, gram)
            if product is None:
                product = a * jnp.eye(x.shape[-2], dtype=x.dtype) + rest
            else:
                product = a * product + times(rest, product)
        x = times(product, x)
    return x


def _iterate_local(stack: jax.Array, per_step: Coefficients, precision: Any) -> jax.Array:
    """Runs the steps on a stack (N, P, Q) that is not split over devices."""
    steps = dict(per_step=per_step, precision=precision)
    # On the CPU a batched product is more than twice slower than one plain product after another, and
    # those of float32 have all their digits.
    _, p, q = stack.shape
    by_gram = q >= 2 * p and len(per_step) >= 3 and jnp.finfo(stack.dtype).bits >= 32
    one = functools.partial(_iterate_gram if by_gram else _iterate, **steps)
    return jax.lax.platform_dependent(
        stack,
        cpu=lambda matrices: jax.lax.map(one, matrices),
        default=functools.partial(_iterate, **steps),
    )


def _iterate_over_mesh(
    stack: jax.Array, per_step: Coefficients, precision: Any, axes: tuple[str, ...], devices: int
) -> jax.Array:
    """Runs the steps on a stack (N, P, Q) of matrices sharded in any way over a mesh.

    Left to the partitioner, a sharded iteration reduces the P x P Gram matrix over devices in each
    step. Moving the sharding to the stack axis makes the iteration local to a device; only the way
    in and the way out communicate. A matrix that is alone has no stack to share out: its long axis
    is sharded.
    """
    n, _, q = stack.shape
    if n == 1 and q % devices == 0:
        spec = PartitionSpec(None, None, axes)
        body = functools.partial(
            _iterate, per_step=per_step, precision=precision, sharded_over=axes
        )
        return jax.shard_map(body, in_specs=spec, out_specs=spec)(stack)

    # One mesh axis after the other: the partitioner knows an all-to-all for each, but gathers the
    # whole matrices when both of their axes have to move at once.
    free = PartitionSpec.UNCONSTRAINED
    way = [PartitionSpec(axes[:i], free, free) for i in range(1, len(axes))]
    spec = PartitionSpec(axes)
    body = functools.partial(_iterate_local, per_step=per_step, precision=precision)
    stack = jnp.pad(stack, ((0, -n % devices), (0, 0), (0, 0)))
    for partial in way:
        stack = jax.lax.with_sharding_constraint(stack, partial)
    # The check of what varies over the mesh does not know platform_dependent.
    stack = jax.shard_map(body, in_specs=spec, out_specs=spec, check_vma=False)(stack)
    for partial in reversed(way):
        stack = jax.lax.with_sharding_constraint(stack, partial)
    return stack[:n]


def _iterate_stack(stack: jax.Array, per_step: Coefficients, precision: Any) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
        return _iterate_local(stack, per_step, precision)
    axes = tuple(name for name, size in mesh.shape.items() if size > 1)
    return _iterate_over_mesh(stack, per_step, precision, axes, mesh.size)


def steps_of(steps: int, coefficients: Coefficients) -> Coefficients:
    """The coefficients of each step in turn, or a ValueError that says what is wrong with them."""
    if not isinstance(steps, int):
        raise ValueError(
            f"the number of Newton-Schulz steps must be a Python int, got {steps}: under "
            "inject_hyperparams name it in static_args."
        )
    shape = np.shape(coefficients)
    if steps < 0 or len(shape) != 2 or shape[0] == 0 or shape[1] != 3:
        raise ValueError(
            "expected a number of steps >= 0 and coefficients ((a, b, c), ...), got "
            f"steps={steps} and coefficients={coefficients}."
        )
    return tuple(coefficients[min(i, len(coefficients) - 1)] for i in range(steps))


def newton_schulz(
    x: chex.Array,
    steps: int = 5,
    coefficients: Coefficients = QUINTIC,
    *,
    precision: jax.lax.PrecisionLike = None,
) -> chex.Array:
    r"""Approximates the orthogonal factor :math:`U V^\top` of each matrix :math:`U S V^\top`.

    After division by the Frobenius norm each step applies (Eq. 44, and its quintic form)

    .. math::
      X \leftarrow a X + b (X X^\top) X + c (X X^\top)^2 X

    on the short side of the matrix, whichever it is; of a complex matrix the conjugate transpose is
    taken. The result does not depend on the scale of `x`; a zero matrix stays zero. Under a mesh
    set by `jax.set_mesh` a stack of matrices is shared out over the devices and each is iterated on
    one device.

    Args:
      x: Matrices of shape (..., P, Q), P and Q in any order; leading axes are a batch.
      steps: Number of steps; with 0 `x` is returned as it is.
      coefficients: (a, b, c) of each step, the last repeated as needed: `QUINTIC`, `CUBIC`,
        `POLAR_EXPRESS` or your own.
      precision: Precision of the matrix products, as in `jax.numpy.matmul`.

    Returns:
      An array of the shape and dtype of `x`.

    Raises:
      ValueError: Fewer than two axes, negative or traced steps, or malformed coefficients.

    Examples:
      >>> import jax.numpy as jnp
      >>> from hope_jax.optim import CUBIC, newton_schulz
      >>> x = jnp.array([[3.0, 0.0, 4.0], [0.0, 2.0, 0.0]])
      >>> print(newton_schulz(x, steps=20, coefficients=CUBIC).round(3))
      [[0.6 0.  0.8]
       [0.  1.  0. ]]

    References:
      Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024

      Amsel et al., `The Polar Express <https://arxiv.org/abs/2505.16932>`_, 2025
    """
    per_step = steps_of(steps, coefficients)
    if x.ndim < 2:
        raise ValueError(f"newton_schulz expects matrices (..., P, Q), got shape {x.shape}.")
    if not per_step or x.size == 0:
        return x
    transposed = x.shape[-2] > x.shape[-1]
    matrices = x.mT if transposed else x
    stack = matrices.reshape((-1, *matrices.shape[-2:]))
    result = _iterate_stack(stack, per_step, precision).reshape(matrices.shape)
    return result.mT if transposed else result


def _orthogonalize_leaves(
    leaves: list[jax.Array],
    axes: list[MatrixAxes],
    steps: int,
    coefficients: Coefficients,
    precision,
) -> list[jax.Array]:
    groups: dict[Any, list[tuple[int, jax.Array, bool]]] = {}
    for index, (leaf, leaf_axes) in enumerate(zip(leaves, axes, strict=True)):
        matrices = leaf_axes.to_matrices(leaf)
        transposed = matrices.shape[-2] > matrices.shape[-1]
        matrices = matrices.mT if transposed else matrices
        key = (matrices.shape[-2:], matrices.dtype)
        groups.setdefault(key, []).append((index, matrices, transposed))
    results: list[Any] = [None] * len(leaves)
    for members in groups.values():
        stack = jnp.concatenate([matrices for _, matrices, _ in members])
        stack = newton_schulz(stack, steps, coefficients, precision=precision)
        start = 0
        for index, matrices, transposed in members:
            part = stack[start : start + len(matrices)]
            start += len(matrices)
            results[index] = axes[index].from_matrices(
                part.mT if transposed else part, like=leaves[index]
            )
    return results


def orthogonalize(
    updates: Updates,
    axes: Any,
    steps: int = 5,
    coefficients: Coefficients = QUINTIC,
    *,
    precision: jax.lax.PrecisionLike = None,
) -> Updates:
    """Applies `newton_schulz` to every weight matrix of a tree, equal shapes in one call.

    Args:
      updates: A tree whose leaves are all weight matrices or stacks of them.
      axes: What `resolve_axes` made of the tree.
      steps: See `newton_schulz`.
      coefficients: See `newton_schulz`.
      precision: See `newton_schulz`.

    Returns:
      A tree like `updates`.
    """
    leaves, treedef = jax.tree.flatten(updates)
    if not leaves or not steps_of(steps, coefficients):
        return updates
    run = functools.partial(
        _orthogonalize_leaves,
        axes=jax.tree.leaves(axes, is_leaf=is_axes),
        steps=steps,
        coefficients=coefficients,
        precision=precision,
    )
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit in mesh.axis_types:
        # Shardings that are part of a type forbid most reshapes and stacks: let the partitioner
        # place the inside and promise only that each result lies as its input did.
        run = jax.sharding.auto_axes(
            run, out_sharding=[jax.typeof(leaf).sharding for leaf in leaves]
        )
    return jax.tree.unflatten(treedef, run(leaves))
