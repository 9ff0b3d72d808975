"""FLOPs by hand, of functions and of what lies outside a model's inner loops."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from hope_jax import LanguageModelConfig
from hope_jax.memory.kernels.scan import scan_in_vmem
from hope_jax.models import LanguageModel
from hope_jax.models.flops import count_flops, useful_flops
from hope_jax.models.parameter_count import parameter_shapes

MODEL = LanguageModelConfig(
    vocab_size=12,
    width=8,
    num_layers=2,
    num_heads=2,
    mlp_width=10,
    titans={"network": "matrix", "memory_chunk": 4, "generator_chunk": 4},
)
ATTENTION = dataclasses.replace(MODEL, sequence_layer="attention", attention_window=4, titans={})


def test_flops_are_those_of_the_products():
    x, w = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
    assert count_flops(lambda x, w: x @ w, x, w) == 2 * 2 * 3 * 4 * 5
    # The backward pass has two products of the same size.
    loss = lambda w, x: jnp.sum(jnp.sin(x @ w))
    assert count_flops(jax.grad(loss), w, x) == 2 * 2 * 2 * 3 * 4 * 5
    inside = jax.jit(jax.checkpoint(lambda x: jax.vmap(lambda row: row @ w)(x)))
    branches = lambda x: jax.lax.cond(x.sum() > 0, inside, lambda x: x @ jnp.ones((4, 5)), x)
    assert count_flops(branches, x) == 2 * 2 * 3 * 4 * 5
    dearest = lambda x: jax.lax.platform_dependent(
        x, tpu=lambda x: x @ jnp.ones((4, 4)), default=lambda x: x + 1
    )
    assert count_flops(dearest, x) == 0  # no TPU here
    steps = jnp.ones((5, 3, 4))
    in_kernel = lambda x: scan_in_vmem(lambda c, x: (c, x @ x.T), x[0], x, interpret=True)
    assert count_flops(in_kernel, steps) == 5 * 2 * 3 * 4 * 3


def test_all_but_the_memories_is_outside_of_their_loops():
    total, inner = useful_flops(MODEL, 8)
    shapes = jax.tree_util.tree_leaves_with_path(parameter_shapes(LanguageModel(MODEL)))
    # Each weight once forward and twice backward; memories begin with what is named first.
    multiplied = sum(
        math.prod(leaf.shape)
        for path, leaf in shapes
        if ("kernel" in (name := jax.tree_util.keystr(path)) or "embedding" in name)
        and "convolution" not in name
    )
    assert inner > 0 and total - inner == 6 * multiplied


@pytest.mark.parametrize("objective", ["next_token", "local"])
def test_levels_that_learn_are_an_inner_loop(objective):
    learning = {"objective": objective, "chunks": (4,), "blocks": 1}
    total, inner = useful_flops(dataclasses.replace(ATTENTION, in_context=learning), 9)
    plain, none = useful_flops(ATTENTION, 9)
    assert none == 0 and 0 < inner < total
    # Outside of it is less than in a model that does not learn and one more pass of its block.
    assert plain / 2 < total - inner < 1.5 * plain
