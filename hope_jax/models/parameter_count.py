"""Sizes of models and of their states, counted without making them."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from hope_jax.models.config import LanguageModelConfig
from hope_jax.models.language_model import LanguageModel
from hope_jax.models.own_layer import is_own


def without_kernels(config: LanguageModelConfig) -> LanguageModelConfig:
    """The config with its memories' chunks in a scan, which has the same parameters and states.

    Whether they are to run in a kernel would be asked of the devices, and would start them.
    """
    return dataclasses.replace(config, titans={**config.titans, "memory_form": "xla"})


def parameter_shapes(model: LanguageModel) -> Any:
    """Shapes and dtypes of a model's parameters, as `jax.ShapeDtypeStruct`."""
    return nn.unbox(boxed_shapes(model))


def boxed_shapes(model: LanguageModel) -> Any:
    """The same, boxed with the names of their axes."""
    config = model.config
    own = type(model) is not LanguageModel or any(
        is_own(str(name)) for name in config.pattern or (config.sequence_layer,)
    )
    # What is of this package alone makes its parameters without a token to read, in half the time.
    tokens = jax.ShapeDtypeStruct((1, int(own)), jnp.int32)
    model = model.clone(config=without_kernels(config))
    # A real key would start the devices, and processes of a launch must meet before that.
    key = jax.eval_shape(jax.random.key, 0)
    return jax.eval_shape(model.init, key, tokens)["params"]


@functools.lru_cache
def parameter_count(config: LanguageModelConfig) -> int:
    """Number of parameters of the model that `config` describes.

    Example:
      >>> config = LanguageModelConfig(
      ...     vocab_size=10, width=4, num_layers=1, num_heads=1, mlp_width=8,
      ...     sequence_layer="attention",
      ... )
      >>> parameter_count(config)  # 40 embedding + 64 attention + 96 MLP + 12 norms
      212
    """
    shapes = parameter_shapes(LanguageModel(config))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@functools.lru_cache
def state_bytes(config: LanguageModelConfig, length: int = 1) -> int:
    """Bytes that one sequence carries on after so many tokens."""
    model = LanguageModel(config)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    read: Any = lambda params, tokens: model.apply({"params": params}, tokens)
    state = jax.eval_shape(read, parameter_shapes(model), tokens)[1]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def match_parameter_count(
    config: LanguageModelConfig, reference: LanguageModelConfig | int, tolerance: float = 0.02
) -> LanguageModelConfig:
    """`config` with the `mlp_width` that gives it as many parameters as `reference` has.

    Of the widths within the tolerance it takes the one nearest the exact solution that is a
    multiple of the largest power of two up to 128, since matrix units work in tiles.

    Args:
      config: all but its `mlp_width` stays.
      reference: a config, or a number of parameters.
      tolerance: largest relative difference.

    Returns:
      The matched config.

    Raises:
      ValueError: if no width matches, as where the rest of the model is larger already.
    """
    target = reference if isinstance(reference, int) else parameter_count(reference)
    one, two = (parameter_count(dataclasses.replace(config, mlp_width=w)) for w in (1, 2))
    per_unit = two - one  # the count is affine in the width
    for multiple in (128, 64, 32, 16, 8, 4, 2, 1):
        width = multiple * max(1, round((target - one + per_unit) / (per_unit * multiple)))
        if abs(one + (width - 1) * per_unit - target) <= tolerance * target:
            return dataclasses.replace(config, mlp_width=width)
    raise ValueError(
        f"no mlp_width brings the model within {tolerance:.1%} of {target:,} parameters: with "
        f"mlp_width 1 it has {one:,}, and each unit adds {per_unit:,}; change width or num_layers"
    )
