"""Blocks whose parameters and states are stacked on axis 0, and read in their order."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from hope_jax.layers.attention import layer_of, with_layer
from hope_jax.layers.level_learning import Adaptation, FastWeights
from hope_jax.layers.mlp import MLPWeights
from hope_jax.models.blocks import Block, BlockGroup
from hope_jax.models.config import LanguageModelConfig
from hope_jax.models.wavefront import wavefront


def make_stack(config: LanguageModelConfig, length: int, parent: Any) -> Any:
    """A module of `length` blocks, which is called as one of them.

    With a pattern, what is stacked are groups of blocks.

    Args:
      config: of the model.
      length: number of blocks.
      parent: module that it belongs to; None for a module by itself.
    """
    stacked = nn.scan(
        _rematerialised(config),
        length=length // max(1, len(config.pattern)),
        # The second is filled only by `hope_jax.optim.dense_inputs`.
        variable_axes={"params": 0, "dense_inputs": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, 0, 0, 0),
        out_axes=0,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return stacked(config, parent=parent)


def _block(config: LanguageModelConfig) -> type[nn.Module]:
    return BlockGroup if config.pattern else Block


def _rematerialised(config: LanguageModelConfig) -> type[nn.Module]:
    """The block class under the config's policy of what the backward pass recomputes."""
    block = _block(config)
    if config.remat == "none":
        return block
    return nn.remat(block, policy=_kept(config), prevent_cse=False)


def _kept(config: LanguageModelConfig) -> Callable[..., Any] | None:
    """What of a block that is recomputed is not."""
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return dots if config.remat == "dots" else None


def read_token(
    config: LanguageModelConfig,
    params: Any,
    places: range,
    x: Float[Array, "B 1 D"],
    states: Any,
    reset: Bool[Array, "B 1"] | None,
    experts: Any = (),
    held: tuple[MLPWeights, ...] = (),
    fast: tuple[FastWeights, ...] | None = None,
) -> tuple[Float[Array, "B 1 D"], Any]:
    """As a stack, but for one token, which costs what it takes to move weights and states.

    Each block's own are taken from where they lie, and its state is put back there. A part of the
    stacked parameters, and a new stack of states, would be copied whole at every token.

    Args:
      config: of the model.
      params: of all blocks, stacked and without boxes.
      places: of the blocks, or groups of them, that read.
      x: input.
      states: of these blocks, stacked; so are the following.
      reset: True where the token starts a new document.
      experts: beside their levels.
      held: weights of their levels, in the place of the parameters.
      fast: weights of their levels for each sequence.

    Returns:
      Output and states.
    """
    block = _block(config)(config, parent=None)

    def one(carry: tuple[Array, Any], index: Array) -> tuple[tuple[Array, Any], None]:
        x, states = carry
        own = jax.tree.map(lambda w: w[places.start + index], params)
        state = layer_of(states, index)
        beside, weights, learnt = jax.tree.map(lambda leaf: leaf[index], (experts, held, fast))
        if weights:
            own = with_held(own, weights)
        output = block.apply({"params": own}, x, state, reset, learnt, None, beside)
        x, new = cast(tuple[Array, Any], output)
        if fast is not None:  # which hands back what its levels have read
            new = new._replace(continuum=state.continuum)
        return (x, with_layer(states, new, index)), None

    return jax.lax.scan(one, (x, states), jnp.arange(len(places)))[0]


def read_part(
    config: LanguageModelConfig,
    params: Any,
    x: Float[Array, "B P D"],
    reset: Bool[Array, "B P"] | None,
    axis: str,
    adaptation: Adaptation | None = None,
    experts: Any = (),
) -> Float[Array, "B P D"]:
    """As a stack that reads whole sequences, of which each device has one part (see `wavefront`).

    Args:
      config: of the model.
      params: of the blocks, stacked and without boxes.
      x: this device's part, which begins at an edge of all chunks.
      reset: True where a token starts a new document.
      axis: of the mesh, on whose devices the parts lie.
      adaptation: for levels that learn the local objective, stacked.
      experts: beside their levels.

    Returns:
      Output, of this part.
    """
    block = _block(config)(config, at_edge=True, parent=None)
    stacked = (params, adaptation, experts)

    def read(index: Array, x: Array, state: Any, reset: Any = reset) -> tuple[Array, Any]:
        own, *beside = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stacked
        )
        return block.apply({"params": own}, x, state, reset, None, *beside)

    def fresh(index: Array) -> Any:
        return read(index, x[:, :0], None, None)[1]

    stages = jax.tree.leaves(params)[0].shape[0]
    return wavefront(read, fresh, stages, x, axis, _kept(config))


def with_held(params: Any, weights: tuple[MLPWeights, ...]) -> Any:
    """Parameters of blocks, with other weights in the place of their levels' own.

    Args:
      params: of one block or several stacked, without boxes.
      weights: of each level of these blocks.
    """
    continuum = dict(params["continuum"])
    for level, maps in enumerate(weights):
        own = continuum[f"level_{level}"]
        kernels = {name: {**own[name], "kernel": w} for name, w in maps._asdict().items()}
        continuum[f"level_{level}"] = {**own, **kernels}
    return {**params, "continuum": continuum}
