"""The inverse of a unit lower triangular matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory.triangular import inverse_by_blocks, unit_lower_inverse


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 20, 64])
def test_equals_numpy(size, x64):
    matrix = np.random.default_rng(size).normal(size=(2, size, size)) * 0.3
    expected = np.linalg.inv(np.eye(size) + np.tril(matrix, -1))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        unit_lower_inverse(jnp.asarray(matrix)) / scale, expected / scale, atol=1e-11
    )


@pytest.mark.parametrize(("size", "whole"), [(16, 2), (100, 128), (64, 64), (20, 16)])
def test_is_the_same_wherever_matrices_are_no_longer_cut(size, whole, x64):
    """As other platforms do, which prefer larger products."""
    strict = jnp.tril(jnp.asarray(np.random.default_rng(1).normal(size=(2, size, size)) * 0.2), -1)
    out = inverse_by_blocks(strict, whole, jax.lax.Precision.HIGHEST)
    np.testing.assert_allclose(out, unit_lower_inverse(strict), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("whole", [8, 128])
def test_equal_keys_in_float32(whole):
    """L of a chunk whose keys are all equal, beta 1: a product of its powers loses every digit."""
    strict = np.tril(np.ones((256, 256)), -1)
    expected = np.linalg.inv(np.eye(256) + strict)
    out = inverse_by_blocks(
        jnp.asarray(strict[None], jnp.float32), whole, jax.lax.Precision.HIGHEST
    )
    np.testing.assert_allclose(out[0], expected, atol=1e-6)


def test_three_passes_of_bfloat16_are_far_better_than_one_rounding(monkeypatch):
    """What `Precision.HIGH` is on a TPU, written out; keys of a chunk that resemble each other."""
    rows = np.random.default_rng(0).normal(size=(256, 64))
    keys = 0.3 * rows + rows[:1]
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    strict = np.tril(keys @ keys.T, -1)
    expected = np.linalg.inv(np.eye(256) + strict)

    def three_passes(left, right, precision):
        del precision
        halves = [
            (high := x.astype(jnp.bfloat16).astype(x.dtype), (x - high).astype(jnp.bfloat16))
            for x in (left, right)
        ]
        (a, small_a), (b, small_b) = halves
        product = lambda x, y: jnp.einsum("nij,njk->nik", x, y.astype(x.dtype))
        return product(a, b) + product(a, small_b) + product(small_a.astype(a.dtype), b)

    monkeypatch.setattr(jnp, "matmul", three_passes)
    out = inverse_by_blocks(jnp.asarray(strict[None], jnp.float32), 128, jax.lax.Precision.HIGH)
    rounded = np.asarray(jnp.asarray(expected, jnp.bfloat16), np.float64)
    assert np.abs(out[0] - expected).max() < np.abs(rounded - expected).max() / 10


def test_derivative_in_both_modes(x64):
    matrix, direction = (
        jnp.asarray(x) for x in np.random.default_rng(0).normal(size=(2, 9, 9)) * 0.3
    )
    function = lambda x: jnp.sum(jnp.sin(unit_lower_inverse(x)))
    step = 1e-6
    slope = (function(matrix + step * direction) - function(matrix - step * direction)) / (2 * step)
    forward = jax.jvp(function, (matrix,), (direction,))[1]
    reverse = jnp.vdot(jax.grad(function)(matrix), direction)
    np.testing.assert_allclose(forward, slope, rtol=1e-6)
    np.testing.assert_allclose(reverse, slope, rtol=1e-6)
