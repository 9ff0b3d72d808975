"""The loss of a step of a night, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.seeding import _loss, _Said


def test_the_loss_mixes_distillation_on_both_and_reward():
    random = np.random.default_rng(0)
    size, continuations, length = 2, 3, 5
    rows = size * (1 + continuations)
    divergence, log_probability = random.random((2, rows, length - 1))
    counted = random.random((rows, length)) < 0.6
    counted[:, -1] = True
    rewards = random.random((size, continuations))
    said = _Said(jnp.zeros((rows, length), int), jnp.asarray(counted), jnp.asarray(rewards))
    settings = SleepConfig(lam=0.3, a=0.6, continuations=continuations)
    loss, of_teacher = _loss(said, divergence, log_probability, settings)
    means = []
    for part in (slice(0, size), slice(size, rows)):
        values = [
            divergence[row, place]
            for row in range(rows)[part]
            for place in range(length - 1)
            if counted[row, place + 1]
        ]
        means.append(np.mean(values))
    summed = np.zeros((size, continuations))
    for i in range(size):
        for k in range(continuations):
            row = size + continuations * i + k
            summed[i, k] = (log_probability[row] * counted[row, 1:]).sum()
    others = (rewards.sum(1, keepdims=True) - rewards) / (continuations - 1)
    imitated = -np.mean((rewards - others) * summed)
    wanted = 0.6 * (0.7 * means[0] + 0.3 * means[1]) + 0.4 * imitated
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    np.testing.assert_allclose(of_teacher, means[0], rtol=1e-5)
    # Rewarded more than its neighbours, a continuation becomes likelier.
    slope = jax.grad(lambda p: _loss(said, divergence, p, settings)[0])(
        jnp.asarray(log_probability)
    )
    best = size + int(rewards[0].argmax())
    assert (slope[best][counted[best, 1:]] < 0).all() and not slope[best][~counted[best, 1:]].any()
