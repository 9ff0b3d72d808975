import flax.linen as nn
import jax
import numpy as np

from hope_jax.layers.continuum import ContinuumMemory

X = jax.random.normal(jax.random.key(0), (2, 3, 4))


def naive_level(params, level, x):
    weights = nn.unbox(params)
    mlp = {name: np.asarray(value["kernel"]) for name, value in weights[f"level_{level}"].items()}
    scale = np.asarray(weights[f"level_{level}_norm"]["scale"])
    normed = scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    gate, up = normed @ mlp["gate"], normed @ mlp["up"]
    return x + (gate / (1 + np.exp(-gate)) * up) @ mlp["down"]


def test_levels_are_chained_in_the_order_asked_for():
    variables = ContinuumMemory(levels=3, hidden=6).init(jax.random.key(1), X)
    for order, levels in (("fast_to_slow", (0, 1, 2)), ("slow_to_fast", (2, 1, 0))):
        expected = np.asarray(X)
        for level in levels:
            expected = naive_level(variables["params"], level, expected)
        y, state = ContinuumMemory(levels=3, hidden=6, order=order).apply(variables, X)
        np.testing.assert_allclose(y, expected, atol=1e-5)
        assert jax.tree.leaves(state) == []


def test_independent_levels_read_the_same_input_and_are_weighed():
    layer = ContinuumMemory(levels=3, hidden=6, connection="independent")
    variables = nn.unbox(layer.init(jax.random.key(1), X))
    params = {**variables["params"], "level_shares": np.array([0.5, -1.0, 2.0], np.float32)}
    branches = [naive_level(params, level, np.asarray(X)) - X for level in range(3)]
    expected = X + 0.5 * branches[0] - branches[1] + 2 * branches[2]
    y, _ = layer.apply({"params": params}, X)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(variables["params"]["level_shares"], 1 / 3)
