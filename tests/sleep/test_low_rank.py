"""Low-rank changes against products in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import MuonDimensionNumbers

from hope_jax.optim import dimension_numbers_by_path
from hope_jax.sleep.low_rank import add_low_rank, init_low_rank

RANDOM = np.random.default_rng(0)
PARAMS = {
    "attention": {
        "query": RANDOM.normal(size=(3, 8, 2, 5)).astype(np.float32),
        "out": RANDOM.normal(size=(3, 2, 5, 8)).astype(np.float32),
    },
    "up": RANDOM.normal(size=(8, 6)).astype(jnp.bfloat16),
    "norm": np.ones((3, 8), np.float32),
}
NAMED = dimension_numbers_by_path(
    [
        ("query", MuonDimensionNumbers(1, (2, 3))),
        ("out", MuonDimensionNumbers((1, 2), 3)),
        ("up", MuonDimensionNumbers(0, 1)),
        ("", None),
    ]
)


def test_changes_are_products_along_the_named_axes():
    changes = init_low_rank(jax.random.key(0), PARAMS, NAMED, rank=2)
    assert list(changes) == ["attention/out", "attention/query", "up"]
    unchanged = add_low_rank(PARAMS, changes, NAMED, alpha=5)
    jax.tree.map(np.testing.assert_array_equal, unchanged, PARAMS)
    filled = jax.tree.map(lambda x: RANDOM.normal(size=x.shape).astype(np.float32), changes)
    made = add_low_rank(PARAMS, filled, NAMED, alpha=5)
    for name, shape in (("query", (3, 8, 10)), ("out", (3, 10, 8))):
        down, up = filled[f"attention/{name}"]
        before = PARAMS["attention"][name]
        expected = [
            matrix + 2.5 * a @ b
            for matrix, a, b in zip(before.reshape(shape), down, up, strict=True)
        ]
        expected = np.reshape(expected, before.shape)
        np.testing.assert_allclose(made["attention"][name], expected, rtol=1e-4, atol=1e-5)
    assert made["up"].dtype == jnp.bfloat16 and made["norm"] is PARAMS["norm"]
    down, up = (x[0] for x in filled["up"])
    expected = PARAMS["up"].astype(np.float32) + 2.5 * down @ up
    np.testing.assert_allclose(made["up"].astype(np.float32), expected, rtol=0.02, atol=0.05)


def test_inputs_of_any_width_give_changes_of_a_size():
    changes = init_low_rank(jax.random.key(0), {"a": jnp.ones((900, 4))}, None, rank=8)
    np.testing.assert_allclose(changes["a"].down.std() * 30, 1, atol=0.05)
    both = {"up": jnp.ones((9, 4)), "down": jnp.ones((9, 4))}
    different = init_low_rank(jax.random.key(0), both, None, rank=1)
    assert (different["up"].down != different["down"].down).all()


def test_what_changes_nothing_is_refused():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        init_low_rank(jax.random.key(0), PARAMS, NAMED, rank=0)
    with pytest.raises(ValueError, match="no parameter is named"):
        init_low_rank(jax.random.key(0), PARAMS, dimension_numbers_by_path([("", None)]), rank=1)
