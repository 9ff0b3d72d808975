"""A token that is read block by block, against the scan over the stack; and levels that are held."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hope_jax import LanguageModel, LanguageModelConfig
from hope_jax.inference.level_tools import learnt_in, merge_level
from hope_jax.inference.sampling import read, sample
from hope_jax.models.in_context import HeldState
from hope_jax.models.language_model import ModelState
from hope_jax.models.stack import make_stack, read_token

WIDTH, BATCH = 4, 2
CONFIG = LanguageModelConfig(
    vocab_size=7,
    width=WIDTH,
    num_layers=3,
    num_heads=1,
    mlp_width=6,
    sequence_layer="attention",
    attention_window=3,
)
MIXED = dataclasses.replace(
    CONFIG,
    num_layers=4,
    pattern=("attention", "titans"),
    titans={"network": "matrix", "adaptive": ("k",), "memory_chunk": 2, "generator_chunk": 4},
)


@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["alike", "pattern"])
def test_a_token_is_read_as_by_the_stack_with_gradients(config):
    random = np.random.default_rng(0)
    xs = jnp.asarray(random.normal(size=(BATCH, 6, WIDTH)), jnp.float32)
    stack = make_stack(config, config.num_layers, None)
    params = nn.unbox(jax.jit(stack.init)(jax.random.key(0), xs, None, None, None, None, ()))
    params = params["params"]
    reset = jnp.asarray([[False], [True]])
    groups = range(jax.tree.leaves(params)[0].shape[0])
    first = slice(groups.start + 1, None)

    def whole(params, x, states):
        return stack.apply({"params": params}, x, states, reset, None, None, ())

    def alone(params, x, states):
        return read_token(config, params, groups, x, states, reset)

    def upper(params, x, states):
        own = make_stack(config, config.num_layers - config.num_layers // len(groups), None)
        params, states = jax.tree.map(lambda leaf: leaf[first], (params, states))
        return own.apply({"params": params}, x, states, reset, None, None, ())

    def upper_alone(params, x, states):
        states = jax.tree.map(lambda leaf: leaf[first], states)
        return read_token(config, params, groups[1:], x, states, reset)

    @jax.jit
    def both(params, xs):
        _, states = stack.apply({"params": params}, xs[:, :-1], None, None, None, None, ())
        found = []
        for reader in (whole, alone, upper, upper_alone):
            weigh = lambda params, x, reader=reader: (
                jnp.sum(jnp.sin(reader(params, x, states)[0])),
                reader(params, x, states),
            )
            found.append(jax.grad(weigh, (0, 1), has_aux=True)(params, xs[:, -1:]))
        return found

    all_of_them = both(params, xs)
    for theirs, ours in (all_of_them[:2], all_of_them[2:]):
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
        jax.tree.map(close, ours, theirs)


def test_levels_that_are_held_are_parameters_of_a_model_that_does_not_learn():
    learning = {"chunks": (2, 4), "blocks": 2, "step_size": 3.0}
    config = dataclasses.replace(CONFIG, cms_levels=2, in_context=learning)
    model = LanguageModel(config)
    tokens = np.random.default_rng(1).integers(7, size=(1, 9))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    context = read(model, params, tokens)
    adapting, continuum = learnt_in(context.state)
    weights = tuple(jax.tree.map(lambda w: w[:, 0], one.weights) for one in continuum.levels)
    held = context._replace(
        state=context.state._replace(adapting=HeldState(adapting.blocks.sequence, weights))
    )
    plain = LanguageModel(dataclasses.replace(config, in_context=None))
    merged = params
    for level in range(2):
        merged = merge_level(model, merged, context.state, level)
    merged.pop("log_step")
    joined = jax.tree.map(
        lambda *parts: jnp.concatenate(parts),
        context.state.blocks.sequence,
        adapting.blocks.sequence,
    )
    still = context._replace(state=ModelState(context.state.blocks._replace(sequence=joined)))
    # Many tokens, so that levels that learn would have changed; then token by token.
    more = np.random.default_rng(2).integers(7, size=(1, 8))
    ours, theirs = read(model, params, more, held), read(plain, merged, more, still)
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=2e-5, atol=1e-6)
    awake = read(model, params, more, context)
    assert np.abs(awake.logits - ours.logits).max() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, ours.state.adapting.weights, weights)
    said = [
        sample(model_, params_, context_, jax.random.key(3), num_tokens=6)
        for model_, params_, context_ in ((model, params, ours), (plain, merged, theirs))
    ]
    np.testing.assert_array_equal(said[0][0], said[1][0])
    np.testing.assert_allclose(said[0][1].logits, said[1][1].logits, rtol=2e-5, atol=1e-6)
    losses = [
        model_.apply(
            {"params": params_}, more[:, :-1], more[:, 1:], context_.state, method="score"
        )[0]
        for model_, params_, context_ in ((model, params, held), (plain, merged, still))
    ]
    np.testing.assert_allclose(*losses, rtol=2e-5, atol=1e-6)
