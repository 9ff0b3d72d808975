"""One token, thousands of times: what is written along it must not wear down what lies along others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.layers.self_modifying import (
    Initial,
    Inputs,
    read_sequence,
    read_sequence_by_token,
)
from hope_jax.layers.titans import TitansConfig
from hope_jax.memory.bank import Anchor

WIDTH = 16


def equal_tokens(length, dtype, **settings):
    """One head of the default layer, where everything but the chunk sizes is what it is by default."""
    config = TitansConfig(WIDTH, 1, eta_max=0.9, **settings)
    rule, keys = config.rule, jax.random.split(jax.random.key(0), 4)
    logit = lambda p: jnp.log(p) - jnp.log1p(-p)
    initial = Initial(
        rule.generators.bank.init(keys[0], WIDTH),
        rule.memory.bank.init(keys[1], WIDTH),
        eta_bias=logit(config.initial_eta / config.largest_eta),
        alpha_bias=logit(config.initial_alpha),
    )
    x, query = jax.random.normal(keys[2], (2, WIDTH), dtype)
    repeat = lambda row: jnp.broadcast_to(row, (length, *row.shape))
    log_theta = jnp.full(length, jnp.log(config.initial_theta))
    return rule, initial, Inputs(repeat(x), {"q": repeat(query)}, log_theta)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 1e-4), (jnp.bfloat16, 3e-2)], ids=["float32", "bfloat16"]
)
def test_other_keys_after_twenty_thousand_equal_tokens(dtype, tolerance):
    """Both forms agree wherever they are read, and weights have decayed, no more than that."""
    length = 20_000
    rule, initial, inputs = equal_tokens(length, dtype, memory_chunk=2, generator_chunk=4)
    log_alpha = jax.nn.log_sigmoid(initial.alpha_bias)
    others = jax.random.normal(jax.random.key(1), (50, WIDTH))
    others /= jnp.linalg.norm(others, axis=1, keepdims=True)

    @jax.jit
    def measure(initial, inputs):
        states = [
            form(rule, initial, inputs)[1] for form in (read_sequence, read_sequence_by_token)
        ]
        read = lambda bank, weights: bank.forward(Anchor(weights), others, jnp.float32)[0]
        outputs = [
            (
                read(rule.generators.bank, state.generators.weights),
                read(rule.memory.bank, state.memory.weights),
            )
            for state in states
        ]
        return outputs, [(state.generators.weights, state.memory.weights) for state in states]

    (fast, slow), weights = measure(initial, inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), fast, slow)
    decayed = jnp.exp(length * log_alpha)
    for after in weights:
        kept = jax.tree.map(
            lambda new, old: jnp.linalg.norm(new) / jnp.linalg.norm(old),
            after,
            (initial.generators, initial.memory),
        )
        np.testing.assert_allclose(jax.tree.leaves(kept), decayed, rtol=0.2)
