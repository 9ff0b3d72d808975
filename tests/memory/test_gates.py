"""Products of gates over a chunk, against the recurrences that define them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory.gates import chunk_decay

decay_of = jax.jit(chunk_decay)
slopes_of = jax.jit(
    jax.grad(lambda *logs: sum(map(jnp.sum, jax.tree.leaves(chunk_decay(*logs)))), argnums=(0, 1))
)


def test_equals_recurrences(x64):
    draw = np.random.default_rng(0)
    size = 6
    alpha, theta = draw.uniform(0.3, 1, size=(2, size))
    decay = jax.tree.map(np.asarray, decay_of(np.log(alpha), np.log(theta)))
    g, c, products = 1.0, 0.0, 1.0
    a, b = np.zeros(size), np.zeros(size)
    for t in range(size):
        np.testing.assert_allclose(decay.before.state[t], g)
        np.testing.assert_allclose(decay.before.erase[t], a, atol=1e-15)
        np.testing.assert_allclose(decay.before.write[t], b, atol=1e-15)
        g, products = g * alpha[t], products * theta[t]
        c = alpha[t] * c + products
        a, b = alpha[t] * a, alpha[t] * b
        a[t] = b[t] = 1
        for i in range(t):
            b[i] += np.prod(theta[i + 1 : t + 1])
        np.testing.assert_allclose(decay.after.state[t], g)
        np.testing.assert_allclose(decay.after.momentum[t], c)
        np.testing.assert_allclose(decay.after.erase[t], a, atol=1e-15)
        np.testing.assert_allclose(decay.after.write[t], b, atol=1e-15)
    np.testing.assert_allclose(decay.end.write[0], b)
    np.testing.assert_allclose(decay.momentum_state, products)


def test_small_alpha_does_not_overflow():
    decay = decay_of(*np.full((2, 64), -20.0, np.float32))
    assert all(np.isfinite(leaf).all() for leaf in decay.after if leaf is not None)


@pytest.mark.parametrize("size", [16, 256])
@pytest.mark.parametrize("forgets", [-0.5, -30.0, -1e5, -1e7, -np.inf])
def test_forgetting_everything_leaves_the_digits_of_other_gates(forgets, size):
    """Every product in float32 equals that of float64, between and after gates of any size."""
    logs = -np.exp(np.random.default_rng(size).normal(size=(2, size)) * 3 - 3).astype(np.float32)
    logs[0, [size // 3, size // 2]] = logs[1, [size // 4, size // 2]] = forgets
    decay = decay_of(*logs)
    alpha, theta = np.exp(logs.astype(np.float64))
    a, b = np.zeros((2, size, size))
    for t in range(size):
        below = np.cumprod(np.where(np.arange(size)[:, None] > t, theta[:, None], 1), axis=0)[:, 0]
        a[t:, t] = np.cumprod(np.where(np.arange(t, size) > t, alpha[t:], 1))
        b[t:, t] = below[t:]
    np.testing.assert_allclose(decay.after.erase, a, rtol=1e-5, atol=3e-7)
    np.testing.assert_allclose(decay.momentum_write, b[-1], rtol=1e-5, atol=3e-7)
    np.testing.assert_allclose(decay.after.state, np.cumprod(alpha), rtol=1e-5, atol=3e-7)
    gradient = slopes_of(*logs)
    gradient = jax.tree.map(np.asarray, gradient)
    assert all(np.isfinite(g).all() for g in gradient)
    for name, g, log in zip(("alpha", "theta"), gradient, logs, strict=True):
        assert np.abs(g).max() > 0, name
        assert (g[log < -1e3] == 0).all(), name


def test_reset_and_inactive_places(x64):
    log = np.log([0.5, 0.5, 0.5, 1.0])
    decay = decay_of(
        log,
        log,
        reset=np.array([False, True, False, False]),
        active=np.array([True, True, True, False]),
    )
    decay = jax.tree.map(np.asarray, decay)
    np.testing.assert_allclose(decay.end.state, [0])
    np.testing.assert_allclose(decay.end.restart, [0.25])
    np.testing.assert_allclose(decay.end.momentum, [0])
    np.testing.assert_allclose(decay.end.erase[0], [0, 0.5, 1, 1])
    # alpha b + theta: the write of token 1 is 1, then 0.5 + 0.5; the empty place adds nothing.
    np.testing.assert_allclose(decay.end.write[0, 1:3], [1.0, 1.0])
    np.testing.assert_allclose(decay.before.restart, [0, 1, 0.5, 0.25])
