"""A small model, and two readers of it who have read different texts."""

import functools

import jax
import numpy as np
import optax
from flax import linen as nn

from hope_jax.inference.sampling import read
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.sleep.config import SleepConfig

VOCAB, READERS = 7, 2
CONFIG = LanguageModelConfig(
    vocab_size=VOCAB,
    width=4,
    num_layers=2,
    num_heads=1,
    mlp_width=6,
    sequence_layer="attention",
    attention_window=4,
    cms_levels=2,
    in_context={"chunks": (2, 4), "blocks": 1},
)
SETTINGS = SleepConfig(
    experts=2, expert_width=3, steps=2, samples=2, tokens=5, temperature=0.0, a=0.5
)
OPTIMIZER = optax.adam(0.1)
TEXT = np.random.default_rng(0).integers(VOCAB, size=(READERS, 7))


@functools.cache
def made():
    """The model, its parameters, and what the readers have read."""
    model = LanguageModel(CONFIG)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), TEXT)["params"])
    return model, params, read(model, params, TEXT)


def assert_same(ours, theirs):
    """To the bit."""
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
