"""The step on one and on eight devices, and in micro-batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.models.blocks import Block
from hope_jax.training.optimizer import decayed, make_optimizer, needs_layer_inputs
from hope_jax.training.sharding import AXES, make_mesh
from hope_jax.training.step import init_state, make_eval_step, make_train_step, put_batch
from tests.training.runs import tiny_config


@pytest.fixture
def parts(tmp_path):
    config = tiny_config(tmp_path)
    model = LanguageModel(LanguageModelConfig.from_config_dict(config.model))
    generator = np.random.default_rng(0)
    weights = (generator.random((8, 16)) < 0.7).astype(np.float32)  # uneven between rows
    batch = dict(
        tokens=generator.integers(0, 256, (8, 16), dtype=np.int32),
        targets=generator.integers(0, 256, (8, 16), dtype=np.int32),
        reset=generator.random((8, 16)) < 0.1,
        weights=weights,
    )
    return model, make_optimizer(config.optimizer, config.steps), batch


def one_device():
    devices = np.array(jax.devices()[:1]).reshape((1,) * len(AXES))
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def take(model, optimizer, batch, mesh, accumulate=1, steps=3, layer_inputs=False):
    state = init_state(model, optimizer, mesh, 0)
    step = make_train_step(model, optimizer, mesh, accumulate, layer_inputs)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, put_batch(batch, mesh))
        # Adam would hide a gradient that is too large by a factor; the norm does not.
        losses.append([float(value) for value in metrics])
    assert step.function._cache_size() == 1  # the state that comes out is of the kind that went in
    return state, np.array(losses)


def test_eight_devices_make_the_losses_of_one(parts):
    _, single = take(*parts, one_device())
    state, sharded = take(*parts, make_mesh(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(sharded, single, rtol=1e-4)
    # The warm-up moves from its first step on.
    assert single[2, 0] < single[1, 0] < single[0, 0]
    kernels = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if "kernel" in jax.tree_util.keystr(path) and leaf.ndim > 2
    }
    assert any("params" in name for name in kernels)
    assert any("optimizer" in name for name in kernels)
    for name, leaf in kernels.items():
        assert leaf.addressable_shards[0].data.size * 4 == leaf.size, name


def test_micro_batches_make_the_gradient_of_the_whole_batch(parts):
    whole, losses = take(*parts, one_device())
    split, parted = take(*parts, one_device(), accumulate=4)
    np.testing.assert_allclose(parted, losses, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), whole.params, split.params
    )


BFLOAT16 = LanguageModel(
    LanguageModelConfig(
        vocab_size=16,
        width=8,
        num_layers=1,
        num_heads=1,
        mlp_width=8,
        sequence_layer="attention",
        attention_window=4,
        param_dtype="bfloat16",
    )
)
ROW = dict(
    tokens=np.array([[3, 1, 4, 1]], np.int32),
    targets=np.array([[1, 4, 1, 5]], np.int32),
    weights=np.ones((1, 4), np.float32),
)
MICRO_BATCHES = 1024
ROWS = {name: np.repeat(value, MICRO_BATCHES, 0) for name, value in ROW.items()}


@functools.cache
def bfloat16_step(accumulate):
    """A state of bfloat16 parameters under AdamW with decay, and a step that takes it."""
    optimizer = optax.with_extra_args_support(optax.adamw(0.01, weight_decay=0.1))
    state = init_state(BFLOAT16, optimizer, one_device(), 0)
    state = jax.tree.map(np.array, state)  # copied: a step gives up what it is given
    return state, make_train_step(BFLOAT16, optimizer, one_device(), accumulate)


def test_bfloat16_gradients_of_many_micro_batches_are_summed_in_float32():
    """A sum in bfloat16 stops growing at some hundred equal addends: a third of the norm was left."""

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        inputs = {"params": params}, ROW["tokens"], ROW["targets"]
        return BFLOAT16.apply(*inputs, method="token_losses").mean()

    state, step = bfloat16_step(MICRO_BATCHES)
    expected, gradient = loss(state.params)
    norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in jax.tree.leaves(gradient)))
    new, metrics = step(state, put_batch(ROWS, one_device()))
    np.testing.assert_allclose(metrics.loss, expected, rtol=1e-5)
    # Each row's gradient is rounded to bfloat16 once; their sum and its norm are not.
    np.testing.assert_allclose(metrics.gradient_norm, norm, rtol=2e-3)
    # Adam's first update is the rate times the sign: one for each parameter that has a gradient.
    moved = sum(int(np.sum(np.asarray(g) != 0)) for g in jax.tree.leaves(gradient))
    np.testing.assert_allclose(metrics.update_norm, 0.01 * moved**0.5, rtol=0.02)
    kinds = lambda state: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    assert kinds(new) == kinds(state)


@pytest.mark.parametrize("accumulate", [1, MICRO_BATCHES])
def test_a_batch_without_weights_changes_nothing_but_the_count(accumulate):
    state, step = bfloat16_step(accumulate)
    none = {**ROWS, "weights": np.zeros_like(ROWS["weights"])}
    # The moments of the step before would move the parameters, and so would their decay.
    moved = jax.tree.map(np.array, step(state, put_batch(ROWS, one_device()))[0])
    assert np.any(moved.params["embedding"] != state.params["embedding"])
    after, metrics = step(moved, put_batch(none, one_device()))
    assert [int(after.step), *map(float, metrics)] == [2, 0, 0, 0, 0, 0]
    assert metrics.gradient_norm.dtype == jnp.float32
    jax.tree.map(
        np.testing.assert_array_equal, (after.params, after.optimizer), (moved[1], moved[2])
    )
    jax.tree.map(np.testing.assert_array_equal, after.seen, moved.seen)
    evaluate = make_eval_step(BFLOAT16, one_device())
    assert [float(x) for x in evaluate(after.params, put_batch(none, one_device()))] == [0, 0]


def test_a_bad_batch_changes_nothing_but_what_is_counted():
    state, step = bfloat16_step(1)
    bad = {**ROWS, "weights": np.where(ROWS["tokens"] == 3, np.nan, ROWS["weights"])}
    moved = jax.tree.map(np.array, step(state, put_batch(ROWS, one_device()))[0])
    after, metrics = step(moved, put_batch(bad, one_device()))
    after = jax.tree.map(np.array, after)
    jax.tree.map(
        np.testing.assert_array_equal, (after.params, after.optimizer), (moved[1], moved[2])
    )
    assert (int(after.step), int(metrics.skipped), int(metrics.in_a_row)) == (2, 1, 1)
    assert np.isnan(metrics.loss) and np.isfinite(after.seen.norms).sum() == 1
    good, metrics = step(after, put_batch(ROWS, one_device()))
    assert np.any(np.asarray(good.params["embedding"]) != after.params["embedding"])
    assert (int(metrics.skipped), int(metrics.in_a_row), int(good.seen.learnt)) == (1, 0, 2)


def test_delta_gradient_descent_forgets_along_the_inputs_of_the_levels(parts):
    """By hand: `w - eta' (g + beta mean(u u^T) w)`, with u what each map of the MLPs read."""
    model, _, batch = parts
    model = LanguageModel(dataclasses.replace(model.config, num_layers=2))
    config = dict(
        name="delta_gradient_descent",
        learning_rate=0.25,
        warmup_steps=0,
        final_fraction=1.0,
        clip_norm=0.0,
        weight_decay=0.0,
        arguments={"strength": 0.5},
        periods={},
    )
    optimizer = make_optimizer(config, 10)
    # Copied: the state is given up to the step.
    params = jax.tree.map(np.array, init_state(model, optimizer, one_device(), 0).params)

    def loss(params):
        losses = model.apply(
            {"params": params},
            batch["tokens"],
            batch["targets"],
            reset=batch["reset"],
            method="token_losses",
        )
        return jnp.sum(losses * batch["weights"]) / batch["weights"].sum()

    eta = 0.25 / 1.25
    expected = jax.tree.map(
        lambda w, g: np.array(w - eta * g), params, jax.jit(jax.grad(loss))(params)
    )
    x = params["embedding"][batch["tokens"]] * model.config.width**0.5
    for layer in range(2):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        (x, _), kept = Block(model.config).apply(
            {"params": block}, x, None, batch["reset"], capture_intermediates=True
        )
        read = np.array(kept["intermediates"]["continuum"]["level_0_norm"]["__call__"][0])
        level = {name: value["kernel"] for name, value in block["continuum"]["level_0"].items()}
        hidden = np.array(jax.nn.silu(read @ level["gate"])) * (read @ level["up"])
        for name, u in (("gate", read), ("up", read), ("down", hidden)):
            u = u.reshape(-1, u.shape[-1])
            u = u / np.linalg.norm(u, axis=-1, keepdims=True)
            forgotten = 0.5 * u.T @ (u @ level[name]) / len(u)
            assert np.abs(eta * forgotten).max() > 1e-3
            expected["blocks"]["continuum"]["level_0"][name]["kernel"][layer] -= eta * forgotten

    for accumulate in (1, 4):
        state, _ = take(
            model,
            optimizer,
            batch,
            one_device(),
            accumulate,
            steps=1,
            layer_inputs=needs_layer_inputs(config),
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), state.params, expected
        )


def test_only_maps_decay(parts):
    params = init_state(*parts[:2], one_device(), 0).params
    for path, decays in jax.tree_util.tree_leaves_with_path(decayed(params)):
        name = jax.tree_util.keystr(path)
        assert decays == ("kernel" in name), name


def learning_model(model):
    changes = dict(num_layers=2, cms_levels=2)
    plain = dataclasses.replace(model.config, **changes)
    return LanguageModel(
        dataclasses.replace(plain, in_context={"chunks": (4, 8), "step_size": 1.0})
    )


def test_levels_learn_in_context_and_on_their_own_schedule(parts):
    """Both kinds of updates at once: chunks within a sequence, and every third optimiser step."""
    model, _, batch = parts
    model = learning_model(model)
    config = dict(
        name="sgd",
        learning_rate=0.1,
        warmup_steps=0,
        final_fraction=1.0,
        clip_norm=0,
        weight_decay=0.0,
        arguments={},
        periods={"level_1": 3},
    )
    optimizer = make_optimizer(config, 10)
    start, _ = take(model, optimizer, batch, one_device(), steps=2)
    state, single = take(model, optimizer, batch, one_device(), steps=4)
    plain = LanguageModel(dataclasses.replace(model.config, in_context=None))
    _, without = take(plain, optimizer, batch, one_device(), steps=1)
    assert abs(without[0, 0] - single[0, 0]) > 1e-5
    # After two steps the slower level is where it began; after four it has moved once.
    initial = init_state(model, optimizer, one_device(), 0).params["blocks"]["continuum"]
    for held, level, still in ((start, "level_0", 0), (start, "level_1", 1), (state, "level_1", 0)):
        moved = held.params["blocks"]["continuum"][level]["up"]["kernel"]
        same = np.array_equal(np.asarray(moved), np.asarray(initial[level]["up"]["kernel"]))
        assert same == still, level


def test_layer_inputs_of_a_model_that_learns_in_context_are_refused(parts):
    model, optimizer, _ = parts
    with pytest.raises(ValueError, match="leave out model.in_context"):
        make_train_step(learning_model(model), optimizer, one_device(), layer_inputs=True)
