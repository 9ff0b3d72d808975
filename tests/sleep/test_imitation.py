"""Rewards against their definition, and the policy gradient against the exact one, enumerated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.sleep.imitation import policy_gradient_loss, reward
from tests.sleep.test_levenshtein import slow_levenshtein

RANDOM = np.random.default_rng(0)


def slow_reward(imitation, original, z0):
    distance = slow_levenshtein(imitation, original)
    longest = max(len(imitation), len(original), 1)
    return 1 - distance / longest if distance <= z0 else 0.0


def test_rewards_are_those_of_the_definition():
    imitation, original = RANDOM.integers(3, size=(2, 30, 6))
    lengths = RANDOM.integers(7, size=(2, 30))
    lengths[:, 0] = 0
    near = [
        slow_reward(row[:n], other[:m], z0=3)
        for row, other, n, m in zip(imitation, original, *lengths, strict=True)
    ]
    assert 0.0 in near and max(near) == 1 and len(set(near)) > 4
    np.testing.assert_allclose(reward(imitation, original, *lengths, gam=0, z0=3), near, 1e-6)

    def judge(said, meant, said_length, meant_length):
        assert said.shape == meant.shape == (30, 6)
        return np.asarray(said_length) == np.asarray(meant_length)

    expected = 0.25 * (lengths[0] == lengths[1]) + 0.75 * np.array(near)
    made = reward(imitation, original, *lengths, gam=0.25, z0=3, judge=judge)
    np.testing.assert_allclose(made, expected, 1e-6)
    inside = jax.jit(lambda *ids: reward(*ids, gam=0, z0=np.inf))(imitation, original)
    whole = [slow_reward(*pair, z0=6) for pair in zip(imitation, original, strict=True)]
    np.testing.assert_allclose(inside, whole, 1e-6)


def test_shares_that_mean_nothing_are_refused():
    ids = jnp.zeros((1, 1), jnp.int32)
    with pytest.raises(ValueError, match=r"gam must lie in \[0, 1\].*got 2"):
        reward(ids, ids, gam=2, z0=1)
    with pytest.raises(ValueError, match=r"gam=0.5 is the share of a judge, and there is none"):
        reward(ids, ids, gam=0.5, z0=1)
    with pytest.raises(ValueError, match="each prefix has 1; give at least 2"):
        policy_gradient_loss(jnp.zeros((3, 1)), jnp.zeros((3, 1)))


VOCAB, END = 3, 2
# All that can be said: up to two tokens, of which the end is the last.
SAID = [(END,), *itertools.product((0, 1), range(VOCAB))]
ORIGINALS = ((0, 1), (1, END))


def log_probabilities(params):
    """Of everything that can be said after each of two prefixes, (prefix, said)."""
    first, second = (jax.nn.log_softmax(params[name]) for name in ("first", "second"))
    of = lambda p, said: first[p, said[0]] + sum(second[said[0], token] for token in said[1:])
    return jnp.stack([jnp.stack([of(p, said) for said in SAID]) for p in range(2)])


@pytest.mark.parametrize(("prefixes", "continuations"), [(2, 2), (1, 3)])
def test_the_estimate_is_on_average_the_exact_gradient(x64, prefixes, continuations):
    params = {"first": RANDOM.normal(size=(2, VOCAB)), "second": RANDOM.normal(size=(2, VOCAB))}
    rewards = np.array([[slow_reward(said, d, z0=1) for said in SAID] for d in ORIGINALS])
    row = np.arange(prefixes)[:, None]

    def expected_reward(params):
        said = jnp.exp(log_probabilities(params)) * rewards
        return jnp.mean(jnp.sum(said, 1)[:prefixes])

    # Whatever may be drawn, (draw, prefix, continuation), and how likely it is.
    draws = np.array(list(itertools.product(range(len(SAID)), repeat=prefixes * continuations)))
    draws = draws.reshape(-1, prefixes, continuations)
    likely = np.exp(log_probabilities(params))[row, draws].prod((1, 2))
    np.testing.assert_allclose(likely.sum(), 1)

    def mean_loss(params):
        log_probability = log_probabilities(params)[row, draws]
        return likely @ jax.vmap(policy_gradient_loss)(log_probability, rewards[row, draws])

    exact, mean = jax.jit(jax.grad(expected_reward))(params), jax.jit(jax.grad(mean_loss))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, atol=1e-12), exact, mean)
    assert max(abs(gradient).max() for gradient in jax.tree.leaves(exact)) > 0.01


def test_a_baseline_leaves_nothing_where_all_are_rewarded_alike():
    gradient = jax.grad(policy_gradient_loss)(jnp.zeros((2, 4)), jnp.full((2, 4), 0.75))
    np.testing.assert_array_equal(gradient, np.zeros((2, 4)))
