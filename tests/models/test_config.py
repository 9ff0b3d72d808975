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
    # Written out or not, a default is the same.
    assert config == dataclasses.replace(
        config, titans={"adaptive": {"k", "v"}, "memory_chunk": 16, "expansion": 1}
    )
    assert hash(config) == hash(dataclasses.replace(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widht": 8}, "model.widht is no setting; nearest: width"),
        ({"zzz": 8}, "model.zzz is no setting; there are vocab_size"),
        ({"width": 9}, "width 9 does not split into 2 heads"),
        ({"num_layers": 0}, "model.num_layers=0 must be a whole number at least 1"),
        ({"mlp_width": 12.0}, "model.mlp_width=12.0 must be a whole number at least 1"),
        (
            {"sequence_layer": "titan"},
            "sequence_layer='titan' must be one of titans, attention, .*; the default is 'titans'",
        ),
        ({"cms_order": "slow"}, "cms_order='slow' must be one of"),
        ({"dtype": "float16"}, "dtype='float16' must be one of float32, bfloat16"),
        ({"remat": True}, "remat=True must be one of none, block, dots"),
        ({"rope_base": 0.5}, "rope_base=0.5 must be a finite number above 1"),
        (
            {"pattern": ("titans", "mamba")},
            "model.pattern=.* must be a tuple, each one of titans, attention",
        ),
        ({"pattern": ("titans",) * 3}, "must be a multiple of the 3 blocks of pattern"),
        (
            {"pattern": ("titans",), "in_context": {"chunks": (4,)}},
            "needs blocks that are all alike",
        ),
        (
            {"titans": {"memory_chunks": 4}},
            "model.titans.memory_chunks is no setting; nearest: memory_chunk",
        ),
        ({"titans": {"width": 4}}, "model.titans.width is no setting; there are adaptive"),
        (
            {"titans": {"memory_chunk": 5}},
            "model.titans: memory_chunk 5 and generator_chunk 64: one must divide",
        ),
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
        (
            {"sequence_layer": "attention", "attention_sinks": 2, "persistent_tokens": 1},
            "attention_sinks=2 is for attention that has a window, .* and no persistent_tokens",
        ),
        (
            {"sequence_layer": "memory_as_context", "attention_sinks": 1},
            "attention_sinks=1 is for attention that has a window, which memory_as_context has not",
        ),
        ({"norm_epsilon": float("nan")}, "norm_epsilon=nan must be a finite number above 0"),
        ({"norm_epsilon": 10**400}, "norm_epsilon=1000.* must be a finite number above 0"),
        ({"rope_base": float("inf")}, "rope_base=inf must be a finite number above 1"),
        ({"tie_embeddings": 1}, "tie_embeddings=1 must be True or False"),
        ({"width": "8"}, "width='8' must be a whole number"),
        ({"num_layers": True}, "num_layers=True must be a whole number"),
        (
            {"cms_levels": None},
            "cms_levels=None must be a whole number at least 1; the default is 1",
        ),
        ({"titans": None}, "titans=None must be a section"),
        (
            {"titans": {"eta_max": 3}},
            "model.titans.eta_max=3 must be a number above 0 and at most 2 or None",
        ),
        ({"titans": {"adaptive": ["x"]}}, "titans.adaptive=.'x'.* each one of k, v, q, eta, alpha"),
        ({"in_context": {"chunks": []}}, "model.in_context: chunks is empty"),
        ({"in_context": {"step_size": (1.0, -1.0)}}, "step_size=.* a finite number at least 0"),
        ({"rope_scaling": {"kind": "linear"}}, "model.rope_scaling.factor must be given"),
        (
            {"persistent_tokens": -1},
            "persistent_tokens=-1 must be a whole number at least 0; the default is 0",
        ),
        (
            {"attention_kernel": "flash"},
            "attention_kernel='flash' must be one of xla, cudnn or None",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        LanguageModelConfig.from_config_dict({**SIZES, **changes})


def test_missing_settings_are_named():
    with pytest.raises(
        ValueError, match="model.num_heads must be given: heads of the sequence layer"
    ):
        LanguageModelConfig.from_config_dict({"vocab_size": 11, "width": 8, "num_layers": 2})
