"""Where on a mesh lies what a night goes through, so that each night finds it where the last one did.

Samples are split over the devices that share a batch, as the rows of a training step are: the model's own
constraints see to that. What stands here is what a reader has only one of.
"""

from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array

from hope_jax.layers.mlp import MLPWeights


@jax.jit
def lay_out(tree: Any) -> Any:
    """Levels lie as the weights that they change, (..., D, H), all else whole on every device.

    Without a mesh that is set, with its rules, it does nothing.

    Args:
      tree: of arrays: a lesson, or an expert with its optimiser's state.
    """

    def place(leaf: Array, *names: str) -> Array:
        return nn.with_logical_constraint(leaf, (*(None,) * (leaf.ndim - len(names)), *names))

    def placed(part: Any) -> Any:
        if not isinstance(part, MLPWeights):
            return place(part)
        gate, up = (place(w, "embed", "mlp") for w in (part.gate, part.up))
        return MLPWeights(gate, up, place(part.down, "mlp", "embed"))

    return jax.tree.map(placed, tree, is_leaf=lambda part: isinstance(part, MLPWeights))
