"""A pre-trained Llama whose upper MLPs go on learning while they read (section 7.3).

    hope convert --from_llama=FOLDER --workdir=runs/llama \
        --config=experiments/stacked_llama.py
    hope train --workdir=runs/llama

Sizes come from the checkpoint. The blocks of the last quarter learn in context, those below at
every 64 tokens and those above at every 512; training tunes their steps, and all weights, for it.
"""

import pathlib

from ml_collections import ConfigDict

from hope_jax.runs.config_file import load_config_file
from hope_jax.training.config import whole_config


def get_config() -> ConfigDict:
    """Returns the config; of its model, the sizes are placeholders."""
    path = pathlib.Path(__file__).with_name("quickstart.py")
    config = load_config_file(path).get_config("transformer")
    config.model.num_layers = 32
    config.model.attention_window = 1024  # what attention sees; the levels are for the rest
    config.model.attention_sinks = 1  # but for the first token, which pre-trained models lean on
    config.model.in_context = ConfigDict(
        {"chunks": (64, 512), "step_size": 0.1, "largest_change": 3e-4}
    )
    config.model.remat = "block"
    config.data.sequence_length = 2048
    config.data.batch_size = 4
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-5
    config.steps = 1000
    return whole_config(config)
