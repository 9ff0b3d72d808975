import dataclasses

import pytest

from hope_jax.models import LanguageModelConfig
from hope_jax.models.parameter_count import match_parameter_count, parameter_count

TRANSFORMER = LanguageModelConfig(
    vocab_size=100, width=64, num_layers=2, num_heads=2, mlp_width=192, sequence_layer="attention"
)


def transformer_count(config):
    attention = 4 * config.width**2 + config.width
    mlp = config.cms_levels * (3 * config.width * config.mlp_width + config.width)
    tables = 1 if config.tie_embeddings else 2
    embedding = tables * config.vocab_size * config.width
    return config.num_layers * (attention + mlp) + embedding + config.width


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"cms_levels": 3}], ids=str)
def test_counts_by_hand(changes):
    config = dataclasses.replace(TRANSFORMER, **changes)
    assert parameter_count(config) == transformer_count(config)


@pytest.mark.parametrize(
    "changes", [{"cms_levels": 4}, {"num_layers": 3}, {"sequence_layer": "titans"}], ids=str
)
def test_matched_within_two_per_cent(changes):
    target = parameter_count(TRANSFORMER)
    matched = match_parameter_count(dataclasses.replace(TRANSFORMER, **changes), TRANSFORMER)
    assert abs(parameter_count(matched) / target - 1) <= 0.02
    assert matched.mlp_width != TRANSFORMER.mlp_width
    assert dataclasses.replace(matched, mlp_width=192) == dataclasses.replace(
        TRANSFORMER, **changes
    )


def test_a_model_that_is_too_large_already_is_refused():
    with pytest.raises(ValueError, match=r"within 2\.0% of 1,000 parameters"):
        match_parameter_count(TRANSFORMER, 1000)
