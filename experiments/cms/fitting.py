"""Training of the small models of these experiments."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from hope_jax.models import LanguageModel, LanguageModelConfig


class Batch(NamedTuple):
    """Token ids, one more than are read, and how much each prediction counts."""

    ids: np.ndarray  # (B, T + 1)
    weights: np.ndarray  # (B, T)


def fit(
    config: LanguageModelConfig,
    batches: Iterator[Batch],
    steps: int,
    seed: int,
    learning_rate: float = 3e-3,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[LanguageModel, Any]:
    """Trains with AdamW, a warm-up and a cosine."""
    model = LanguageModel(config)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, steps // 10, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    params = nn.unbox(
        jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))["params"]
    )

    def loss(params, batch):
        return jnp.sum(losses_of(model, params, batch.ids) * batch.weights) / batch.weights.sum()

    @jax.jit
    def step(params, state, batch):
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, recent = optimizer.init(params), []
    for index in range(steps):
        params, state, value = step(params, state, next(batches))
        recent.append(value)
        if (index + 1) % max(1, steps // 5) == 0:
            report(index + 1, float(np.mean(recent)))
            recent.clear()
    return model, params


def losses_of(model: LanguageModel, params: Any, ids: Any) -> jax.Array:
    """Losses in nats of all ids but the first."""
    return model.apply({"params": params}, ids[:, :-1], ids[:, 1:], method="token_losses")
