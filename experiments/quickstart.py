"""A small Hope model, byte level, on the source files of the running Python's standard library.

    hope train --config=experiments/quickstart.py --workdir=runs/quickstart

Some four to eight minutes on two CPU cores, to 1.86 bits per byte on 40 batches spread over the
validation part (on the whole of it a 3-gram has 2.49, a 4-gram 2.03).

What is set here is what differs from the defaults; all settings, with their meaning and range:

    hope train --config=experiments/quickstart.py --print_config

Variants of the same parameter count: `quickstart.py:hope_attention`, `quickstart.py:transformer`, and
`quickstart.py:learning`, Hope-Attention whose last block goes on learning while it reads.
"""

from ml_collections import ConfigDict

from hope_jax.models import LanguageModelConfig
from hope_jax.models.parameter_count import match_parameter_count
from hope_jax.training.config import default_config, whole_config

VARIANTS = ("hope", "hope_attention", "transformer", "learning")


def get_config(variant: str = "hope") -> ConfigDict:
    """Returns the config of a variant."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(VARIANTS)}")
    config = default_config(
        vocab_size=256,  # every byte is a token
        width=128,
        num_layers=2,
        num_heads=4,
        mlp_width=256,
        cms_levels=2,
        attention_window=512,
    )
    # Matrix memories learn two to three times as many bytes a second on a CPU as the residual MLPs
    # that are the default.
    config.model.titans.update(
        network="matrix", memory_chunk=64, generator_chunk=64, initial_alpha=0.999
    )
    # A tenth of the documents is held out; files are far longer than a sequence, so that few
    # sequences hold a boundary at which data.reset_documents would count.
    config.steps = 700
    config.data.update(sequence_length=512, batch_size=8)
    config.optimizer.update(name="m3", learning_rate=0.02, warmup_steps=20)
    config.checkpoint.every = config.evaluate.every = 100
    config.evaluate.ngram_orders = (3, 4)
    if variant == "hope":
        return config

    hope = LanguageModelConfig.from_config_dict(config.model)
    config.model.sequence_layer = "attention"
    if variant == "transformer":
        config.model.cms_levels = 1
    if variant == "learning":
        config.model.in_context = ConfigDict({"chunks": (64, 512), "blocks": 1})
        config.data.update(sequence_length=2048, batch_size=2)
    model = LanguageModelConfig.from_config_dict(config.model)
    config.model.mlp_width = match_parameter_count(model, hope).mlp_width
    return whole_config(config)
