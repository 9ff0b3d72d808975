"""Products of gates over a chunk, against the recurrences that define them."""

import jax.numpy as jnp
import numpy as np

from hope_jax.memory.gates import chunk_decay


def test_equals_recurrences(x64):
    draw = np.random.default_rng(0)
    size = 6
    alpha, theta = draw.uniform(0.3, 1, size=(2, size))
    decay = chunk_decay(jnp.log(alpha), jnp.log(theta))
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
    decay = chunk_decay(jnp.full(64, -20.0), jnp.full(64, -20.0))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in decay.after if leaf is not None)


def test_reset_and_inactive_places(x64):
    log_alpha = jnp.log(jnp.array([0.5, 0.5, 0.5, 1.0]))
    log_theta = jnp.log(jnp.array([0.5, 0.5, 0.5, 1.0]))
    decay = chunk_decay(
        log_alpha,
        log_theta,
        reset=jnp.array([False, True, False, False]),
        active=jnp.array([True, True, True, False]),
    )
    np.testing.assert_allclose(decay.end.state, [0])
    np.testing.assert_allclose(decay.end.restart, [0.25])
    np.testing.assert_allclose(decay.end.momentum, [0])
    np.testing.assert_allclose(decay.end.erase[0], [0, 0.5, 1, 1])
    # alpha b + theta: the write of token 1 is 1, then 0.5 + 0.5; the empty place adds nothing.
    np.testing.assert_allclose(decay.end.write[0, 1:3], [1.0, 1.0])
    np.testing.assert_allclose(decay.before.restart, [0, 1, 0.5, 0.25])
