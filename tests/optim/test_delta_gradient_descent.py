"""Delta Gradient Descent, and the capture of Flax Dense inputs that it needs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax.optim import delta_gradient_descent, multi_timescale
from hope_jax.optim.dense_inputs import apply_with_dense_inputs

from .test_newton_schulz import random


def step(optimizer, params, gradients, **inputs):
    updates, _ = optimizer.update(gradients, optimizer.init(params), params, **inputs)
    return optax.apply_updates(params, updates)


def test_one_unit_input_gives_the_exact_proximal_minimum():
    w, y_gradient = np.asarray(random(4, 3), float), np.asarray(random(1, 3, seed=1), float)
    x = np.asarray(random(1, 4, seed=2), float)
    x = x / np.linalg.norm(x)
    eta = 0.7
    # Zero of  x^T y' + x^T x W + (W - W_t) / eta,  solved as a linear system.
    expected = np.linalg.solve(x.T @ x + np.eye(4) / eta, w / eta - x.T @ y_gradient)
    with jax.enable_x64(True):
        result = step(
            delta_gradient_descent(eta), {"k": w}, {"k": x.T @ y_gradient}, inputs={"k": x}
        )
    # The closed form applies the step to g too, where eta' differs from the exact solve only in
    # that x^T x acts on x^T y' as the identity.
    np.testing.assert_allclose(result["k"], expected, atol=1e-12)


def test_decay_averages_over_normalised_rows_of_each_layer():
    w, g = random(2, 4, 3), random(2, 4, 3, seed=1)
    x = random(2, 5, 6, 4, seed=2)
    result = step(delta_gradient_descent(0.25, strength=0.6), [w], [g], inputs=[x])[0]
    for layer in range(2):
        rows = np.asarray(x[layer]).reshape(30, 4)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        decay = sum(np.outer(r, r) for r in rows) / 30
        expected = w[layer] - 0.2 * (0.6 * decay @ w[layer] + g[layer])
        np.testing.assert_allclose(result[layer], expected, atol=1e-5)


def test_small_step_and_no_strength_are_gradient_descent():
    params, g, x = {"k": random(4, 3)}, {"k": random(4, 3, seed=1)}, {"k": random(7, 4, seed=2)}
    for rate in (1e-2, 1e-3):
        result = step(delta_gradient_descent(rate, strength=0), params, g, inputs=x)["k"]
        moved = (params["k"] - result) / rate
        np.testing.assert_allclose(moved, g["k"], rtol=1.1 * rate, atol=2e-4)

    # With the decay it descends the loss plus half the mean square answer to the unit inputs.
    rows = x["k"] / jnp.linalg.norm(x["k"], axis=1, keepdims=True)
    regularised = jax.grad(lambda w: 0.5 * jnp.sum((rows @ w) ** 2) / 7)(params["k"]) + g["k"]
    result = step(delta_gradient_descent(1e-3), params, g, inputs=x)["k"]
    np.testing.assert_allclose((params["k"] - result) / 1e-3, regularised, rtol=2e-3, atol=5e-4)


def test_schedule_is_shortened_at_each_step():
    optimizer = delta_gradient_descent(lambda count: 1.0 + count)
    params, state = {"b": jnp.zeros(2)}, None
    state, moved = optimizer.init(params), []
    for _ in range(3):
        updates, state = optimizer.update({"b": jnp.ones(2)}, state, params, inputs={})
        moved.append(-float(updates["b"][0]))
    np.testing.assert_allclose(moved, [1 / 2, 2 / 3, 3 / 4], rtol=1e-6)


def test_ordinary_weight_decay_and_its_mask():
    params = {"k": random(4, 3), "b": random(3, seed=1)}
    zero = jax.tree.map(jnp.zeros_like, params)
    optimizer = delta_gradient_descent(1.0, weight_decay=0.4, mask={"k": True, "b": False})
    result = step(optimizer, params, zero, inputs={})
    np.testing.assert_allclose(result["k"], 0.8 * params["k"], rtol=1e-6)
    np.testing.assert_array_equal(result["b"], params["b"])
    for wrong in ({"weight_decay": -1}, {"strength": -1}, {"learning_rate": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a finite number"):
            delta_gradient_descent(**{"learning_rate": 0.1, **wrong})


def test_decay_along_complex_and_float16_inputs():
    real, imaginary = np.random.default_rng(0).normal(size=(2, 7, 4))
    x = real + 1j * imaginary
    w = np.ones((4, 3)) * (1 + 2j)
    rows = x / np.sqrt((abs(x) ** 2).sum(axis=1, keepdims=True))
    expected = w - 0.5 * rows.conj().T @ rows @ w / 7
    with jax.enable_x64(True):
        result = step(delta_gradient_descent(1.0), {"k": w}, {"k": 0 * w}, inputs={"k": x})
    np.testing.assert_allclose(result["k"], expected, atol=1e-12)
    # Lengths whose squares float16 does not have.
    low = {"k": random(4, 3).astype(jnp.float16)}
    zero = {"k": jnp.zeros((4, 3), jnp.float16)}
    unit = step(delta_gradient_descent(1.0), low, zero, inputs={"k": random(7, 4)})
    for factor in (1e-4, 1e3):
        scaled = (factor * random(7, 4)).astype(jnp.float16)
        result = step(delta_gradient_descent(1.0), low, zero, inputs={"k": scaled})
        np.testing.assert_allclose(result["k"], unit["k"], atol=3e-3)


def test_zero_inputs_decay_nothing():
    params = {"k": random(4, 3)}
    result = step(
        delta_gradient_descent(0.1),
        params,
        {"k": jnp.zeros((4, 3))},
        inputs={"k": jnp.zeros((2, 4))},
    )
    np.testing.assert_array_equal(result["k"], params["k"])


def test_errors_name_the_leaf_and_the_mend():
    optimizer = delta_gradient_descent(0.1)
    params = {"dense": {"kernel": jnp.ones((4, 3))}}
    with pytest.raises(ValueError, match="needs the parameters and the inputs.*dense_inputs"):
        step(optimizer, params, params)
    with pytest.raises(ValueError, match=r"dense/kernel: shape \(4, 3\).*got shape \(7, 5\)"):
        step(optimizer, params, params, inputs={"dense": {"kernel": jnp.ones((7, 5))}})


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(4, name="mix")(jnp.tanh(x)), None


class Stack(nn.Module):
    carry: bool = True

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "dense_inputs": 0} if self.carry else {"params": 0}
        blocks = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)
        x, _ = blocks(name="blocks")(x, None)
        shared = nn.Dense(4, name="shared")
        return shared(shared(x))


def test_inputs_of_scanned_and_shared_layers_inside_a_jitted_loss():
    x = random(2, 5, 4)
    model = Stack()
    params = model.init(jax.random.key(0), x)["params"]

    @jax.jit
    def gradients_and_inputs(params):
        def loss(params):
            y, inputs = apply_with_dense_inputs(model, {"params": params}, x)
            return jnp.mean(y**2), inputs

        return jax.grad(loss, has_aux=True)(params)

    gradients, inputs = gradients_and_inputs(params)
    expected = jax.grad(lambda p: jnp.mean(model.apply({"params": p}, x) ** 2))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradients, expected)

    h, kernel, bias = x, params["blocks"]["mix"]["kernel"], params["blocks"]["mix"]["bias"]
    recorded = inputs["blocks"]["mix"]["kernel"]
    assert recorded.shape == (3, 10, 4)
    for layer in range(3):
        np.testing.assert_allclose(recorded[layer], jnp.tanh(h).reshape(10, 4), atol=1e-5)
        h = h + jnp.tanh(h) @ kernel[layer] + bias[layer]
    once = h @ params["shared"]["kernel"] + params["shared"]["bias"]
    both = jnp.concatenate([h.reshape(10, 4), once.reshape(10, 4)])
    np.testing.assert_allclose(inputs["shared"]["kernel"], both, atol=1e-5)

    optimizer = multi_timescale(
        delta_gradient_descent(0.1), {0: 1, 1: 2}, {"blocks": 0, "shared": 1}
    )
    state = optimizer.init(params)
    plain = delta_gradient_descent(0.1)
    direct, _ = plain.update(gradients, plain.init(params), params, inputs=inputs)
    updates, state = optimizer.update(gradients, state, params, inputs=inputs)
    np.testing.assert_allclose(
        updates["blocks"]["mix"]["kernel"], direct["blocks"]["mix"]["kernel"], atol=1e-6
    )
    assert not updates["shared"]["kernel"].any()


def test_a_scan_that_drops_the_inputs_is_named():
    x = random(2, 4)
    model = Stack(carry=False)
    variables = model.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"blocks/mix/kernel.*variable_axes"):
        apply_with_dense_inputs(model, variables, x)
