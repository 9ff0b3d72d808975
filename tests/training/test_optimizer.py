"""Optimisers by name, their schedule, and what is said of wrong names."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from hope_jax.layers.family import FAMILY
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.models.parameter_count import parameter_shapes
from hope_jax.optim import describe_weight_rules
from hope_jax.training.optimizer import OPTIMIZERS, make_optimizer, make_schedule, matrices


def settings(**changes):
    base = dict(
        name="adamw",
        learning_rate=0.1,
        warmup_steps=4,
        final_fraction=0.1,
        clip_norm=1.0,
        weight_decay=0.0,
        arguments={},
        periods={},
    )
    return ConfigDict({**base, **changes})


def test_schedule_rises_then_falls():
    schedule = make_schedule(settings(), 20)
    # Steps are counted from 0, and the first already moves.
    np.testing.assert_allclose(schedule(0), 0.025, rtol=1e-6)
    np.testing.assert_allclose(schedule(1), 0.05, rtol=1e-6)
    np.testing.assert_allclose(schedule(3), 0.1, rtol=1e-6)
    np.testing.assert_allclose(schedule(11), 0.055, rtol=1e-5)
    np.testing.assert_allclose(schedule(19), 0.01, rtol=1e-5)
    np.testing.assert_allclose(make_schedule(settings(warmup_steps=0), 20)(0), 0.1, rtol=1e-6)


SIZES = dict(vocab_size=32, width=16, num_layers=2, num_heads=2, mlp_width=16, cms_levels=2)
MODELS = {
    "hope": {},
    "hybrid": {"pattern": ("titans", "attention"), "titans": FAMILY["gated_delta_net"]},
    "joined": {
        "pattern": ("memory_as_context", "memory_as_gate"),
        "titans": FAMILY["omega"],
        "attention_window": 16,
        "persistent_tokens": 2,
    },
    "learning": {
        "sequence_layer": "attention",
        "num_kv_heads": 1,
        "cms_connection": "independent",
        "in_context": {"objective": "local", "chunks": (4, 8)},
    },
}


@pytest.mark.parametrize(
    "titans",
    [
        *FAMILY.values(),
        {"own_projections": True, "adaptive": ("k", "v", "q", "eta", "alpha")},
        {
            "strength": "gate",
            "strength_max": 0.8,
            "momentum": "learned",
            "step": "one",
            "adaptive": (),
        },
    ],
    ids=[*FAMILY, "own", "strength"],
)
def test_every_parameter_of_a_layer_is_known_to_be_a_matrix_or_not(titans):
    config = LanguageModelConfig(**SIZES, titans={**titans, "bounded_step": True})
    said = describe_weight_rules(parameter_shapes(LanguageModel(config)), matrices)
    assert "NO RULE" not in said
    for line in said.splitlines():
        name = line.split()[0]
        if "titans" in name and "memory_" not in name:
            gate = re.search("(eta|alpha)(_second|/kernel|_bias)|theta|strength|gamma", name)
            small = bool(gate) or "norm" in name or "convolution" in name
            assert line.rstrip().endswith("adamw") == small, line


@functools.cache
def params_of(kind):
    return parameter_shapes(LanguageModel(LanguageModelConfig(**SIZES, **MODELS[kind])))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_has_a_state_for_every_language_model(name, kind):
    params = params_of(kind)
    optimizer = make_optimizer(settings(name=name), 20)

    def step(params):
        # Those that take no inputs of layers are handed none by the train step.
        return optimizer.update(params, optimizer.init(params), params, inputs={})[0]

    updates = jax.eval_shape(step, params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


# An argument of each by name, and whether it has a weight decay.
ARGUMENTS = {
    "adam": ({"b1": 0.8, "eps": 1e-6}, False),
    "adamw": ({"b2": 0.95, "nesterov": True}, True),
    "sgd": ({"momentum": 0.9}, False),
    "ademamix": ({"b3": 0.99, "alpha": 4.0}, True),
    "muon": ({"ns_steps": 1, "beta": 0.9}, True),
    "adamuon": ({"ns_steps": 1, "b2": 0.9, "rms": 0.1}, True),
    "m3": ({"ns_steps": 1, "slow_every": 4, "alpha": 0.2}, True),
    "delta_momentum": ({"delta": 0.1}, True),
    "deep_momentum": ({"hidden_width": 2, "seed": 3}, True),
    "preconditioned_momentum": ({"decay": 0.8}, True),
    "delta_gradient_descent": ({"strength": 0.5}, True),
}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_takes_its_arguments_and_decays_maps_alone(name):
    arguments, decays = ARGUMENTS[name]
    config = settings(name=name, arguments=arguments, weight_decay=0.5 * decays, warmup_steps=0)
    optimizer = make_optimizer(config, 20)
    params = {
        "up": {"kernel": jnp.full((1, 3, 4), 2.0)},
        "embedding": jnp.ones((5, 3)),
        "norm": {"scale": jnp.ones(3)},
    }
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params, inputs={})
    # A step of delta gradient descent is shortened to eta / (1 + eta).
    rate = 0.1 / 1.1 if name == "delta_gradient_descent" else 0.1
    np.testing.assert_allclose(updates["up"]["kernel"], -rate * 0.5 * 2.0 * decays, rtol=1e-5)
    assert not updates["embedding"].any() and not updates["norm"]["scale"].any()
    if decays:  # also where the function's own default is another
        none = make_optimizer(settings(name=name, arguments=arguments, warmup_steps=0), 20)
        updates, _ = none.update(zero, none.init(params), params, inputs={})
        assert not updates["up"]["kernel"].any()
    else:
        with pytest.raises(ValueError, match=f"'{name}' has no weight decay; set it to 0"):
            make_optimizer(settings(name=name, weight_decay=0.1), 20)


def test_sums_of_bfloat16_parameters_are_float32():
    params = {"embedding": jnp.ones((4, 2), jnp.bfloat16)}
    for name in sorted(OPTIMIZERS):
        arguments = {"momentum": 0.9} if name == "sgd" else {}
        state = make_optimizer(settings(name=name, arguments=arguments), 20).init(params)
        assert {x.dtype for x in jax.tree.leaves(state)} <= {
            jnp.dtype("float32"),
            jnp.dtype("int32"),
        }
    huge = {"embedding": jnp.full((4, 2), 3e4, jnp.float16)}
    optimizer = make_optimizer(settings(name="sgd", warmup_steps=0), 20)
    updates, _ = optimizer.update(huge, optimizer.init(huge), huge)
    np.testing.assert_allclose(updates["embedding"], -0.1 / np.sqrt(8), rtol=1e-3)


def test_gradients_are_clipped_by_their_global_norm():
    optimizer = make_optimizer(settings(name="sgd", warmup_steps=0), 20)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.06, 0.0], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [-0.08], rtol=1e-6)


def test_a_level_moves_at_its_own_period():
    optimizer = make_optimizer(settings(name="sgd", clip_norm=0.0, periods={"level_1": 2}), 20)
    params = {"level_0": {"kernel": jnp.ones((2, 2))}, "level_1": {"kernel": jnp.ones((2, 2))}}
    state, moved = optimizer.init(params), []
    for _ in range(4):
        updates, state = optimizer.update(params, state, params)
        moved.append([bool(jnp.any(leaf)) for leaf in jax.tree.leaves(updates)])
        if len(moved) == 2:  # the level's first step, by the mean of two gradients of one
            np.testing.assert_allclose(updates["level_1"]["kernel"], -0.025, rtol=1e-6)
    assert moved == [[True, False], [True, True], [True, False], [True, True]]
    with pytest.raises(ValueError, match="level_7"):
        make_optimizer(settings(name="sgd", periods={"level_7": 2}), 20).init(params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(name="adamv"), "adamw"),
        (dict(name="delta_gradient_descent", arguments={"strenght": 1.0}), "strength"),
        (dict(arguments={"beta1": 0.9}), "b1"),
        (dict(name="sgd", weight_decay=0.1), "no weight decay"),
        (dict(warmup_steps=20), "warmup_steps=20 must lie below steps=20; shorten the warm-up"),
        (dict(warmup_steps=-3), "optimizer.warmup_steps must be a whole number of at least 0"),
        (dict(warmup_steps=2.5), "optimizer.warmup_steps must be a whole number"),
        (
            dict(learning_rate=0.0),
            "optimizer.learning_rate must be a finite number above 0, got 0.0",
        ),
        (dict(learning_rate=-1.0), "optimizer.learning_rate must be"),
        (dict(learning_rate=float("nan")), "optimizer.learning_rate must be"),
        (dict(learning_rate=float("inf")), "optimizer.learning_rate must be"),
        (dict(learning_rate="fast"), "optimizer.learning_rate must be a number, got 'fast'"),
        (dict(final_fraction=5.0), r"optimizer.final_fraction must be in \[0, 1\], got 5.0"),
        (dict(clip_norm=-1.0), "optimizer.clip_norm must be a finite number of at least 0"),
        (dict(weight_decay=-0.1), "optimizer.weight_decay must be a finite number of at least 0"),
        (dict(name="m3", arguments={"b1": -1.0}), r"b1 must be in \[0, 1\), got -1.0"),
        (dict(name="m3", arguments={"slow_every": 2.5}), "slow_every must be a whole number"),
        (dict(name="adamuon", arguments={"ns_step": 5}), "nearest: ns_steps"),
        (dict(name="adamuon", arguments={"alpha": 0.5}), "no argument of 'adamuon'"),
        (dict(arguments={"weight_decay": 0.1}), "set optimizer.weight_decay"),
        (dict(arguments={"mask": True}), "mask cannot be set there"),
        (dict(periods={"level_1": 0}), "period of 'level_1' must be an int of at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(settings(**changes), 20)
