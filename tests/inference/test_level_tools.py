"""Keeping, forgetting and making permanent what levels have learnt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.inference.context_file import load_context, save_context
from hope_jax.inference.level_tools import merge_level, reset_level
from hope_jax.inference.sampling import generate, read, score
from hope_jax.models import LanguageModel, LanguageModelConfig

CONFIG = LanguageModelConfig(
    vocab_size=11,
    width=8,
    num_layers=3,
    num_heads=2,
    mlp_width=12,
    sequence_layer="attention",
    attention_window=4,
    cms_levels=2,
    in_context={"chunks": (2, 6), "step_size": 2.0, "blocks": 2},
)
MODEL = LanguageModel(CONFIG)
TEXT = jnp.asarray(np.random.default_rng(0).integers(11, size=(2, 15)), jnp.int32)


@pytest.fixture(scope="module")
def params():
    return nn.unbox(jax.jit(MODEL.init)(jax.random.key(0), TEXT)["params"])


@pytest.fixture(scope="module")
def context(params):
    return read(MODEL, params, TEXT[:, :9])


def maps_of(state, level):
    return state.adapting.blocks.continuum.levels[level].weights


def test_a_context_goes_on_from_its_file_as_if_it_had_not_been_put_away(params, context, tmp_path):
    save_context(tmp_path / "state", context, MODEL, params)
    other = load_context(tmp_path / "state", MODEL, params)
    kept, _ = generate(
        MODEL, params, jax.tree.map(jnp.copy, context), jax.random.key(0), num_tokens=7
    )
    loaded, _ = generate(MODEL, params, other, jax.random.key(0), num_tokens=7)
    np.testing.assert_array_equal(loaded, kept)
    fresh, _ = generate(
        MODEL, params, read(MODEL, params, TEXT[:, 8:9]), jax.random.key(0), num_tokens=7
    )
    assert (fresh != kept).any()


def test_scores_do_not_depend_on_how_the_text_is_cut(params):
    whole, end = score(MODEL, params, TEXT)
    assert whole.shape == (2, 14)
    logits, _ = MODEL.apply({"params": params}, TEXT)
    expected = -jax.nn.log_softmax(logits)[:, :-1]
    expected = jnp.take_along_axis(expected, TEXT[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-5)
    first, context = score(MODEL, params, TEXT[:, :6], segment=4)
    second, context = score(MODEL, params, TEXT[:, 6:], context, segment=5)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(context.logits, end.logits, rtol=1e-4, atol=1e-5)


def test_a_level_is_reset_by_itself(params, context):
    state = reset_level(MODEL, params, context.state, 1)
    slow = params["blocks"]["continuum"]["level_1"]["up"]["kernel"][1:, None]
    assert np.abs(maps_of(context.state, 1).up - slow).max() > 1e-4
    np.testing.assert_array_equal(maps_of(state, 1).up, jnp.broadcast_to(slow, (2, 2, 8, 12)))
    assert not any(np.any(x) for x in state.adapting.blocks.continuum.levels[1].gradient)
    jax.tree.map(np.testing.assert_array_equal, maps_of(state, 0), maps_of(context.state, 0))
    jax.tree.map(np.testing.assert_array_equal, state.blocks, context.state.blocks)


def test_merged_weights_are_where_a_new_context_begins(params, context):
    merged = merge_level(MODEL, params, context.state, 0, sequence=1)
    fast = maps_of(context.state, 0).down[:, 1]
    continuum = merged["blocks"]["continuum"]
    np.testing.assert_array_equal(continuum["level_0"]["down"]["kernel"][1:], fast)
    for same in ("level_1", "level_0_norm"):
        jax.tree.map(
            np.testing.assert_array_equal, continuum[same], params["blocks"]["continuum"][same]
        )
    mean = merge_level(MODEL, params, context.state, 0)
    np.testing.assert_allclose(
        mean["blocks"]["continuum"]["level_0"]["up"]["kernel"][1:],
        maps_of(context.state, 0).up.mean(1),
    )


def test_a_plain_model_with_merged_weights_speaks_as_the_one_that_learnt(params):
    # With a window of one token, what was read lives in the weights only.
    learning = LanguageModel(dataclasses.replace(CONFIG, attention_window=1))
    plain = LanguageModel(dataclasses.replace(CONFIG, attention_window=1, in_context=None))
    state = read(learning, params, TEXT[:, :9]).state
    merged = params
    for index in range(2):
        merged = merge_level(learning, merged, state, index, sequence=1)
    logits, _ = plain.apply({"params": merged}, TEXT[1:, 9:10])
    expected, _ = learning.apply({"params": params}, TEXT[:, 9:10], state)
    np.testing.assert_allclose(logits, expected[1:], rtol=1e-5, atol=1e-5)
    before, _ = plain.apply({"params": params}, TEXT[1:, 9:10])
    assert np.abs(logits - before).max() > 1e-3


def test_levels_over_depth_are_told_apart_by_block():
    config = dataclasses.replace(
        CONFIG, cms_levels=1, in_context={"chunks": (2, 4), "step_size": 2.0, "blocks": 2}
    )
    model = LanguageModel(config)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), TEXT)["params"])
    state = read(model, params, TEXT).state
    after = reset_level(model, params, state, 0)
    slow = params["blocks"]["continuum"]["level_0"]["up"]["kernel"][1:, None]
    np.testing.assert_array_equal(maps_of(after, 0).up[0], jnp.broadcast_to(slow[0], (2, 8, 12)))
    np.testing.assert_array_equal(maps_of(after, 0).up[1], maps_of(state, 0).up[1])
    merged = merge_level(model, params, state, 1, sequence=0)
    new = merged["blocks"]["continuum"]["level_0"]["up"]["kernel"]
    np.testing.assert_array_equal(
        new[:2], params["blocks"]["continuum"]["level_0"]["up"]["kernel"][:2]
    )
    np.testing.assert_array_equal(new[2], maps_of(state, 0).up[1, 0])


def test_levels_that_are_not_there_are_refused(params, context):
    with pytest.raises(ValueError, match="there is no level 2: 2 chunk sizes"):
        reset_level(MODEL, params, context.state, 2)
    plain = LanguageModel(dataclasses.replace(CONFIG, in_context=None))
    with pytest.raises(ValueError, match="there is no level 0: 0 chunk sizes"):
        merge_level(plain, params, context.state, 0)
