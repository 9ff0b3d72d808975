"""Local errors of the inner objectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory.objectives import HuberError, LpError, dot_error, l2_error


def huber(error):
    size = np.abs(error)
    return np.where(size <= 0.7, error**2 / 2, 0.7 * (size - 0.35))


@pytest.mark.parametrize(
    ("error", "loss"),
    [
        (l2_error, lambda output, target: (output - target) ** 2 / 2),
        (dot_error, lambda output, target: -output * target),
        (LpError(2.0), lambda output, target: (output - target) ** 2 / 2),
        (LpError(3.0), lambda output, target: np.abs(output - target) ** 3 / 3),
        (LpError(2.5), lambda output, target: np.abs(output - target) ** 2.5 / 2.5),
        (HuberError(0.7), lambda output, target: huber(output - target)),
    ],
)
def test_is_the_derivative_of_its_loss(error, loss, x64):
    output, target = np.random.default_rng(0).normal(size=(2, 50))
    slope = (loss(output + 1e-6, target) - loss(output - 1e-6, target)) / 2e-6
    np.testing.assert_allclose(error(jnp.asarray(output), jnp.asarray(target)), slope, atol=1e-8)


@pytest.mark.parametrize(("power", "slopes"), [(2.0, (1, 0)), (3.0, (0, 0)), (4.0, (0, 0))])
def test_an_error_of_zero_has_derivatives(power, slopes):
    """A power's own are infinite times zero there; a memory that is right makes such errors."""
    error = lambda output: LpError(power)(output, 1.0)
    once = jax.grad(error)
    assert (float(once(1.0)), float(jax.grad(once)(1.0))) == slopes
    assert float(error(1.0)) == 0
