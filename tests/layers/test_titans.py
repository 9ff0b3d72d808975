"""Self-modifying Titans: exactness, causality, streaming, outer gradients, stability."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hope_jax.layers.family import FAMILY
from hope_jax.layers.self_modifying import (
    Initial,
    Inputs,
    init_state,
    read_sequence,
    read_sequence_by_token,
)
from hope_jax.layers.titans import SelfModifyingTitans, TitansConfig
from hope_jax.planning.cost import program_cost
from tests.layers.reference import read_layer

WIDTH, HEADS, LENGTH = 4, 2, 11
SETTINGS = {
    "default": dict(
        memory_chunk=2, generator_chunk=4, eta_max=0.8, initial_eta=0.5, initial_alpha=0.9
    ),
    "values_as_targets": dict(memory_chunk=2, generator_chunk=4, generated_target=False),
    "memory_chunk_larger": dict(
        memory_chunk=4,
        generator_chunk=2,
        adaptive=("k", "v", "q", "eta", "alpha"),
        momentum="learned",
    ),
    "nothing_adaptive": dict(
        memory_chunk=4, generator_chunk=4, adaptive=(), generated_target=False, network="matrix"
    ),
    "chunks_longer_than_the_text": dict(memory_chunk=16, generator_chunk=32, initial_eta=0.5),
    "chunks_of_one": dict(
        memory_chunk=1, generator_chunk=1, read="chunk", convolution=1, output_norm=False
    ),
    "as_printed": dict(
        memory_chunk=2,
        generator_chunk=4,
        dampening=False,
        bounded_step=False,
        retention="none",
        eta_max=0.5,
        expansion=2,
        adaptive=("k", "v", "eta"),
    ),
    # Every bound is met, that of strengths where much is forgotten too.
    "flips": dict(
        memory_chunk=2,
        generator_chunk=4,
        flips=True,
        projector="second_map",
        strength="gate",
        strength_max=2.0,
        initial_strength=1.6,
        eta_max=2.0,
        initial_eta=1.0,
        initial_alpha=0.5,
        own_projections=True,
        adaptive=("k", "v", "q", "eta", "alpha"),
    ),
    "matrices_of_their_own": dict(
        memory_chunk=2,
        generator_chunk=4,
        network="matrix",
        own_projections=True,
        strength="gate",
        projector_decays=True,
        bounded_step=False,
    ),
}
SETTINGS |= {
    name: {**settings, "memory_chunk": 2, "generator_chunk": 4, "initial_eta": 0.5}
    for name, settings in FAMILY.items()
    if name != "hope"
}


@functools.lru_cache
def make(name):
    layer = SelfModifyingTitans(
        TitansConfig(WIDTH, HEADS, **SETTINGS[name]), jnp.float64, jnp.float64
    )
    x = np.random.default_rng(0).normal(size=(2, LENGTH, WIDTH))
    params = nn.unbox(jax.jit(layer.init)(jax.random.key(1), x))
    return layer, params, x, jax.jit(lambda p, x, s, r: layer.apply(p, x, s, r))


def reset_mask():
    reset = np.zeros((2, LENGTH), bool)
    reset[[0, 1, 1], [5, 9, 10]] = True
    return reset


def moved(x, *place):
    """x with 1 added at a place."""
    x = x.copy()
    x[place] += 1
    return x


def assert_close(a, b, tolerance=1e-10):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance), a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_streaming_equals_one_call(name, x64):
    """Token by token and in pieces, from any carried state; resets included.

    States carried across calls hold partial chunks and the convolution's tail: with buffers local to
    a call, small calls would never fill a chunk and the convolution would see one token at a time.
    """
    _, params, x, call = make(name)
    reset = reset_mask()
    y, end = call(params, x, None, reset)
    nothing = call(params, x[:, :0], None, None)[1]
    for cuts in (range(LENGTH + 1), (0, 5, 6, 11)):
        state, parts = nothing, []
        for i, j in zip(cuts[:-1], cuts[1:], strict=True):
            out, state = call(params, x[:, i:j], state, reset[:, i:j])
            parts.append(out)
        assert_close((np.concatenate(parts, 1), state), (y, end))


@pytest.mark.parametrize("name", SETTINGS)
def test_causal_and_independent(name, x64):
    """No token sees the future, its own chunk's end included; no sequence sees another."""
    _, params, x, call = make(name)
    reset = reset_mask()
    read = lambda x: np.asarray(call(params, x, None, reset)[0])
    y = read(x)
    for t in (3, 6):
        changed = read(moved(x, slice(None), t))
        assert_close(changed[:, :t], y[:, :t], 1e-14)
        assert np.abs(changed[:, t:] - y[:, t:]).max() > 1e-3
    changed = read(moved(x, 1))
    assert_close(changed[0], y[0], 1e-14)
    # A new document sees nothing of the one before.
    changed = read(moved(x, 0, slice(5)))
    assert_close(changed[0, 5:], y[0, 5:], 1e-14)


def core(rule_settings, length=7):
    """One head, without convolution and projections."""
    rule = TitansConfig(WIDTH, 1, **rule_settings).rule
    keys = jax.random.split(jax.random.key(0), 8)
    float64 = jnp.float64
    initial = Initial(
        rule.generators.bank.init(keys[0], WIDTH, WIDTH, float64),
        rule.memory.bank.init(keys[1], WIDTH, WIDTH, float64),
        eta_bias=jnp.asarray(0.3),
        alpha_bias=jnp.asarray(2.0),
    )
    static = {"q": jax.random.normal(keys[2], (length, WIDTH), float64)}
    log_theta = None
    if rule.memory.momentum:
        log_theta = jax.nn.log_sigmoid(jax.random.normal(keys[3], (length,), float64))
    x = jax.random.normal(keys[4], (length, WIDTH), float64)
    return rule, initial, Inputs(x, static, log_theta)


@pytest.mark.slow
def test_chunked_equals_by_token_with_gradients(x64):
    rule, initial, inputs = core(dict(memory_chunk=2, generator_chunk=4, initial_eta=0.5))
    weights = jax.random.normal(jax.random.key(3), (7, WIDTH), jnp.float64)

    def measure(form):
        loss = lambda initial, inputs: jnp.sum(form(rule, initial, inputs)[0] * weights)
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(initial, inputs)

    assert_close(measure(read_sequence), measure(read_sequence_by_token), 1e-11)


@pytest.mark.parametrize(
    "name",
    [
        "default",
        "values_as_targets",
        "memory_chunk_larger",
        "chunks_of_one",
        "as_printed",
        "flips",
    ],
)
def test_equals_the_equations(name, x64):
    """Eq. 83-90 token by token in NumPy: all memories, both chunk sizes, momentum, gates, documents."""
    layer, params, x, call = make(name)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda w: w + 0.3 * draw.normal(size=w.shape), params)
    reset = reset_mask()
    y, state = jax.tree.map(np.asarray, call(params, x, None, reset))
    config, given = layer.config, jax.tree.map(np.asarray, params["params"])
    for b in range(len(x)):
        expected, heads = read_layer(config, given, x[b], reset[b])
        np.testing.assert_allclose(y[b], expected, rtol=1e-9, atol=1e-10)
        for h, memories in enumerate(heads):
            for name, (first, second) in maps_by_name(config, state.heads, (b, h)).items():
                np.testing.assert_allclose(first, memories[name][0], rtol=1e-9, atol=1e-10)
                np.testing.assert_allclose(second, memories[name][1], rtol=1e-9, atol=1e-10)


def maps_by_name(config, state, place):
    """Both maps of every memory of one head of one sequence."""
    generators, memory = (jax.tree.map(lambda w: w[place], bank.weights) for bank in state[0:3:2])
    names = (*config.adaptive_values, *config.adaptive_gates)
    first = np.split(generators.first, len(names), axis=1)
    second = [*generators.values, *([] if generators.gates is None else generators.gates)]
    maps = dict(zip(names, zip(first, second, strict=True), strict=True))
    return maps | {"memory": (memory.first, memory.values[0])}


@pytest.mark.parametrize("name", ["default", "memory_chunk_larger"])
def test_gates_begin_where_the_config_says(name, x64):
    layer, params, _, _ = make(name)
    gate = lambda name: 1 / (1 + np.exp(-np.asarray(params["params"][f"{name}_bias"])))
    config = layer.config
    np.testing.assert_allclose(config.largest_eta * gate("eta"), config.initial_eta)
    np.testing.assert_allclose(gate("alpha"), config.initial_alpha)
    np.testing.assert_allclose(gate("theta"), config.initial_theta)


@pytest.mark.slow
def test_every_initial_state_receives_its_exact_gradient(x64):
    """Non-zero, as finite differences, and not that of writes without gradient."""
    layer, params, x, _ = make("memory_chunk_larger")
    weights = jax.random.normal(jax.random.key(4), x.shape, x.dtype)
    loss = jax.jit(lambda p: jnp.sum(layer.apply(p, x)[0] * weights))
    gradient = jax.jit(jax.grad(loss))(params)["params"]
    step = 1e-5
    names = [
        f"{m}_{part}"
        for m in ("k", "v", "q", "eta", "alpha", "memory")
        for part in ("first", "second")
    ]
    for name in names:
        leaf = params["params"][name]
        direction = jax.random.normal(jax.random.key(5), leaf.shape, leaf.dtype)
        moved = lambda sign, n=name, d=direction, w=leaf: loss(
            {"params": {**params["params"], n: w + sign * step * d}}
        )
        slope = (moved(1) - moved(-1)) / (2 * step)
        mine = jnp.vdot(gradient[name], direction)
        assert abs(mine) > 1e-7, name
        np.testing.assert_allclose(mine, slope, rtol=1e-4, atol=1e-9, err_msg=name)

    def stopped(p):  # the state is carried, but no gradient flows through what was written
        def read_next(state, inputs):
            x, weights = inputs
            out, state = layer.apply(p, x[:, None], jax.lax.stop_gradient(state))
            return state, jnp.sum(out[:, 0] * weights)

        nothing = layer.apply(p, x[:, :0])[1]
        tokens = jnp.swapaxes(x, 0, 1), jnp.swapaxes(weights, 0, 1)
        return jnp.sum(jax.lax.scan(read_next, nothing, tokens)[1])

    other = jax.jit(jax.grad(stopped))(params)["params"]
    for name in names:
        assert np.abs(gradient[name] - other[name]).max() > 1e-8, name


def test_bfloat16_keeps_float32_states():
    config = TitansConfig(WIDTH, HEADS, memory_chunk=2, generator_chunk=4)
    x = jax.random.normal(jax.random.key(0), (1, 9, WIDTH))
    params = jax.jit(SelfModifyingTitans(config).init)(jax.random.key(1), x)
    exact, _ = jax.jit(SelfModifyingTitans(config).apply)(params, x)
    rough, state = jax.jit(SelfModifyingTitans(config, jnp.bfloat16).apply)(params, x)
    np.testing.assert_allclose(rough.astype(jnp.float32), exact, atol=0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.heads.memory)} == {jnp.dtype("float32")}


def test_states_lie_on_the_mesh_by_sequence_and_head():
    """Nothing that goes in is sharded, and no token is read: only the layer can do it."""
    layer = SelfModifyingTitans(TitansConfig(WIDTH, HEADS, memory_chunk=2, generator_chunk=4))
    x = np.zeros((4, 0, WIDTH), np.float32)
    params = nn.unbox(jax.jit(layer.init)(jax.random.key(0), x))
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh), nn.logical_axis_rules((("batch", "data"), ("heads", "tensor"))):
        state = jax.jit(layer.apply)(params, x)[1]
    expected = NamedSharding(mesh, PartitionSpec("data", "tensor"))
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.heads):
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), jax.tree_util.keystr(path)


@pytest.mark.parametrize("batch", [8, 6])
def test_loops_over_chunks_gather_nothing_from_other_devices(batch):
    """Left to the compiler, triangles of gates are made whole in every turn on a TPU.

    Six sequences cannot be dealt out to four devices evenly.
    """
    layer = SelfModifyingTitans(TitansConfig(WIDTH, HEADS, memory_chunk=2, generator_chunk=4))
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec("data" if batch == 8 else None))
    x = jax.ShapeDtypeStruct((batch, 8, WIDTH), jnp.float32, sharding=rows)
    params = nn.unbox(jax.eval_shape(layer.init, jax.random.key(0), x))
    loss = lambda params, x: jnp.sum(layer.apply(params, x)[0] ** 2)
    with jax.set_mesh(mesh), nn.logical_axis_rules((("batch", "data"), ("heads", "tensor"))):
        text = jax.jit(jax.grad(loss)).lower(params, x).compile().as_text()
    found = program_cost(text).collectives
    assert found and all(one.runs == 1 for one in found), found


def test_states_can_be_donated():
    donate = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    with jax.enable_x64(True):
        rule, initial, _ = core({})
        donate(init_state(rule, initial))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(initial))
    layer = SelfModifyingTitans(TitansConfig(WIDTH, HEADS, memory_chunk=2, generator_chunk=2))
    x = jnp.ones((1, 4, WIDTH))
    params = nn.unbox(jax.jit(layer.init)(jax.random.key(0), x))
    for tokens in (0, 4):  # not compiled; the second ends at a chunk's edge
        donate(layer.apply(params, x[:, :tokens])[1])
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["default", "chunks_of_one", "as_printed"])
def test_decoding_in_float32_equals_one_call(name):
    """One token at a time from a carried state, to 1e-5."""
    layer = SelfModifyingTitans(TitansConfig(WIDTH, HEADS, **SETTINGS[name]))
    x = np.random.default_rng(0).normal(size=(2, LENGTH, WIDTH)).astype(np.float32)
    params = nn.unbox(jax.jit(layer.init)(jax.random.key(1), x))
    call = jax.jit(layer.apply)
    whole = np.asarray(call(params, x)[0])
    part, state = call(params, x[:, :3])
    assert_close(part, whole[:, :3], 1e-5)
    for t in range(3, LENGTH):
        out, state = call(params, x[:, t : t + 1], state)
        assert_close(out[:, 0], whole[:, t], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [(64, 64), (16, 64)], ids=str)
def test_a_hundred_thousand_tokens(chunks):
    """A fresh layer in float32 stays finite and bounded; 16 and 64 are the default chunks."""
    config = TitansConfig(16, 2, memory_chunk=chunks[0], generator_chunk=chunks[1])
    layer = SelfModifyingTitans(config)
    x = jax.random.normal(jax.random.key(0), (1, 100_000, 16))
    texts = {
        "random": x,
        "constant": jnp.broadcast_to(x[:, :1], x.shape),
        "alternating": jnp.tile(x[:, :2], (1, 50_000, 1)),
    }
    params = jax.jit(layer.init)(jax.random.key(1), x[:, :2])
    # It runs for longer than it compiles, unlike all else here.
    fast = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    read = jax.jit(layer.apply, compiler_options=fast)
    y, state = read(params, jnp.concatenate(list(texts.values())))
    for i, kind in enumerate(texts):
        assert bool(jnp.isfinite(y[i]).all()), kind
        for leaf in jax.tree.leaves((state.heads.generators, state.heads.memory)):
            assert float(jnp.sqrt(jnp.sum(leaf[i] ** 2))) < 100, kind


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(width=10, num_heads=4), "does not split into 4 heads"),
        (dict(memory_chunk=16, generator_chunk=24), "one must divide the other"),
        (
            dict(adaptive=("k", "z")),
            r"adaptive=\('k', 'z'\) must be a tuple, each one of k, v, q, eta, alpha",
        ),
        (dict(eta_max=2.5), "eta_max=2.5 must be a number above 0 and at most 2 or None"),
        (
            dict(network="matrix", eta_max=0.7, bounded_step=False),
            r"eta_max 0.7 is above 0.6667: .*or make it at most",
        ),
        (dict(initial_eta=0.7, network="matrix", bounded_step=False), "below eta_max 0.6667"),
        (
            dict(network="matrix", objective="dot", strength="gate", strength_max=2.0),
            "strength_max 2.0 leaves no room for a step: .* smaller, or set objective='dot'",
        ),
        (
            dict(strength="gate", strength_max=0.4),
            "initial_strength 0.5 must be below strength_max",
        ),
        (dict(strength="gate", projector="none"), "is of a projector, and projector='none'"),
        (dict(objective="dot", projector="none"), "grows without end"),
        (dict(own_projections=True, adaptive=()), "is of memories that generate"),
        (dict(projector="second_map", network="matrix"), "needs an MLP"),
        (dict(flips=True, bounded_step=False), "is of bounded steps"),
        (dict(unit_values=False), "overflows within some hundred tokens"),
        (dict(step="one"), "take 'eta' out of adaptive"),
        (dict(retention="none"), "take 'alpha' out of adaptive"),
        (dict(unit_keys=False), "needs projector='none' and adaptive="),
        (dict(learned_initial=False), "needs network='matrix'"),
        (
            dict(objective="lp", objective_power=1.0),
            "objective_power=1.0 must be a finite number at least 2",
        ),
        (dict(momentum="yes"), "momentum='yes' must be one of gate, learned, none"),
        (dict(initial_alpha=1.0), "initial_alpha=1.0 must be a number above 0 and below 1"),
        (dict(read="later"), "read='later' must be one of before, after, chunk"),
        (dict(window=2), "window=2 needs projector='none' and adaptive="),
        (dict(projector="values"), "is Oja's rule and needs network='matrix'"),
    ],
)
def test_errors_say_what_does_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        TitansConfig(**{"width": 8, "num_heads": 2, **settings})


def test_width_of_input_is_checked():
    layer = SelfModifyingTitans(TitansConfig(8, 2))
    with pytest.raises(ValueError, match=r"expected \(batch, tokens, 8\)"):
        jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 3, 6)))
