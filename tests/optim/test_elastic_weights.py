"""Elastic weights against the gradient of their penalty; minima and Fishers in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax.optim import consolidate, diagonal_fisher, elastic_weights

from .test_newton_schulz import random

PARAMS = {"matrix": random(3, 2), "vector": random(4, seed=1), "nothing": None}
OLD = {"matrix": random(3, 2, seed=2), "vector": random(4, seed=3), "nothing": None}
FISHER = jax.tree.map(lambda x: x * x, PARAMS)
GRADIENT = {"matrix": random(3, 2, seed=4), "vector": random(4, seed=5), "nothing": None}


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_the_update_is_the_gradient_of_the_penalty():
    with jax.enable_x64():
        wide = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)
        params, old, fisher, gradient = map(wide, (PARAMS, OLD, FISHER, GRADIENT))

        def penalty(params):
            parts = jax.tree.map(lambda w, a, f: jnp.sum(f * (w - a) ** 2), params, old, fisher)
            return 0.35 * sum(jax.tree.leaves(parts))

        solver = elastic_weights(0.7)
        state = consolidate(solver.init(wide(GRADIENT)), old, fisher)
        updates, after = solver.update(gradient, state, params)
        expected = jax.tree.map(jnp.add, gradient, jax.grad(penalty)(params))
        close(updates, expected, rtol=1e-12)
        close(after, state)


def test_before_a_task_is_over_nothing_changes():
    solver = elastic_weights(1e6)
    updates, _ = solver.update(GRADIENT, solver.init(OLD), PARAMS)
    close(updates, GRADIENT)


def test_two_tasks_in_turn_end_where_both_together_would():
    """Of Gaussians whose variances are 1 / a, a Fisher is a, and the penalty is the first task's loss."""
    a, b = np.array([4.0, 0.25, 1.0]), np.array([1.0, 1.0, 9.0])
    first, second = np.array([1.0, -2.0, 3.0]), np.array([-1.0, 5.0, 0.0])
    signs = np.array([[1], [-1], [1], [-1]])
    examples = {"x": first + signs / np.sqrt(a)}  # of exactly that variance
    loss = lambda params, x: 0.5 * jnp.sum(a * (params - x["x"]) ** 2)
    fisher = diagonal_fisher(loss, jnp.asarray(first), examples)
    np.testing.assert_allclose(fisher, a, rtol=1e-5)
    solver = optax.chain(optax.clip(1e6), elastic_weights(1.0), optax.sgd(0.1))
    params = jnp.asarray(first)
    state = consolidate(solver.init(params), params, fisher)
    for _ in range(300):
        updates, state = solver.update(b * (params - second), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, (a * first + b * second) / (a + b), rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 7, 50])
def test_a_fisher_is_the_mean_of_squares_whatever_the_chunk(chunk):
    random_ = np.random.default_rng(0)
    w, b = random_.normal(size=(3, 2)), random_.normal(size=2)
    x, right = random_.normal(size=(7, 5, 3)), random_.integers(2, size=(7, 5))

    def loss(params, example):
        logits = example["x"] @ params["w"] + params["b"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, example["right"]).sum()

    made = diagonal_fisher(loss, {"w": w, "b": b}, {"x": x, "right": right}, chunk)
    expected_w, expected_b = np.zeros((3, 2)), np.zeros(2)
    for row, labels in zip(x, right, strict=True):
        odds = np.exp(row @ w + b)
        wrong = odds / odds.sum(1, keepdims=True) - np.eye(2)[labels]
        expected_w += (row.T @ wrong) ** 2 / 7
        expected_b += wrong.sum(0) ** 2 / 7
    close(made, {"w": expected_w, "b": expected_b}, rtol=1e-4)


def test_earlier_tasks_keep_their_share():
    solver = optax.chain(optax.scale_by_adam(), elastic_weights(1.0))
    state = solver.init(PARAMS)
    once = consolidate(state, PARAMS, FISHER, decay=0.9)
    twice = consolidate(once, OLD, FISHER, decay=0.9)
    ours = twice[1]
    close(ours.anchor, OLD)
    close(ours.fisher, jax.tree.map(lambda f: 1.9 * f, FISHER), rtol=1e-6)
    close(twice[0], state[0])


def test_small_pulls_are_not_lost_in_bfloat16():
    narrow = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    solver = elastic_weights(1.0)
    state = solver.init(narrow(OLD))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    state = consolidate(state, OLD, FISHER)
    close(state.anchor, OLD)
    updates, _ = solver.update(narrow(GRADIENT), state, narrow(PARAMS))
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    fisher = diagonal_fisher(lambda w, x: w * x, jnp.ones((), jnp.bfloat16), jnp.ones(3))
    assert fisher.dtype == jnp.float32


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="strength must be a finite number of at least 0, got -1"):
        elastic_weights(-1)
    solver = elastic_weights(1.0)
    with pytest.raises(ValueError, match="elastic weights need the parameters"):
        solver.update(GRADIENT, solver.init(PARAMS))
    with pytest.raises(ValueError, match="the optimiser holds no elastic_weights"):
        consolidate(optax.adam(0.1).init(PARAMS), PARAMS, FISHER)
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got 2"):
        consolidate(solver.init(PARAMS), PARAMS, FISHER, decay=2)
    loss = lambda w, x: jnp.sum(w)
    for examples in ({}, np.zeros((0, 2)), {"a": np.zeros(2), "b": np.zeros(3)}):
        with pytest.raises(ValueError, match="the number of examples, and at least one"):
            diagonal_fisher(loss, jnp.ones(2), examples)
