"""Groups of parameters at their own periods against a plain loop over the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax.optim import multi_timescale

from .test_newton_schulz import random

PARAMS = {"fast": random(3), "slow": random(2, 2, seed=1), "slower": {"w": random(2, seed=2)}}
LABELS = {"fast": 1, "slow": 2, "slower": 6}
PERIODS = {1: 1, 2: 2, 6: 6}


def gradients(steps):
    return [jax.tree.map(lambda p, i=i: jnp.sin(3 * p + i), PARAMS) for i in range(steps)]


def run(optimizer, steps=12, params=PARAMS):
    state, result = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for gradient in gradients(steps):
        updates, state = update(gradient, state, params)
        result.append(updates)
    return result, state


@pytest.mark.parametrize("average", [False, True])
def test_each_group_follows_its_own_optimiser_on_accumulated_gradients(average):
    inner = optax.adam(lambda count: 0.1 / (1 + count), eps=1e-2)
    result, _ = run(multi_timescale(inner, PERIODS, LABELS, average))
    for name, period in LABELS.items():
        state = inner.init(PARAMS[name])
        total = jax.tree.map(jnp.zeros_like, PARAMS[name])
        for t, gradient in enumerate(gradients(12), 1):
            total = jax.tree.map(jnp.add, total, gradient[name])
            expected = jax.tree.map(jnp.zeros_like, total)
            if t % period == 0:
                given = jax.tree.map(lambda x, p=period: x / p if average else x, total)
                expected, state = inner.update(given, state, PARAMS[name])
                total = jax.tree.map(jnp.zeros_like, total)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
                result[t - 1][name],
                expected,
            )


def test_period_one_is_the_inner_optimiser():
    inner = optax.adamw(0.1)
    ours, _ = run(multi_timescale(inner, {"all": 1}, "all"))
    theirs, _ = run(inner)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_inner_optimiser_runs_only_when_due():
    runs = []

    def update(updates, state, params=None):
        jax.debug.callback(lambda: runs.append(1))
        return updates, state

    inner = optax.GradientTransformation(optax.init_empty_state, update)
    run(multi_timescale(inner, {"all": 4}, "all"), steps=9)
    jax.effects_barrier()
    assert len(runs) == 2


def test_composes_with_multi_steps():
    """Gradients summed by twos, then by the group's own period."""
    inner = multi_timescale(optax.sgd(0.1), PERIODS, LABELS)
    composed = optax.MultiSteps(inner, 2, use_grad_mean=False)
    result, _ = run(optax.GradientTransformation(composed.init, composed.update))
    for name, period in LABELS.items():
        changed = [
            t for t, u in enumerate(result, 1) if any(x.any() for x in jax.tree.leaves(u[name]))
        ]
        assert changed == list(range(2 * period, 13, 2 * period))
    total = sum(np.asarray(g["slow"]) for g in gradients(4))
    np.testing.assert_allclose(result[3]["slow"], -0.1 * total, atol=1e-6)


def test_composes_with_inject_hyperparams_inside_and_outside():
    expected, _ = run(multi_timescale(optax.sgd(0.05), PERIODS, LABELS))
    inside = multi_timescale(
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.05), PERIODS, LABELS
    )
    outside = optax.inject_hyperparams(
        lambda learning_rate: multi_timescale(optax.sgd(learning_rate), PERIODS, LABELS)
    )(learning_rate=0.05)
    for optimizer in (inside, outside):
        result, _ = run(optimizer)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), result, expected)


def test_labels_by_function_and_bfloat16_parameters():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    optimizer = multi_timescale(optax.sgd(0.1), PERIODS, lambda p: LABELS)
    state = optimizer.init(params)
    for gradient in gradients(6):
        gradient = jax.tree.map(lambda g: g.astype(jnp.bfloat16), gradient)
        updates, state = jax.jit(optimizer.update)(gradient, state, params)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    total = sum(np.asarray(g["slower"]["w"], np.float32) for g in gradients(6))
    np.testing.assert_allclose(updates["slower"]["w"].astype(jnp.float32), -0.1 * total, atol=0.01)


def test_a_long_sum_of_bfloat16_gradients_loses_nothing():
    one = jnp.ones((), jnp.bfloat16)
    optimizer = multi_timescale(optax.sgd(1.0), {0: 1025}, 0)
    step = lambda state, _: (optimizer.update(one, state)[1], None)
    state = jax.jit(lambda: jax.lax.scan(step, optimizer.init(one), length=1024)[0])()
    assert optax.tree.get(state, "accumulated") == 1024


def test_errors_name_the_leaf_and_the_label():
    with pytest.raises(
        ValueError, match="the period of 'slow' must be an int of at least 1, got 0"
    ):
        multi_timescale(optax.sgd(0.1), {"slow": 0}, "slow")
    with pytest.raises(ValueError, match=r"slower: label 6 has no period.*\[1, 2\]"):
        multi_timescale(optax.sgd(0.1), {1: 1, 2: 2}, LABELS).init(PARAMS)
