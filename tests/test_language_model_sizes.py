"""The configs of `experiments/language_model.py`."""

import itertools

import pytest

from hope_jax.models import LanguageModelConfig
from hope_jax.models.parameter_count import parameter_count
from hope_jax.runs.config_file import load_config_file
from tests.training.runs import QUICKSTART

MODULE = load_config_file(QUICKSTART.with_name("language_model.py"))
# Every layer at some size, and every size of Hope and of the Transformer.
PAIRS = {
    *zip(MODULE.LAYERS, itertools.cycle(MODULE.SIZES), strict=False),
    *itertools.product(("transformer", "hope"), MODULE.SIZES),
}


@pytest.mark.parametrize(("layer", "size"), sorted(PAIRS))
def test_models_of_a_size_have_the_same_number_of_parameters(layer, size):
    config = MODULE.model_config(layer, size)
    wanted = MODULE.SIZES[size].parameters
    assert abs(parameter_count(config) / wanted - 1) <= 0.02


def test_configs_are_whole_and_say_the_paper_s_numbers():
    for size, tokens in (("760m", 30e9), ("1.3b", 100e9)):
        config = MODULE.get_config(f"hope-{size}")
        batch = config.data.batch_size * config.data.sequence_length
        assert abs(config.steps * batch / tokens - 1) < 1e-4
        assert (config.model.vocab_size, config.optimizer.name) == (32_000, "adamw")
        model = LanguageModelConfig.from_config_dict(config.model)
        assert model == MODULE.model_config("hope", size)
    layers = MODULE.get_config("memory_as_context-tiny").model
    assert (layers.sequence_layer, layers.persistent_tokens) == ("memory_as_context", 16)
    assert MODULE.get_config("hybrid-tiny").model.pattern == ("titans", "titans", "attention")
    for variant, message in (("hop-tiny", "unknown layer 'hop'"), ("hope-2b", "unknown size '2b'")):
        with pytest.raises(ValueError, match=message):
            MODULE.get_config(variant)
