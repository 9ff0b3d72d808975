"""Dreams of a model of bigrams, one after the other in plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from hope_jax.optim import dimension_numbers_by_path
from hope_jax.sleep.dreaming import (
    choose_dreams,
    gradient_norms,
    learn_from,
    rewards,
)
from hope_jax.sleep.low_rank import add_low_rank, init_low_rank

RANDOM = np.random.default_rng(0)
DREAMS = jnp.asarray(RANDOM.integers(7, size=(5, 9)))
TASK = jnp.asarray(np.concatenate([DREAMS[0, :5], RANDOM.integers(7, size=4)]))
BIGRAMS = {
    "up": RANDOM.normal(size=(7, 4)).astype(np.float32),
    "down": RANDOM.normal(size=(4, 7)).astype(np.float32),
}
NAMED = dimension_numbers_by_path([("", MuonDimensionNumbers(0, 1))])
ALPHA, STEPS = 3.0, 4
OPTIMIZER = optax.chain(optax.trace(0.9), optax.sgd(0.3))


def bigram_loss(params, text):
    logits = jnp.tanh(params["up"][text[:-1]]) @ params["down"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[1:]).mean()


def low_rank_loss(changes, text):
    return bigram_loss(add_low_rank(BIGRAMS, changes, NAMED, ALPHA), text)


def trained_in_a_loop(loss, start, optimizer=OPTIMIZER):
    state, gradient = optimizer.init(start), jax.jit(jax.grad(loss))
    for _ in range(STEPS):
        updates, state = optimizer.update(gradient(start), state, start)
        start = optax.apply_updates(start, updates)
    return start


def test_norms_are_those_of_each_gradient():
    chosen = {"up": BIGRAMS["up"]}
    loss = lambda chosen, dream: bigram_loss({**BIGRAMS, **chosen}, dream)
    made = jax.jit(lambda chosen: gradient_norms(loss, chosen, DREAMS))(chosen)
    expected = [np.linalg.norm(jax.grad(loss)(chosen, dream)["up"]) for dream in DREAMS]
    np.testing.assert_allclose(made, expected, rtol=1e-5)


def test_the_best_are_chosen_and_others_at_random():
    norms = jnp.array([3.0, jnp.nan, 9.0, 1.0, 4.0, 2.0, jnp.inf])
    keys = jax.random.split(jax.random.key(0), 400)
    made = np.asarray(jax.vmap(lambda key: choose_dreams(key, norms, 2, 2))(keys))
    np.testing.assert_array_equal(made[:, :2], [[2, 4]] * 400)
    assert all(len(set(row)) == 4 for row in made)
    counts = np.bincount(made[:, 2:].ravel(), minlength=7)
    assert counts[[1, 2, 4, 6]].sum() == 0
    np.testing.assert_allclose(counts[[0, 3, 5]] / 800, 1 / 3, atol=0.06)
    everything = choose_dreams(keys[0], norms, 3, 4)
    assert sorted(everything.tolist()) == list(range(7))
    for best, others in ((5, 3), (-1, 2)):
        with pytest.raises(ValueError, match=f"best={best} and others={others} of 7 dreams"):
            choose_dreams(keys[0], norms, best, others)


def test_trials_are_those_of_copies_trained_one_after_the_other():
    score = lambda changes: -low_rank_loss(changes, TASK)
    start = init_low_rank(jax.random.key(1), BIGRAMS, NAMED, rank=2)
    learn = functools.partial(learn_from, low_rank_loss, start, optimizer=OPTIMIZER, steps=STEPS)
    trial = lambda dream: score(learn(dream[None], jnp.ones(1))[0])
    made = jax.jit(jax.vmap(trial))(DREAMS)
    expected = [
        score(trained_in_a_loop(lambda changes, dream=dream: low_rank_loss(changes, dream), start))
        for dream in DREAMS
    ]
    np.testing.assert_allclose(made, expected, rtol=1e-4)
    before = -bigram_loss(BIGRAMS, TASK)
    reward = rewards(before, made)
    np.testing.assert_array_equal(reward, np.array(expected) > before)
    assert 0 < reward.sum() < len(DREAMS)


def test_what_helped_is_learnt_and_nothing_else():
    reward = jnp.array([1.0, 0, 0, 1.0, 0])
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.3))
    learn = jax.jit(
        lambda reward: learn_from(bigram_loss, BIGRAMS, DREAMS, reward, optimizer, steps=STEPS)
    )
    mean = lambda params: (bigram_loss(params, DREAMS[0]) + bigram_loss(params, DREAMS[3])) / 2
    expected = trained_in_a_loop(mean, BIGRAMS, optimizer)
    learnt, losses = learn(reward)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), learnt, expected)
    np.testing.assert_allclose(losses[0], mean(BIGRAMS), rtol=1e-5)
    assert losses.shape == (STEPS,) and losses[-1] < losses[0]
    learnt, losses = learn(jnp.zeros(5))
    jax.tree.map(np.testing.assert_array_equal, learnt, BIGRAMS)
    assert not losses.any()


def test_a_dream_that_did_not_help_spoils_nothing():
    loss = lambda x, dream: (x - dream) ** 2
    reward, dreams = jnp.array([0.0, 1.0, 0.0]), jnp.array([jnp.nan, 1.0, jnp.inf])
    learnt, losses = learn_from(loss, 0.0, dreams, reward, optax.sgd(0.25), steps=1)
    assert float(learnt) == 0.5 and losses.tolist() == [1.0]
