"""The update does not depend on how the matrices lie on eight (simulated) devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax.contrib import MuonDimensionNumbers

from hope_jax.optim import (
    adamuon,
    deep_momentum,
    delta_momentum,
    m3,
    multi_timescale,
    newton_schulz,
)

from .test_newton_schulz import random

PARAMS = {
    "first": random(8, 16),
    "second": random(8, 16, seed=1),
    "tall": random(16, 8, seed=2),
    "alone": random(8, 24, seed=3),
    "layers": random(3, 8, 16, seed=4),
    "bias": random(16, seed=5),
}
NUMBERS = {name: MuonDimensionNumbers(-2, -1) for name in PARAMS} | {"bias": None}
OPTIMIZERS = {
    "m3": m3(0.1, slow_every=2, weight_decay=0.1, weight_dimension_numbers=NUMBERS),
    "adamuon": adamuon(0.1, weight_dimension_numbers=NUMBERS),
    "delta_momentum": delta_momentum(0.1),
    "deep_momentum": deep_momentum(0.1, hidden_width=4),
    "multi_timescale": multi_timescale(m3(0.1, weight_dimension_numbers=NUMBERS), {0: 2}, 0),
}
SPECS = {
    "rows": lambda x: P(*[None] * (x.ndim - 2), "data") if x.ndim > 1 else P(),
    "columns": lambda x: P(*[None] * (x.ndim - 1), "data"),
    "both": lambda x: P(*[None] * (x.ndim - 2), "data", "model") if x.ndim > 1 else P("model"),
}


def steps(optimizer, params):
    state = jax.jit(optimizer.init)(params)
    update = jax.jit(optimizer.update)
    for _ in range(3):
        updates, state = update(params, state, params)
    return updates, state


def mesh_of(kind):
    assert jax.device_count() == 8
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("layout", SPECS)
def test_update_is_that_of_whole_matrices(name, layout):
    expected, expected_state = steps(OPTIMIZERS[name], PARAMS)
    mesh = mesh_of(AxisType.Auto)
    sharded = jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, SPECS[layout](x))), PARAMS
    )
    close = lambda a, b: np.testing.assert_allclose(
        a.astype(jnp.float32), b.astype(jnp.float32), atol=2e-3, rtol=1e-2
    )
    with jax.set_mesh(mesh):
        updates, state = steps(OPTIMIZERS[name], sharded)
    jax.tree.map(close, updates, expected)
    jax.tree.map(close, state, expected_state)


@pytest.mark.parametrize("name", ["m3", "delta_momentum"])
def test_without_a_mesh_in_context_too(name):
    expected, _ = steps(OPTIMIZERS[name], PARAMS)
    mesh = mesh_of(AxisType.Auto)
    sharded = jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, SPECS["both"](x))), PARAMS
    )
    updates, _ = steps(OPTIMIZERS[name], sharded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), updates, expected)


def test_explicit_shardings_are_kept_in_updates_and_state():
    mesh = mesh_of(AxisType.Explicit)
    expected, _ = steps(OPTIMIZERS["m3"], PARAMS)
    with jax.set_mesh(mesh):
        sharded = jax.tree.map(
            lambda x: jax.device_put(x, NamedSharding(mesh, SPECS["both"](x))), PARAMS
        )
        updates, state = steps(OPTIMIZERS["m3"], sharded)
        first = jax.jit(OPTIMIZERS["m3"].init)(sharded)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), updates, expected)
        assert jax.tree.map(jax.typeof, updates) == jax.tree.map(jax.typeof, sharded)
        assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, first)


def compiled(x, spec):
    mesh = mesh_of(AxisType.Auto)
    sharding = NamedSharding(mesh, spec)
    with jax.set_mesh(mesh):
        x = jax.device_put(x, sharding)
        return jax.jit(newton_schulz, out_shardings=sharding).lower(x).compile().as_text()


def test_a_stack_is_shared_out_and_iterated_without_talking():
    """No Gram matrix is reduced over devices and no matrix gathered: products are local."""
    text = compiled(random(8, 16, 32), P(None, "data", "model"))
    assert "all-to-all(" in text
    assert "all-reduce(" not in text and "all-gather(" not in text


def test_a_lone_matrix_is_not_gathered():
    text = compiled(random(16, 64), P(None, ("data", "model")))
    assert "all-reduce(" in text
    assert "all-gather(" not in text and "f32[16,64]" not in text


def test_init_from_shapes_alone():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    for optimizer in OPTIMIZERS.values():
        assert jax.tree.leaves(jax.eval_shape(optimizer.init, shapes))
