"""Divergences against their definitions in NumPy, and their gradients against finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.sleep.divergence import forward_kl, jensen_shannon, reverse_kl


def probabilities(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def kl(p, q):
    return np.sum(p * np.log(p / q), -1)


def slow_jensen_shannon(p, q, beta):
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


CASES = {
    "forward_kl": (forward_kl, kl),
    "reverse_kl": (reverse_kl, lambda p, q: kl(q, p)),
    "jensen_shannon": (jensen_shannon, functools.partial(slow_jensen_shannon, beta=0.5)),
    "a_tenth": (
        functools.partial(jensen_shannon, beta=0.1),
        functools.partial(slow_jensen_shannon, beta=0.1),
    ),
}


def gradients(function, teacher, student):
    total = lambda *logits: function(*logits).sum()
    return jax.jit(jax.grad(total, (0, 1)))(teacher, student)


@pytest.mark.parametrize(("function", "slow"), CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_the_definition(x64, function, slow):
    random = np.random.default_rng(0)
    logits = 2 * random.normal(size=(2, 2, 3, 5))
    value = lambda teacher, student: slow(probabilities(teacher), probabilities(student))
    np.testing.assert_allclose(function(*logits), value(*logits), rtol=1e-9)
    for side, gradient in enumerate(gradients(function, *logits)):
        expected = np.zeros_like(logits[side])
        for place in np.ndindex(expected.shape):
            moved = np.zeros_like(logits)
            moved[(side, *place)] = 1e-5
            change = value(*(logits + moved)) - value(*(logits - moved))
            expected[place] = change.sum() / 2e-5
        np.testing.assert_allclose(gradient, expected, atol=1e-8)


@pytest.mark.parametrize(("function", "slow"), CASES.values(), ids=CASES)
def test_where_both_agree_nothing_is_left(function, slow):
    logits = 9 * np.random.default_rng(1).normal(size=(4, 3, 1001)).astype(np.float32)
    logits[0, 0, :5] = -np.inf
    for form in (function, jax.jit(function)):
        np.testing.assert_array_equal(form(logits, logits), np.zeros((4, 3)))
    for gradient in gradients(function, logits, logits):
        np.testing.assert_array_equal(gradient, np.zeros_like(logits))


@pytest.mark.parametrize(("function", "slow"), CASES.values(), ids=CASES)
def test_float32_is_enough_far_from_each_other_and_close(function, slow):
    random = np.random.default_rng(2)
    teacher = random.normal(size=(1, 2, 50))
    student = teacher + 1e-3 * random.normal(size=teacher.shape)
    teacher[:, 1, 0], student[:, 1, 1] = 60, 60  # each certain of something else
    teacher, student = teacher.astype(np.float32), student.astype(np.float32)
    wide = (x.astype(np.float64) for x in (teacher, student))
    expected = slow(*map(probabilities, wide))
    np.testing.assert_allclose(function(teacher, student), expected, rtol=3e-3)
    far = gradients(function, 1e4 * teacher, 1e4 * student)
    assert all(np.isfinite(gradient).all() for gradient in far)


def test_what_cannot_come_counts_for_nothing():
    teacher = jnp.array([[[0.0, 1.0, -jnp.inf, -jnp.inf]]])
    student = jnp.array([[[1.0, 0.0, 0.5, -jnp.inf]]])
    p, q = (np.asarray(probabilities(np.asarray(x, np.float64))) for x in (teacher, student))
    few = slice(0, 2)
    np.testing.assert_allclose(forward_kl(teacher, student), kl(p[..., few], q[..., few]), 1e-6)
    assert np.isinf(reverse_kl(teacher, student)).all()
    gradient = jax.grad(lambda s: forward_kl(teacher, s).sum())(student)
    np.testing.assert_allclose(gradient, q - p, atol=1e-6)
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.nan_to_num(p * np.log(p / m)) + np.nan_to_num(q * np.log(q / m))
    np.testing.assert_allclose(jensen_shannon(teacher, student), parts.sum(-1) / 2, 1e-6)


def test_narrow_logits_are_compared_in_float32():
    logits = np.random.default_rng(3).normal(size=(2, 1, 1, 8)).astype(jnp.bfloat16)
    assert forward_kl(*logits).dtype == jnp.float32
    np.testing.assert_array_equal(forward_kl(*logits), forward_kl(*logits.astype(np.float32)))


@pytest.mark.parametrize("beta", [0, 1, -0.5, float("nan")])
def test_ends_of_the_mixture_are_refused(beta):
    with pytest.raises(ValueError, match="beta must lie between 0 and 1, got"):
        jensen_shannon(jnp.zeros((1, 1, 2)), jnp.zeros((1, 1, 2)), beta)
