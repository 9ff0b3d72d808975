"""The largest step sizes: stable at each bound, and not beyond; eigenvalues down to -1 are reached."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.layers.self_modifying import gate, within_bounds
from hope_jax.layers.titans import SelfModifyingTitans, TitansConfig
from hope_jax.memory import Bank, Gates, MemoryRule, Tokens, dot_error, l2_error, update_and_read
from hope_jax.memory.bank import Anchor

WIDTH, LENGTH = 4, 400
# objective, projector, generated target: the bound that docs/equations.md derives.
BOUNDS = {
    ("dot", "per_map", False): 2.0,
    ("dot", "per_map", True): 1.0,
    ("l2", "none", False): 2.0,
    ("l2", "none", True): 1.0,
    ("l2", "per_map", False): 1.0,
    ("l2", "per_map", True): 2 / 3,
}


def matrix_config(objective="l2", projector="per_map", generated=False, **settings):
    return TitansConfig(
        WIDTH,
        1,
        network="matrix",
        adaptive=(),
        objective=objective,
        projector=projector,
        generated_target=generated,
        **{"bounded_step": False, **settings},
    )


def recall(rule, eta, beta, alignment, alpha=1.0, length=LENGTH, scale=1.0):
    """What a memory gives for one key that is repeated, token by token; shape (T, N)."""
    key = jnp.zeros(WIDTH).at[0].set(1.0)
    value = alignment * key + (1 - alignment**2) ** 0.5 * jnp.roll(key, 1)
    initial = rule.bank.init(jax.random.key(0), WIDTH)
    initial = jax.tree.map(lambda w: scale * w, initial)
    keys, values = jnp.tile(key, (length, 1)), jnp.tile(value, (length, 1))
    gates = Gates(
        jnp.full(length, eta),
        jnp.full(length, jnp.log(alpha)),
        None if rule.projector == "none" else jnp.full(length, beta),
    )
    return update_and_read(rule, initial, Tokens(keys, values, gates, keys))[0]


@pytest.mark.parametrize("case", BOUNDS, ids=str)
def test_stable_at_the_bound_and_not_beyond(case):
    """A write a chunk, nothing forgotten, and the value where it is worst."""
    objective, projector, generated = case
    config = matrix_config(objective, projector, generated)
    assert config.eta_bound == pytest.approx(BOUNDS[case])
    assert config.largest_eta == pytest.approx(min(1, BOUNDS[case]))
    error = {"dot": dot_error, "l2": l2_error}[objective]
    rule = MemoryRule(
        Bank(activation=None), error, projector, False, generated_target=generated, chunk_size=1
    )
    size = jax.jit(lambda eta: jnp.linalg.norm(recall(rule, eta, eta, -1.0), axis=1))
    at, beyond = size(config.eta_bound), size(1.05 * config.eta_bound)
    assert at.max() < 1.01 * at[:2].max() + 1
    assert not beyond[-1] < 1e6 * beyond[0]


def test_strength_and_step_are_bounded_together():
    assert matrix_config(strength="gate", strength_max=1.5).eta_bound == pytest.approx(0.5)
    assert matrix_config("dot", strength="gate", strength_max=2.0).eta_bound == 2.0
    with pytest.raises(
        ValueError, match=r"above 0.5.*or strength_max smaller, or set bounded_step"
    ):
        matrix_config(strength="gate", strength_max=1.5, eta_max=0.6)
    # Bounded steps measure what an L2 loss feeds back, and there is nothing else to see to it for dot.
    assert matrix_config(bounded_step=True).eta_bound == 2.0
    assert matrix_config("dot", generated=True, bounded_step=True).eta_bound == 1.0


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("alignment", [-1.0, 0.0])
def test_bounded_steps_count_that_a_target_moves(chunk, alignment):
    """A target that goes away from the answer makes the error grow twice as fast."""
    rule = MemoryRule(
        Bank(activation=None), l2_error, "per_map", False, generated_target=True, chunk_size=chunk
    )
    bounded = dataclasses.replace(rule, bounded_step=True)
    size = lambda rule: jnp.linalg.norm(recall(rule, 0.9, 0.9, alignment), axis=1)
    free, bound = jax.jit(lambda: (size(rule), size(bounded)))()
    if alignment < 0:
        assert not free[-1] < 1e4 * free[0]
    assert bound.max() < 2 * bound[0]


@pytest.mark.parametrize("objective", ["dot", "l2"])
@pytest.mark.parametrize("chunk", [1, 5])
def test_a_projector_alone_reaches_eigenvalues_of_minus_one_in_chunks(objective, chunk):
    """Strength 2: what is stored along a key changes its sign with each token, exactly."""
    error = {"dot": dot_error, "l2": l2_error}[objective]
    rule = MemoryRule(Bank(activation=None), error, "per_map", False, chunk_size=chunk)
    rows = np.asarray(jax.jit(lambda: recall(rule, 0.0, 2.0, 0.0, length=12))())
    sign = (-1.0) ** np.arange(12)[:, None]
    np.testing.assert_allclose(rows, sign * rows[:1], rtol=1e-5, atol=1e-6)


def test_where_much_is_forgotten_strength_and_step_leave_room():
    """`alpha - beta - eta` is at least -1 at every alpha, not only at 1."""
    config = matrix_config(strength="gate", strength_max=1.5, initial_strength=1.4, eta_max=0.5)
    alpha = jnp.array([1.0, 0.5, 0.1])
    full = jnp.ones(3)
    eta, beta = within_bounds(config.rule, 0.5 * full, jnp.log(alpha), 1.5 * full)
    eigenvalue = alpha - beta - eta
    assert eigenvalue.min() >= -1 - 1e-6
    np.testing.assert_allclose(eigenvalue, [-1, -1, -1], atol=1e-6)
    np.testing.assert_allclose((eta[0], beta[0]), (0.5, 1.5))


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_bounded_step_of_an_mlp_wipes_or_flips(chunk):
    """Without a projector, to first order: the error goes to zero, or to its opposite, in a chunk."""
    rule = MemoryRule(Bank(), l2_error, "none", False, bounded_step=True, chunk_size=chunk)
    rules = rule, dataclasses.replace(rule, flips=True)
    wiped, flipped = jax.jit(lambda: [recall_near(rule, chunk) for rule in rules])()
    assert abs(wiped) < 0.05
    assert abs(flipped + 1) < 0.05


def recall_near(rule, chunk):
    """The error after a chunk over that before it, for a target so near that the MLP is linear."""
    key = jnp.zeros(WIDTH).at[0].set(1.0)
    initial = rule.bank.init(jax.random.key(1), WIDTH)
    gives = rule.bank.forward(Anchor(initial), key[None], jnp.float32)[0].values[0, 0]
    away = 1e-3 * jnp.array([1.0, -1.0, 0.5, 0.0])
    keys = jnp.tile(key, (chunk + 1, 1))
    gates = Gates(jnp.full(chunk + 1, 100.0), jnp.zeros(chunk + 1))
    out, _ = update_and_read(rule, initial, Tokens(keys, keys * 0 + gives - away, gates, keys))
    error = out[chunk] - (gives - away)
    return jnp.vdot(error, away) / jnp.vdot(away, away)


@pytest.mark.parametrize("projector", ["per_map", "first_map", "second_map"])
def test_flips_keep_an_mlp_bounded_for_long(projector):
    """Grown maps, large steps and repeated tokens, with momentum, over 10,000 tokens."""
    config = TitansConfig(
        8, 1, memory_chunk=4, generator_chunk=16, projector=projector, flips=True, eta_max=2.0,
        initial_eta=1.0,
    )  # fmt: skip
    layer = SelfModifyingTitans(config)
    x = jax.random.normal(jax.random.key(0), (1, 10_000, 8))
    texts = jnp.concatenate(
        [x, jnp.tile(x[:, :1], (1, 10_000, 1)), jnp.tile(x[:, :5], (1, 2000, 1))]
    )
    params = jax.jit(layer.init)(jax.random.key(1), x[:, :2])
    _, state = jax.jit(layer.apply)(params, texts)
    for leaf in jax.tree.leaves((state.heads.generators, state.heads.memory)):
        assert float(jnp.max(jnp.abs(leaf))) < 100


def test_gates_with_a_margin_reach_their_ends_and_go_on_learning():
    x = jnp.array([-9.0, -2.0, 0.5, 2.0, 9.0])
    cut = gate(x, 0.1)
    sigmoid = 1 / (1 + np.exp(-np.asarray(x)))
    np.testing.assert_allclose(cut, np.clip(1.2 * sigmoid - 0.1, 0, 1), atol=1e-6)
    assert cut[0] == 0 and cut[-1] == 1
    whole = 1.2 * sigmoid * (1 - sigmoid)
    for sign in (1, -1):
        # Descent goes against the slope: from below 0 it may only go up, from above 1 only down.
        slope = jax.vmap(jax.grad(lambda x, sign=sign: sign * gate(x, 0.1)))(x)
        kept = np.array([sign < 0, True, True, True, sign > 0])
        np.testing.assert_allclose(slope, sign * np.where(kept, whole, 0), rtol=1e-4)
    np.testing.assert_array_equal(gate(x, 0), jax.nn.sigmoid(x))


@pytest.mark.parametrize("chunk", [1, 16])
def test_what_is_turned_at_every_token_fades_without_a_margin_and_not_with_it(chunk):
    """Strength and eta near their ends, nothing forgotten: the sign of what is stored along the key."""
    x = jnp.ones((1, 600, WIDTH))
    outputs = {}
    for margin in (0.0, 0.05):
        config = matrix_config(
            "dot",
            strength="gate",
            strength_max=2.0,
            momentum="none",
            memory_chunk=chunk,
            generator_chunk=chunk,
            convolution=1,
            output_norm=False,
            gate_margin=margin,
        )
        layer = SelfModifyingTitans(config)
        params = jax.jit(layer.init)(jax.random.key(0), x[:, :2])["params"]
        params = nn.unbox(params)
        eta = config.largest_eta * gate(params["eta_bias"], margin)
        np.testing.assert_allclose(eta, config.initial_eta, rtol=1e-5)
        strength = 2 * gate(params["strength_bias"], margin)
        np.testing.assert_allclose(strength, config.initial_strength, rtol=1e-5)
        for name in ("eta", "alpha", "strength"):
            params[name] = jax.tree.map(jnp.zeros_like, params[name])
        biases = {"eta_bias": -4.0, "alpha_bias": 20.0, "strength_bias": 4.0}
        params |= {name: jnp.full(1, value) for name, value in biases.items()}
        outputs[margin] = jax.jit(layer.apply)({"params": params}, x)[0][0]
    # What lies across the key stays as it was.
    turns = {margin: out[::2] - out[1::2] for margin, out in outputs.items()}
    assert np.abs(turns[0.05][0]).max() > 0.05
    np.testing.assert_allclose(turns[0.05], np.tile(turns[0.05][0], (300, 1)), rtol=1e-3)
    assert np.abs(turns[0.0][-1]).max() < 0.3 * np.abs(turns[0.0][0]).max()
