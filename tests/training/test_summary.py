"""What is said of a run before it begins."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.models.parameter_count import parameter_count
from hope_jax.training.chip import memory_in_use, peak_flops
from hope_jax.training.optimizer import split_leaves
from hope_jax.training.summary import parameters_by_part

SIZES = dict(vocab_size=32, width=16, num_layers=2, num_heads=2, mlp_width=16, cms_levels=2)
SIZES |= dict(sequence_layer="attention", tie_embeddings=False)
SIZES |= dict(in_context=dict(chunks=(4, 8), blocks=1))


@pytest.fixture(scope="module")
def params():
    model = LanguageModel(LanguageModelConfig(**SIZES))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return nn.unbox(shapes["params"])


def test_parameters_by_part(params):
    assert parameters_by_part(params) == {
        "embedding": 32 * 16,
        "sequence layers": 2 * 4 * 16 * 16,
        "levels (MLPs)": 2 * 2 * 3 * 16 * 16 + 2,  # and the steps of two levels
        "norms": 16 * (2 * 3 + 1),
        "head": 32 * 16,
    }
    assert sum(parameters_by_part(params).values()) == parameter_count(LanguageModelConfig(**SIZES))


def test_leaves_by_rule(params):
    rules = split_leaves("m3", params)
    assert list(rules) == ["as matrices under m3", "under AdamW"]
    # Maps of attention and of the two levels; tables, norms and steps.
    assert [len(leaves) for leaves in rules.values()] == [4 + 6, 2 + 4 + 1]
    assert sum(rules["as matrices under m3"]) == 2 * 4 * 16 * 16 + 2 * 2 * 3 * 16 * 16
    assert {how: len(leaves) for how, leaves in split_leaves("adamw", params).items()} == {
        "under adamw": 17
    }


def test_chips_and_memory():
    peaks = {"TPU v4": 275e12, "TPU v5p": 459e12, "TPU v5 lite": 197e12, "TPU v6 lite": 918e12}
    peaks |= {"NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA H100 80GB HBM3": 989e12}
    peaks |= {"NVIDIA H200": 989e12, "NVIDIA B200": 2250e12, "cpu": None, "TPU v4 lite": None}
    assert {kind: peak_flops(kind) for kind in peaks} == peaks

    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return self.peak and {"peak_bytes_in_use": self.peak, "bytes_in_use": 1}

    assert memory_in_use([Device(5), Device(7)]) == 7
    assert 1e7 < memory_in_use([Device(None)]) < 1e12  # of this process
