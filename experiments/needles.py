"""A small Hope that is trained on texts of some thousand bytes and asked about texts of millions.

    hope train --config=experiments/needles.py --workdir=runs/needles
    hope evaluate --workdir=runs/needles --suite=needles --set=kinds=S-1,S-2 \
        --set=lengths=1024,16384,262144,10000000

It keeps what it has read as long as it reads: nothing decays, and a write may be exactly nothing
(`gate_margin`), so that millions of tokens that are not to be remembered change nothing. Variants:
`needles.py:gated_delta_net`, as published, and `needles.py:attention`, which sees 512 tokens.
"""

from ml_collections import ConfigDict

from hope_jax.evaluation.probes import documents
from hope_jax.layers.family import FAMILY
from hope_jax.models import LanguageModelConfig
from hope_jax.models.parameter_count import match_parameter_count
from hope_jax.training.config import default_config, whole_config

VARIANTS = ("hope", "gated_delta_net", "attention")


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
    config.model.titans.update(
        network="matrix",
        objective="dot",
        adaptive=("k", "v"),
        generated_target=False,
        momentum="none",
        retention="none",
        strength="gate",
        gate_margin=0.05,
        memory_chunk=64,
        generator_chunk=64,
    )
    config.steps = 3000
    config.data.update(
        source=documents,
        arguments={
            "count": 20_000,
            "lengths": (450, 600, 1_000, 2_000),
            "kinds": ("S-1", "S-2"),
        },
        validation_fraction=0.01,
        sequence_length=2048,
        batch_size=4,
        reset_documents=True,
    )
    config.optimizer.update(name="m3", learning_rate=0.01, warmup_steps=50)
    config.checkpoint.every = config.evaluate.every = 250
    if variant == "hope":
        return whole_config(config)

    hope = LanguageModelConfig.from_config_dict(config.model)
    if variant == "attention":
        config.model.sequence_layer = "attention"
    else:
        config.model.titans = ConfigDict({**FAMILY[variant], "memory_chunk": 64})
    config.model.cms_levels = 1
    model = LanguageModelConfig.from_config_dict(config.model)
    config.model.mlp_width = match_parameter_count(model, hope).mlp_width
    return whole_config(config)
