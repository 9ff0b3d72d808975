"""Generalised momentum: each memory against NumPy, the limits, the composition of the parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from hope_jax.optim import (
    deep_momentum,
    delta_momentum,
    dot_product,
    l2_regression,
    linear_memory,
    mlp_memory,
    newton_schulz,
    preconditioned_momentum,
    scale_by_generalized_momentum,
)

from .test_newton_schulz import random


def run(optimizer, gradients, params):
    state, result = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        result.append(updates)
    return result


def test_heavy_ball_when_the_delta_term_is_off():
    params = {"w": random(4, 3), "b": random(3, seed=1), "s": jnp.ones(())}
    gradients = [jax.tree.map(lambda p, i=i: p * jnp.cos(i + p), params) for i in range(8)]
    ours = run(delta_momentum(0.1, decay=0.8, delta=0), gradients, params)
    theirs = run(optax.sgd(0.1, momentum=0.8), gradients, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (5,), (2, 3, 4)])
def test_delta_rule_over_20_steps(shape):
    gradients = np.random.default_rng(0).normal(size=(20, *shape))
    matrices = gradients.reshape(20, -1, *(shape[-2:] if len(shape) > 1 else (1, *shape)))
    m, expected = np.zeros_like(matrices[0]), []
    for g in matrices:
        for i, g_i in enumerate(g):
            unit = g_i / np.sqrt((g_i**2).sum())
            m[i] = m[i] @ (0.9 * np.eye(g_i.shape[1]) - 0.7 * unit.T @ unit) + g_i
        expected.append(-0.1 * m.reshape(shape))
    with jax.enable_x64(True):
        optimizer = delta_momentum(0.1, decay=0.9, delta=0.7)
        result = run(optimizer, jnp.asarray(gradients), jnp.zeros(shape))
    np.testing.assert_allclose(result, expected, atol=1e-12)


def test_delta_rule_of_complex_gradients():
    parts = np.random.default_rng(0).normal(size=(2, 20, 4, 3))
    gradients = parts[0] + 1j * parts[1]
    with jax.enable_x64(True):
        for turned in (False, True):  # either order of the product
            given = gradients.swapaxes(1, 2) if turned else gradients
            m, expected = np.zeros(given.shape[1:]), []
            for g in given:
                unit = g / np.sqrt((abs(g) ** 2).sum())
                m = m @ (0.9 * np.eye(g.shape[1]) - 0.7 * unit.conj().T @ unit) + g
                expected.append(-0.1 * m)
            result = run(delta_momentum(0.1, 0.9, 0.7), jnp.asarray(given), jnp.asarray(m))
            np.testing.assert_allclose(result, expected, atol=1e-12)
    with pytest.raises(ValueError, match="b: a network memory is of real numbers.*split_real"):
        deep_momentum(0.1).init({"a": jnp.ones(2), "b": jnp.ones(2, complex)})


@pytest.mark.parametrize("make", [delta_momentum, deep_momentum])
def test_weight_decay_is_of_the_masked_weights_times_the_rate(make):
    params = {"a": random(3, 2), "b": random(3, 2, seed=1)}
    optimizer = make(0.1, weight_decay=0.5, mask={"a": True, "b": False})
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.05 * params["a"], rtol=1e-6)
    assert not updates["b"].any()


def test_extreme_gradients_leave_finite_updates():
    """A float16 zero, a float16 number whose square is none, a float32 whose square is none."""
    for optimizer in (delta_momentum(0.1), deep_momentum(0.1, hidden_width=4)):
        low = random(6, 3, 4).astype(jnp.float16).at[2].set(0.0).at[3].mul(1e-4).at[4].mul(1e4)
        assert all(jnp.isfinite(u).all() for u in run(optimizer, low, low[0]))
    gradients = [random(3, 4, seed=i) for i in range(5)]
    deep = deep_momentum(0.1, hidden_width=4)
    expected = run(deep, gradients, gradients[0])
    # Only the direction is remembered: the updates after it are those of the same gradient unscaled.
    huge = run(deep, [gradients[0], 1e20 * gradients[1], *gradients[2:]], gradients[0])
    np.testing.assert_allclose(huge[1] / 1e20, expected[1], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(jnp.stack(huge[2:]), jnp.stack(expected[2:]), rtol=1e-3, atol=1e-5)


def test_memories_of_bfloat16_gradients_lose_nothing():
    """In bfloat16 such sums stop growing at 256 parts, and at a third of their second moment."""
    ones = jnp.ones((2, 2), jnp.bfloat16)
    transform = scale_by_generalized_momentum(
        linear_memory(0.998), preconditioner=optax.scale_by_rms(0.999)
    )
    step = lambda state, _: (transform.update(ones, state)[1], None)
    state = jax.jit(lambda: jax.lax.scan(step, transform.init(ones), length=1000)[0])()
    nu = 1 - 0.999 ** np.arange(1, 1001)
    weights = 0.998 ** np.arange(1000)[::-1]
    np.testing.assert_allclose(state.memory, np.sum(weights / np.sqrt(nu + 1e-8)), rtol=1e-3)
    np.testing.assert_allclose(state.preconditioner.nu, nu[-1], rtol=1e-3)
    for optimizer in (
        delta_momentum(0.1, mu_dtype="bfloat16"),
        preconditioned_momentum(0.1, optax.scale_by_sign(), mu_dtype="bfloat16"),
    ):
        assert optax.tree.get(optimizer.init(ones), "memory").dtype == jnp.bfloat16


def test_deep_momentum_hands_its_options_on():
    gradients = [random(3, 4, seed=i) for i in range(3)]
    options = dict(feature_map=jnp.cbrt, preconditioner=optax.scale_by_rms(), output=jnp.tanh)
    memory = mlp_memory(2, 0.8, 0.7, dot_product, jnp.tanh)
    transform = scale_by_generalized_momentum(memory, **options, seed=4)
    optimizer = deep_momentum(
        0.1, 2, 0.8, 0.7, objective=dot_product, activation=jnp.tanh, seed=4, **options
    )
    ours, parts = (run(each, gradients, gradients[0]) for each in (optimizer, transform))
    np.testing.assert_allclose(jnp.stack(ours), -0.1 * jnp.stack(parts), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: delta_momentum(0.1, decay=1.1), r"decay must be in \[0, 1\], got 1.1."),
        (lambda: delta_momentum(0.1, delta=-1), "delta must be a finite number of at least 0"),
        (lambda: delta_momentum(0.1, weight_decay=-1), "weight_decay must be a finite number"),
        (
            lambda: deep_momentum(0.1, hidden_width=jnp.array(3)),
            "hidden_width must be a Python int.*static_args",
        ),
        (lambda: deep_momentum(0.1, inner_learning_rate=-1), "inner_learning_rate must be"),
    ],
)
def test_errors_of_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_delta_term_is_a_contraction_and_touches_only_the_current_direction():
    memory = linear_memory(decay=1.0, delta=1.0)
    first, second = jnp.array([[100.0, 0.0, 0.0]]), jnp.array([[0.0, 1e-3, 0.0]])
    state = memory.init(first, None)
    state, _ = memory.update(state, first, first)
    state, _ = memory.update(state, second, second)
    np.testing.assert_allclose(state, [[100.0, 1e-3, 0.0]], rtol=1e-6)
    state, _ = memory.update(state, first, first)
    np.testing.assert_allclose(state, [[100.0, 1e-3, 0.0]], rtol=1e-6)


def test_preconditioner_feature_map_and_output_act_where_the_equation_has_them():
    gradients = [random(3, 4, seed=i) for i in range(6)]
    ours = scale_by_generalized_momentum(
        linear_memory(0.9), jnp.cbrt, optax.scale_by_rms(), jnp.tanh
    )
    momentum = optax.chain(optax.scale_by_rms(), optax.trace(0.9))
    state = momentum.init(gradients[0])
    for gradient, result in zip(gradients, run(ours, gradients, gradients[0]), strict=True):
        expected, state = momentum.update(jnp.cbrt(gradient), state)
        np.testing.assert_allclose(result, jnp.tanh(expected), atol=1e-5)
    plain = run(preconditioned_momentum(0.1, optax.scale_by_rms()), gradients, gradients[0])
    theirs = run(optax.chain(momentum, optax.scale(-0.1)), gradients, gradients[0])
    np.testing.assert_allclose(plain, theirs, atol=1e-5)


def test_linear_memory_read_through_newton_schulz_is_muon():
    gradients = [random(3, 4, seed=i) for i in range(6)]
    ours = scale_by_generalized_momentum(linear_memory(0.95), output=newton_schulz)
    muon = optax.contrib.scale_by_muon(
        nesterov=False, weight_dimension_numbers=MuonDimensionNumbers()
    )
    np.testing.assert_allclose(
        run(ours, gradients, gradients[0]), run(muon, gradients, gradients[0]), atol=1e-4
    )


@pytest.mark.parametrize("objective", [dot_product, l2_regression])
def test_network_memory_takes_one_step_of_gradient_descent(objective):
    """The inner gradient by finite differences of the objective, float64."""
    decay, rate, hidden = 0.9, 0.7, 3
    with jax.enable_x64(True):
        memory = mlp_memory(hidden, decay, rate, objective, jnp.tanh)
        shape = jax.ShapeDtypeStruct((2, 4), jnp.float64)
        state = memory.init(shape, jax.random.key(0))
        w_in0 = np.asarray(state.w_in)
        w_in, w_out = w_in0.copy(), np.zeros((hidden, 4))
        for step in range(3):
            g = np.random.default_rng(step).normal(size=(2, 4))
            v = np.sign(g)
            length = np.sqrt((g**2).sum() / 2)

            def inner(w_in, w_out, k=g / length, v=v / length):
                prediction = np.tanh(k @ w_in) @ w_out
                if objective is dot_product:
                    return -(prediction * v).sum() / 2
                return ((prediction - v) ** 2).sum() / 4

            def difference(index, argument, inner=inner, w_in=w_in, w_out=w_out):
                shift = np.zeros_like(argument)
                shift[index] = 1e-6
                if argument is w_in:
                    return (inner(w_in + shift, w_out) - inner(w_in - shift, w_out)) / 2e-6
                return (inner(w_in, w_out + shift) - inner(w_in, w_out - shift)) / 2e-6

            g_in = np.array([difference(i, w_in) for i in np.ndindex(*w_in.shape)])
            g_out = np.array([difference(i, w_out) for i in np.ndindex(*w_out.shape)])
            w_in = w_in0 + decay * (w_in - w_in0) - rate * g_in.reshape(w_in.shape)
            w_out = decay * w_out - rate * g_out.reshape(w_out.shape)
            state, output = memory.update(state, jnp.asarray(g), jnp.asarray(v))
            expected = length * np.tanh(g / length @ w_in) @ w_out
            np.testing.assert_allclose(output, expected, atol=1e-8)
            np.testing.assert_allclose(state.w_in, w_in, atol=1e-8)


def test_deep_momentum_learns_a_persistent_direction():
    gradient = random(3, 5)
    transform = scale_by_generalized_momentum(mlp_memory(16))
    results = run(transform, [gradient] * 60, gradient)
    errors = [float(jnp.linalg.norm(r - gradient) / jnp.linalg.norm(gradient)) for r in results]
    assert errors[0] > 0.6 and errors[-1] < 0.1


def test_deep_momentum_does_not_depend_on_the_gradients_scale():
    gradients = [random(3, 5, seed=i) for i in range(4)]
    optimizer = deep_momentum(0.1)
    one = run(optimizer, gradients, gradients[0])[-1]
    tiny = run(optimizer, [1e-6 * g for g in gradients], gradients[0])[-1]
    np.testing.assert_allclose(1e6 * tiny, one, atol=1e-4)


def test_each_matrix_of_a_stack_has_its_own_network():
    stack = random(3, 4, 5)
    transform = scale_by_generalized_momentum(mlp_memory(8))
    state = transform.init(stack)
    result, _ = transform.update(stack, state)
    changed, _ = transform.update(stack.at[0].set(0.0), state)
    assert not changed[0].any()
    np.testing.assert_allclose(changed[1:], result[1:], atol=1e-6)
    assert (state.memory.w_in[0] != state.memory.w_in[1]).any()


def test_seed_decides_the_network():
    leaf = random(4, 5)
    first, again, other = (
        scale_by_generalized_momentum(mlp_memory(8), seed=s).init(leaf).memory.w_in
        for s in (0, 0, 1)
    )
    assert (first == again).all() and (first != other).any()
    both = scale_by_generalized_momentum(mlp_memory(8)).init([leaf, leaf]).memory
    assert (both[0].w_in == first).all() and (both[1].w_in != first).any()
    with pytest.raises(
        ValueError, match="hidden_width must be a finite number of at least 1, got 0"
    ):
        deep_momentum(0.1, hidden_width=0)
