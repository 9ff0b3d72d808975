"""Optimisers of Nested Learning as Optax gradient transformations.

They need jax, optax and chex alone. `hope_jax.optim.dense_inputs`, which captures the inputs of
Flax layers, needs Flax as well and is imported by its own name.
"""

from hope_jax.optim.delta_gradient_descent import add_delta_decay, delta_gradient_descent
from hope_jax.optim.elastic_weights import (
    ElasticWeightsState,
    consolidate,
    diagonal_fisher,
    elastic_weights,
)
from hope_jax.optim.m3 import ScaleByM3State, adamuon, m3, scale_by_m3
from hope_jax.optim.matrices import (
    default_dimension_numbers,
    describe_weight_rules,
    dimension_numbers_by_path,
)
from hope_jax.optim.momentum import (
    GeneralizedMomentumState,
    MomentumMemory,
    deep_momentum,
    delta_momentum,
    dot_product,
    l2_regression,
    linear_memory,
    mlp_memory,
    preconditioned_momentum,
    scale_by_generalized_momentum,
)
from hope_jax.optim.multi_timescale import MultiTimescaleState, multi_timescale
from hope_jax.optim.newton_schulz import CUBIC, POLAR_EXPRESS, QUINTIC, newton_schulz

__all__ = [
    "CUBIC",
    "POLAR_EXPRESS",
    "QUINTIC",
    "ElasticWeightsState",
    "GeneralizedMomentumState",
    "MomentumMemory",
    "MultiTimescaleState",
    "ScaleByM3State",
    "adamuon",
    "add_delta_decay",
    "consolidate",
    "deep_momentum",
    "default_dimension_numbers",
    "delta_gradient_descent",
    "delta_momentum",
    "describe_weight_rules",
    "diagonal_fisher",
    "dimension_numbers_by_path",
    "dot_product",
    "elastic_weights",
    "l2_regression",
    "linear_memory",
    "m3",
    "mlp_memory",
    "multi_timescale",
    "newton_schulz",
    "preconditioned_momentum",
    "scale_by_generalized_momentum",
    "scale_by_m3",
]
