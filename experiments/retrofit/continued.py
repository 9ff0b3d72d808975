"""Continued training of a Llama whose attention sees 256 tokens and the first, with levels and without.

    hope convert --from_llama=runs/smollm2 --workdir=runs/retrofit/levels \
        --config=experiments/retrofit/continued.py:levels
    hope train --workdir=runs/retrofit/levels

and the same with `plain` in both places: same weights, same tokens in the same order, no levels. A run
that was stopped goes on by the same `hope train`. Run both from the folder of the repository. Sizes come
from the checkpoint. 300 steps are 614,400 tokens.
"""

import pathlib

from ml_collections import ConfigDict

from hope_jax.runs.config_file import load_config_file
from hope_jax.training.config import whole_config

VARIANTS = ("plain", "levels")


def get_config(variant: str = "plain") -> ConfigDict:
    """Returns the config; of its model, the sizes are placeholders."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known are {', '.join(VARIANTS)}")
    path = pathlib.Path(__file__).parents[1] / "quickstart.py"
    config = load_config_file(path).get_config("transformer")
    config.model.num_layers = 32
    config.model.attention_window = 256
    config.model.attention_sinks = 1
    if variant == "levels":
        config.model.in_context = ConfigDict(
            {"blocks": 8, "chunks": (64,), "step_size": 0.1, "largest_change": 3e-4}
        )
    config.model.remat = "block"  # 12 GB without
    config.steps = 300
    config.data.update(
        source="experiments.retrofit.documents.training", sequence_length=2048, batch_size=1
    )
    config.optimizer.update(name="adamw", learning_rate=3e-5, warmup_steps=20, weight_decay=0.0)
    config.checkpoint.every = 50
    config.evaluate.update(every=100, batches=8, final_batches=16, ngram_orders=(), sample_tokens=0)
    return whole_config(config)
