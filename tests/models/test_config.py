import dataclasses

import ml_collections
import pytest

from hope_jax.models import LanguageModelConfig

SIZES = {"vocab_size": 11, "width": 8, "num_layers": 2, "num_heads": 2, "mlp_width": 12}


def test_a_config_dict_becomes_a_hashable_config():
    given = ml_collections.ConfigDict(
        {**SIZES, "titans": {"adaptive": ["k", "v"]}, "cms_levels": 2}
    )
    config = LanguageModelConfig.from_config_dict(given)
    assert config == LanguageModelConfig(**SIZES, titans={"adaptive": ("k", "v")}, cms_levels=2)
    assert config.titans_config.adaptive == ("k", "v")
    assert hash(config) == hash(dataclasses.replace(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widht": 8}, "unknown model setting 'widht'; nearest: width"),
        ({"zzz": 8}, "unknown model setting 'zzz'; known: vocab_size"),
        ({"width": 9}, "width 9 does not split into 2 heads"),
        ({"num_layers": 0}, "num_layers must be a positive integer, got 0"),
        ({"mlp_width": 12.0}, "mlp_width must be a positive integer, got 12.0"),
        (
            {"sequence_layer": "titan"},
            "sequence_layer must be one of titans, attention, memory_as_context, .*; got 'titan'",
        ),
        ({"cms_order": "slow"}, "cms_order must be one of"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16"),
        ({"remat": True}, "remat must be one of none, block, dots; got True"),
        ({"rope_base": 0.5}, "rope_base must be greater than 1, got 0.5"),
        ({"pattern": ("titans", "mamba")}, "pattern holds titans, attention"),
        ({"pattern": ("titans",) * 3}, "must be a multiple of the 3 blocks of pattern"),
        (
            {"pattern": ("titans",), "in_context": {"chunks": (4,)}},
            "needs blocks that are all alike",
        ),
        (
            {"titans": {"memory_chunks": 4}},
            "unknown titans setting 'memory_chunks'; nearest: memory",
        ),
        ({"titans": {"width": 4}}, "unknown titans setting 'width'; known: adaptive"),
        ({"titans": {"memory_chunk": 5}}, "memory_chunk 5 and others_chunk 64: one must divide"),
        ({"width": 6, "sequence_layer": "attention"}, "must be even; got 6 / 2 = 3"),
        ({"width": 6, "sequence_layer": "memory_as_gate"}, "must be even; got 6 / 2 = 3"),
        (
            {"sequence_layer": "memory_as_context", "attention_window": 96},
            "segment of 96 tokens is no multiple of the memory's chunk of 64",
        ),
        (
            {"sequence_layer": "memory_as_context", "num_kv_heads": 1},
            "leave out num_kv_heads and rope_scaling",
        ),
        ({"persistent_tokens": -1}, "persistent_tokens must not be negative, got -1"),
        ({"attention_kernel": "flash"}, "must be one of None, xla, cudnn; got 'flash'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        LanguageModelConfig.from_config_dict({**SIZES, **changes})


def test_missing_settings_are_named():
    with pytest.raises(ValueError, match="without a default are missing: num_heads, mlp_width"):
        LanguageModelConfig.from_config_dict({"vocab_size": 11, "width": 8, "num_layers": 2})
