import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.layers.rotary import apply_rotary, rotary_angles, rotary_frequencies


@pytest.mark.parametrize("base", [10_000.0, 1_000_000.0])
def test_angles_are_exact_far_from_the_start(base):
    positions = np.array([0, 1, 63, 65_535, 65_536, 99_999, 100_000, 16_777_217, 2**31 - 1])
    frequencies = base ** (-np.arange(0, 16, 2) / 16)
    exact = positions[:, None].astype(np.float64) * frequencies
    angles = np.asarray(
        rotary_angles(jnp.asarray(positions), rotary_frequencies(16, base)), np.float64
    )
    near = positions <= 100_000
    np.testing.assert_allclose(np.exp(1j * angles)[near], np.exp(1j * exact)[near], atol=1e-6)
    np.testing.assert_allclose(np.exp(1j * angles), np.exp(1j * exact), atol=3e-5)
    assert np.abs(angles).max() <= np.pi + 1e-6


def test_rotation_is_a_complex_product():
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2], [99_998, 99_999, 100_000]])
    pairs = x[..., :4] + 1j * x[..., 4:]
    turn = np.exp(1j * positions[:, :, None, None] * 100.0 ** (-np.arange(4) / 4))
    rotated = np.asarray(
        apply_rotary(jnp.asarray(x), jnp.asarray(positions), rotary_frequencies(x.shape[-1], 100.0))
    )
    np.testing.assert_allclose(rotated[..., :4], (pairs * turn).real, atol=1e-5)
    np.testing.assert_allclose(rotated[..., 4:], (pairs * turn).imag, atol=1e-5)
