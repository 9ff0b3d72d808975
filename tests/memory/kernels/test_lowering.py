"""Every operation that is written again for Mosaic, against the one that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory.kernels.lowering import for_mosaic
from hope_jax.memory.triangular import unit_lower_inverse

DRAW = np.random.default_rng(0)
MATRIX, OTHER = (jnp.asarray(DRAW.normal(size=(8, 8)), jnp.float32) for _ in range(2))
ROW = jnp.asarray(DRAW.normal(size=8), jnp.float32)
MASK = ROW > 0
dot = lambda *dims: lambda a, b: jax.lax.dot_general(a, b, (dims, ((), ())))
FUNCTIONS = {
    "running sums": (jnp.cumsum, ROW),
    "of whole numbers": (jnp.cumsum, MASK),
    "backwards": (lambda x: jax.lax.cumsum(x, axis=1, reverse=True), MATRIX),
    "iota": (lambda x: x * jnp.arange(8), ROW),
    "matrix and vector": (jnp.matmul, MATRIX, ROW),
    "the same of bfloat16": (
        lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32),
        MATRIX.astype(jnp.bfloat16),
        ROW[:, None].astype(jnp.bfloat16),
    ),
    "vector and matrix": (jnp.matmul, ROW, MATRIX),
    "of vectors, outer": (jnp.outer, ROW, ROW),
    "transposed": (dot((0,), (1,)), MATRIX, OTHER),
    "transposed twice": (lambda a: a.T.T + a.T, MATRIX),
    "product of a transpose": (lambda a, b: (a.T @ b).T, MATRIX, OTHER),
    "one matrix of several": (jnp.matmul, MATRIX[None], OTHER[None]),
    "several matrices": (jnp.matmul, jnp.stack([MATRIX, OTHER]), jnp.stack([OTHER, OTHER])),
    "one of several and one": (lambda a, b: jnp.einsum("mij,jk->mik", a, b), MATRIX[None], OTHER),
    "mask": (lambda mask, x: jnp.where(mask[:, None], x, 0), MASK, MATRIX),
    "last of a mask": (lambda mask, x: jnp.where(mask[-1], x, 0), MASK, MATRIX),
    "nothing beside": (lambda x: jnp.concatenate([x, x[:0]]), MATRIX),
    "nothing given to a function": (
        lambda x: jax.jit(lambda x, none: jnp.concatenate([x, none]))(x, x[:0]),
        MATRIX,
    ),
    "sum of nothing": (lambda x: x + jnp.sum(x[:0], axis=0), MATRIX),
    "gradient of nothing beside": (
        jax.grad(lambda x: jnp.sum(jnp.sin(jnp.concatenate([x[:0], x])))),
        MATRIX,
    ),
    "by platform": (unit_lower_inverse, MATRIX),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_what_it_stands_for(name):
    function, *args = FUNCTIONS[name]
    (mine,) = jax.jit(lambda *args: for_mosaic(lambda *args: [function(*args)], *args))(*args)
    expected = jax.jit(function)(*args)
    assert mine.dtype == expected.dtype and mine.shape == expected.shape
    np.testing.assert_allclose(mine, expected, rtol=2e-6, atol=1e-6)


def test_expm1_keeps_its_digits_near_zero():
    x = jnp.array([-jnp.inf, -90.0, -1.0, -1e-3, -1e-8, 0.0])
    (mine,) = for_mosaic(lambda x: [jnp.expm1(x)], x)
    np.testing.assert_allclose(mine, np.expm1(np.float64(x)), rtol=1e-6, atol=0)


def test_three_passes_have_sixteen_bits():
    """And are asked for by `Precision.HIGH`, which Mosaic does not have."""
    high = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGH)
    (mine,) = for_mosaic(lambda *args: [high(*args)], MATRIX, OTHER)
    exact = np.float64(MATRIX) @ np.float64(OTHER)
    error = np.abs(mine - exact).max()
    assert 1e-7 < error < 2**-14 * np.abs(MATRIX).max() * np.abs(OTHER).sum()
    lowered = jax.make_jaxpr(lambda *args: for_mosaic(lambda *x: [high(*x)], *args))(MATRIX, OTHER)
    assert str(lowered).count("dot_general") == 3 and "HIGH" not in str(lowered)


def test_what_it_cannot_write_again_it_names():
    with pytest.raises(NotImplementedError, match="a running sum along axis 0"):
        for_mosaic(lambda x: [jnp.cumsum(x, axis=0)], MATRIX)
