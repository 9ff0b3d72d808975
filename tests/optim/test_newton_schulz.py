"""Newton-Schulz against the singular value decomposition and a NumPy transcription."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import MuonDimensionNumbers

from hope_jax.optim import CUBIC, POLAR_EXPRESS, QUINTIC, newton_schulz
from hope_jax.optim.matrices import resolve_axes
from hope_jax.optim.newton_schulz import _iterate, _iterate_gram, orthogonalize, steps_of


def numpy_newton_schulz(x, steps, coefficients):
    """One matrix, float64, no transposition: the polynomial acts on the longer side too."""
    x = np.asarray(x)
    x = x.astype(np.result_type(x, np.float64))
    norm = np.linalg.norm(x)
    x = x / norm if norm else x
    for i in range(steps):
        a, b, c = coefficients[min(i, len(coefficients) - 1)]
        gram = x @ x.conj().T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (1, 5), (5, 1), (3, 4, 7), (2, 3, 7, 4)])
@pytest.mark.parametrize("coefficients", [QUINTIC, CUBIC, POLAR_EXPRESS])
def test_matches_numpy_for_any_shape_and_batch(shape, coefficients):
    x = random(*shape)
    flat = np.asarray(x).reshape(-1, *shape[-2:])
    expected = np.stack([numpy_newton_schulz(m, 5, coefficients) for m in flat]).reshape(shape)
    np.testing.assert_allclose(newton_schulz(x, 5, coefficients), expected, atol=2e-5)


def test_converges_to_the_orthogonal_factor():
    x = np.asarray(random(8, 12), np.float64)
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    with jax.enable_x64(True):
        cubic = newton_schulz(jnp.asarray(x), 30, CUBIC)
        polar = newton_schulz(jnp.asarray(x), 10, POLAR_EXPRESS)
        np.testing.assert_allclose(cubic, u @ vt, atol=1e-12)
        np.testing.assert_allclose(polar, u @ vt, atol=1e-6)


def test_singular_values_at_256():
    x = random(256, 256)

    def singular_values(steps, coefficients):
        return np.linalg.svd(np.asarray(newton_schulz(x, steps, coefficients)), compute_uv=False)

    assert np.median(singular_values(3, CUBIC)) == pytest.approx(0.17, abs=0.01)
    assert np.median(singular_values(5, QUINTIC)) == pytest.approx(0.86, abs=0.02)
    polar = singular_values(6, POLAR_EXPRESS)
    assert np.abs(np.median(polar) - 1) < 0.02
    quintic_error = np.abs(singular_values(6, QUINTIC) - 1).mean()
    assert np.abs(polar - 1).mean() < quintic_error / 2


@pytest.mark.parametrize("factor", [1e-30, 1e-10, 1e30])
def test_result_does_not_depend_on_scale(factor):
    x = random(5, 7)
    np.testing.assert_allclose(newton_schulz(factor * x), newton_schulz(x), atol=1e-5)


def test_float16_and_the_smallest_numbers():
    """Below 1.5e-5 a float16 number's reciprocal is no float16 number any more."""
    tiny = newton_schulz(1e-5 * jnp.eye(3, dtype=jnp.float16))
    assert tiny.dtype == jnp.float16
    np.testing.assert_allclose(tiny, newton_schulz(jnp.eye(3)), atol=5e-3)
    x = random(5, 7)
    low = newton_schulz((6e4 / jnp.abs(x).max() * x).astype(jnp.float16))
    np.testing.assert_allclose(low, newton_schulz(x), atol=2e-2)
    assert jnp.isfinite(newton_schulz(1e-40 * x)).all()


def test_complex_matrices_by_their_conjugate_transpose():
    x = np.asarray(random(2, 4, 6)) + 1j * np.asarray(random(2, 4, 6, seed=1))
    expected = [numpy_newton_schulz(matrix, 5, QUINTIC) for matrix in x]
    np.testing.assert_allclose(newton_schulz(jnp.asarray(x)), expected, atol=2e-5)
    u, _, vt = np.linalg.svd(x[0], full_matrices=False)
    polar = newton_schulz(jnp.asarray(x[0]), 12, POLAR_EXPRESS)
    np.testing.assert_allclose(polar, u @ vt, atol=1e-4)


def test_coefficients_are_the_published_ones():
    """The numbers, and what five steps make of singular values, from the polynomials by hand."""
    assert QUINTIC == ((3.4445, -4.7750, 2.0315),) and CUBIC == ((1.5, -0.5, 0.0),)
    # A diagonal matrix's singular values, divided by its norm, follow the polynomial one by one.
    values = np.array([1.0, 0.3, 0.1, 0.03, 0.01, 0.003])
    with jax.enable_x64(True):
        after = {
            name: np.diag(newton_schulz(jnp.diag(jnp.asarray(values)), 5, coefficients))
            for name, coefficients in (("q", QUINTIC), ("c", CUBIC), ("p", POLAR_EXPRESS))
        }
    np.testing.assert_allclose(
        after["q"], [0.7526, 0.9246, 0.6848, 1.0955, 0.6841, 1.0847], atol=1e-4
    )
    np.testing.assert_allclose(after["c"], [1.0, 0.9936, 0.6356, 0.2145, 0.0723, 0.0217], atol=1e-4)
    np.testing.assert_allclose(
        after["p"], [0.9988, 1.1064, 0.9584, 1.1226, 1.0038, 0.9931], atol=1e-4
    )


def test_zero_stays_zero_with_finite_gradient():
    zero = jnp.zeros((3, 4))
    assert not newton_schulz(zero).any()
    assert jnp.isfinite(jax.grad(lambda x: newton_schulz(x).sum())(zero)).all()


def test_zero_steps_and_empty_matrices_come_back():
    x = random(3, 4)
    assert newton_schulz(x, 0) is x
    assert newton_schulz(jnp.zeros((0, 4))).shape == (0, 4)


def test_jit_vmap_and_bfloat16():
    x = random(3, 4, 6)
    expected = newton_schulz(x)
    np.testing.assert_allclose(jax.jit(newton_schulz)(x), expected, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(newton_schulz)(x), expected, atol=1e-6)
    low = newton_schulz(x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), expected, atol=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: newton_schulz(jnp.ones(3)), r"expects matrices .* got shape \(3,\)"),
        (lambda: newton_schulz(jnp.ones((2, 2)), -1), "steps=-1"),
        (lambda: newton_schulz(jnp.ones((2, 2)), 5, (1.0, 2.0)), "coefficients"),
        (lambda: newton_schulz(jnp.ones((2, 2)), jnp.array(5)), "static_args"),
    ],
)
def test_errors_say_what_was_given(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_equal_shapes_share_one_call(monkeypatch):
    module = sys.modules["hope_jax.optim.newton_schulz"]
    stacks = []

    def spy(stack, *args, **kwargs):
        stacks.append(stack.shape)
        return newton_schulz(stack, *args, **kwargs)

    monkeypatch.setattr(module, "newton_schulz", spy)
    tree = {
        "a": random(4, 6, seed=1),
        "b": random(6, 4, seed=2),
        "scanned": random(3, 4, 6, seed=3),
        "heads": random(4, 2, 3, seed=4),
        "square": random(5, 5, seed=5),
    }
    numbers = {
        "a": MuonDimensionNumbers(),
        "b": MuonDimensionNumbers(),
        "scanned": MuonDimensionNumbers(1, 2),
        "heads": MuonDimensionNumbers(0, (1, 2)),
        "square": MuonDimensionNumbers(),
    }
    result = orthogonalize(tree, resolve_axes(numbers, tree))
    assert sorted(stacks) == [(1, 5, 5), (6, 4, 6)]
    for name in ("a", "b", "scanned", "square"):
        np.testing.assert_allclose(result[name], newton_schulz(tree[name]), atol=1e-6)
    heads = newton_schulz(tree["heads"].reshape(4, 6)).reshape(4, 2, 3)
    np.testing.assert_allclose(result["heads"], heads, atol=1e-6)


def test_batched_form_of_accelerators_is_that_of_one_matrix_after_another():
    """The CPU takes each matrix by itself; elsewhere the stack is iterated as a whole."""
    stack = random(3, 4, 6) * jnp.array([1.0, 1e-25, 0.0])[:, None, None]
    batched = _iterate(stack, QUINTIC * 5, None)
    np.testing.assert_allclose(batched, newton_schulz(stack), atol=1e-5)
    np.testing.assert_allclose(batched[1], newton_schulz(1e25 * stack[1]), atol=1e-5)


@pytest.mark.parametrize("steps", [3, 4, 7])
@pytest.mark.parametrize("coefficients", [QUINTIC, CUBIC, POLAR_EXPRESS])
def test_wide_matrices_by_the_products_of_their_short_side(steps, coefficients):
    """With singular values down to a millionth, too."""
    u, _, vt = np.linalg.svd(np.asarray(random(12, 30), np.float64), full_matrices=False)
    hard = jnp.asarray(u * np.logspace(0, -6, 12) @ vt, jnp.float32)
    stack = jnp.stack([hard, 1e-25 * hard, random(12, 30), jnp.zeros((12, 30))])
    per_step = steps_of(steps, coefficients)
    expected = [numpy_newton_schulz(matrix, steps, coefficients) for matrix in stack]
    for form in (_iterate, _iterate_gram):
        found = jnp.stack([form(matrix, per_step, None) for matrix in stack])
        np.testing.assert_allclose(found, np.stack(expected), atol=1e-4)
    with jax.enable_x64(True):
        exact = _iterate_gram(jnp.asarray(np.asarray(hard, np.float64)), per_step, None)
        np.testing.assert_allclose(exact, expected[0], atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "dtype", "steps", "expected"),
    [
        ((3, 4, 8), "float32", 5, True),
        ((8, 4), "float32", 5, True),
        ((4, 7), "float32", 5, False),
        ((4, 8), "bfloat16", 5, False),
        ((4, 8), "float32", 2, False),
    ],
)
def test_the_short_side_s_products_are_for_wide_matrices_of_many_digits(
    monkeypatch, shape, dtype, steps, expected
):
    module, taken = sys.modules["hope_jax.optim.newton_schulz"], []
    spied = lambda *args, **kwargs: taken.append(True) or _iterate_gram(*args, **kwargs)
    monkeypatch.setattr(module, "_iterate_gram", spied)
    newton_schulz(random(*shape).astype(dtype), steps)
    assert bool(taken) == expected
