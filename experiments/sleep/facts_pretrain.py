"""A small model that learns to be told facts and asked for them, in worlds that it will not meet again.

    hope train --config=experiments/sleep/facts_pretrain.py --workdir=runs/facts

0.15M parameters, byte level. Every sequence is one document of 256 bytes: facts about the people of a
world of its own, and then questions about them with answers. Worlds from `FIRST_NEW` on are never trained
on.

The levels of the last block learn while the model reads, which is most of what is known of a document:
a validation loss of 0.32 nats a byte after 500 steps, where the same model without them
(`--config.model.in_context=none`) is at 0.56 after 1,000. Of whom a fact is true was not told after 400
steps: the right answer was no likelier than that of another person in the text.
"""

from ml_collections import ConfigDict

from hope_jax.evaluation.world import documents
from hope_jax.layers.family import FAMILY
from hope_jax.training.config import default_config, whole_config

FIRST_NEW = 10_000  # number of the first world for which nothing was trained


def get_config() -> ConfigDict:
    """Returns the config."""
    config = default_config(
        vocab_size=256,  # every byte is a token
        width=64,
        num_layers=2,
        num_heads=4,
        mlp_width=128,
        cms_levels=2,
    )
    config.model.titans.update({**FAMILY["delta_net"], "memory_chunk": 32, "generator_chunk": 32})
    config.model.in_context = ConfigDict({"chunks": (32, 128), "blocks": 1})
    config.steps = 3000
    config.data.update(
        source=documents,
        arguments={"count": FIRST_NEW, "length": 256, "people": (2, 3), "kinds": (1,)},
        validation_fraction=0.01,
        sequence_length=256,
        batch_size=8,
    )
    config.optimizer.update(name="m3", learning_rate=0.02, warmup_steps=50)
    config.checkpoint.every = config.evaluate.every = 250
    config.evaluate.update(ngram_orders=(), sample_tokens=0)
    return whole_config(config)
