"""Low-rank changes of named matrices (LoRA; Hu et al., 2021, arXiv 2106.09685)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hope_jax.optim.matrices import (
    MatrixAxes,
    WeightDimensionNumbers,
    is_axes,
    leaf_name,
    resolve_axes,
)


class LowRank(NamedTuple):
    """The change of a matrix, or of each in a stack: A B.

    Attributes:
      down: A.
      up: B.
    """

    down: Float[Array, "n D r"]
    up: Float[Array, "n r E"]


def init_low_rank(
    key: Array, params: Any, named: WeightDimensionNumbers, rank: int
) -> dict[str, LowRank]:
    """Changes that change nothing yet: A is random with variance 1 / D, B is zero.

    Args:
      key: random key.
      params: whose matrices are changed.
      named: which of them, and along which axes they are matrices; None for the others. It is what
        `hope_jax.optim.dimension_numbers_by_path` makes of patterns.
      rank: r.

    Returns:
      A change for each named array, by its path.

    Raises:
      ValueError: for a rank below 1, and where nothing is named.

    Example:
      >>> from optax.contrib import MuonDimensionNumbers
      >>> from hope_jax.optim import dimension_numbers_by_path
      >>> named = dimension_numbers_by_path([("up", MuonDimensionNumbers(1, 2)), ("", None)])
      >>> params = {"up": jnp.ones((3, 4, 8)), "norm": jnp.ones((3, 4))}
      >>> jax.tree.map(jnp.shape, init_low_rank(jax.random.key(0), params, named, rank=2))
      {'up': LowRank(down=(3, 4, 2), up=(3, 2, 8))}
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    changes = {}
    for name, leaf, axes in _matrices(params, named):
        key, own = jax.random.split(key)
        stacked, inputs, outputs = jax.eval_shape(axes.to_matrices, leaf).shape
        down = jax.random.normal(own, (stacked, inputs, rank)) / inputs**0.5
        changes[name] = LowRank(down, jnp.zeros((stacked, rank, outputs)))
    if not changes:
        raise ValueError("no parameter is named, so that there is nothing to change")
    return changes


def add_low_rank(
    params: Any, changes: Mapping[str, LowRank], named: WeightDimensionNumbers, alpha: float
) -> Any:
    """Parameters with `alpha / r A B` added to the named matrices.

    Args:
      params: of the model.
      changes: of `init_low_rank`, trained or not.
      named: what they were made with.
      alpha: scale of the changes at any rank.
    """
    changed = {}
    for name, leaf, axes in _matrices(params, named):
        down, up = changes[name]
        added = axes.from_matrices(alpha / down.shape[-1] * (down @ up), leaf)
        changed[name] = leaf + added.astype(leaf.dtype)
    return jax.tree.map_with_path(lambda path, leaf: changed.get(leaf_name(path), leaf), params)


def _matrices(params: Any, named: WeightDimensionNumbers) -> list[tuple[str, Any, MatrixAxes]]:
    """Name, array and axes of each named matrix."""
    axes = jax.tree.leaves(resolve_axes(named, params), is_leaf=is_axes)
    return [
        (leaf_name(path), leaf, of)
        for (path, leaf), of in zip(jax.tree.leaves_with_path(params), axes, strict=True)
        if isinstance(of, MatrixAxes)
    ]
