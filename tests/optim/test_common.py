"""The same checks for every optimiser, those that Optax makes of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hope_jax.optim as optim

FACTORIES = {
    "m3": (optim.m3, {"learning_rate": 1e-2}, ("ns_steps",)),
    "adamuon": (optim.adamuon, {"learning_rate": 1e-2, "rms": 0.2}, ("ns_steps",)),
    "delta_momentum": (optim.delta_momentum, {"learning_rate": 1e-3}, ()),
    "preconditioned_momentum": (
        lambda learning_rate: optim.preconditioned_momentum(learning_rate, optax.scale_by_rms()),
        {"learning_rate": 1e-4},
        (),
    ),
    "deep_momentum": (
        optim.deep_momentum,
        {"learning_rate": 1e-3, "hidden_width": 8},
        ("hidden_width",),
    ),
    "delta_gradient_descent": (
        optim.delta_gradient_descent,
        {"learning_rate": 1e-3},
        (),
    ),
    "multi_timescale": (
        lambda learning_rate: optim.multi_timescale(optim.m3(learning_rate), {0: 3}, 0),
        {"learning_rate": 3e-2},
        (),
    ),
    "elastic_weights": (
        lambda learning_rate: optax.chain(optim.elastic_weights(1.0), optax.adam(learning_rate)),
        {"learning_rate": 1e-2},
        (),
    ),
}
EXTRA = {"inputs": {}}  # read by delta gradient descent, ignored by all others

TARGET = {
    "parabola": jnp.array([1.0, -1.0, 1.0]),
    "rosenbrock": jnp.array([1.0, 1.0]),
    "matrix": jnp.array([[3.0, -2.0], [1.0, 4.0]]),
    "nothing": None,
}


def objective(params):
    x = params["rosenbrock"]
    squares = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), params, TARGET)
    return squares["parabola"] + squares["matrix"] + (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def start(dtype=jnp.float32):
    return {
        "parabola": jnp.array([-1.0, 10.0, 1.0], dtype),
        "rosenbrock": jnp.zeros(2, dtype),
        "matrix": jnp.zeros((2, 2), dtype),
        "nothing": None,
    }


@pytest.fixture(params=FACTORIES)
def case(request):
    factory, options, static = FACTORIES[request.param]
    return request.param, factory, options, static


@pytest.fixture
def optimizer(case):
    return case[1](**case[2])


def step_function(optimizer):
    @jax.jit
    def step(params, state):
        gradient = jax.grad(objective)(params)
        updates, state = optimizer.update(gradient, state, params, **EXTRA, unknown=1)
        return optax.apply_updates(params, updates), state

    return step


def close(a, b, **tolerance):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            np.asarray(x, np.float64),
            np.asarray(y, np.float64),
            **(tolerance or {"rtol": 1e-5, "atol": 1e-6}),
        ),
        a,
        b,
    )


def test_reaches_the_optimum_of_quadratics_and_rosenbrock(optimizer):
    step = step_function(optimizer)
    params = start()
    (params, _), _ = jax.lax.scan(
        lambda carry, _: (step(*carry), None), (params, optimizer.init(params)), length=20_000
    )
    close(params, TARGET, atol=3e-2, rtol=3e-2)


def test_state_is_a_stable_pytree_and_nothing_recompiles(optimizer):
    step = step_function(optimizer)
    params = start()
    state = optimizer.init(params)
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    expected = describe(state)
    for _ in range(3):
        params, state = step(params, state)
        assert describe(state) == expected
    assert step._cache_size() == 1


def test_map_params_reaches_the_state(optimizer):
    state = optimizer.init(start())
    close(optax.tree.map_params(optimizer, lambda x: x, state), state)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_updates_have_the_dtype_of_the_parameters(optimizer, dtype):
    params = start(dtype)
    step = step_function(optimizer)
    new, state = step(params, optimizer.init(params))
    new, _ = step(new, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(dtype)}
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(new))


def test_gradients_are_taken_whether_or_not_jitted(optimizer):
    params = start()
    gradient = jax.grad(objective)(params)
    state = optimizer.init(params)
    plain = optimizer.update(gradient, state, params, **EXTRA)
    close(
        jax.jit(lambda *a: optimizer.update(*a, **EXTRA))(gradient, state, params), plain, atol=1e-4
    )


def test_inject_hyperparams(case, optimizer):
    _, factory, options, static = case
    injected = optax.inject_hyperparams(factory, static_args=static)(**options)
    params = start()
    gradient = jax.grad(objective)(params)
    # The leaf of Optax's own tests; whether it stacks matrices, M3 asks.
    stack = {"stack": jnp.ones((2, 5, 2))}
    if case[0] in ("m3", "adamuon", "multi_timescale"):
        with pytest.raises(ValueError, match=r"no rule covers stack: shape \(2, 5, 2\)"):
            injected.init(stack)
    else:
        params, gradient = {**params, **stack}, {**gradient, "stack": -stack["stack"]}
    state, injected_state = optimizer.init(params), injected.init(params)
    for _ in range(2):
        expected, state = optimizer.update(gradient, state, params, **EXTRA)
        updates, injected_state = injected.update(gradient, injected_state, params, **EXTRA)
    close(updates, expected, rtol=1e-4, atol=1e-6)
    close(injected_state.inner_state, state, rtol=1e-4, atol=1e-4)


def test_multi_steps_takes_the_mean_of_its_gradients(optimizer):
    params = start()
    gradients = [jax.tree.map(lambda p, i=i: p + i, jax.grad(objective)(params)) for i in range(3)]
    accumulating = optax.MultiSteps(optimizer, 3)
    state = accumulating.init(params)
    update = jax.jit(lambda g, s: accumulating.update(g, s, params, **EXTRA))
    for gradient in gradients:
        updates, state = update(gradient, state)
    mean = jax.tree.map(lambda *gs: sum(gs) / 3, *gradients)
    expected, _ = optimizer.update(mean, optimizer.init(params), params, **EXTRA)
    close(updates, expected, atol=1e-4)


def test_masked_and_chained(optimizer):
    params = start()
    gradient = jax.grad(objective)(params)
    mask = {"parabola": True, "rosenbrock": False, "matrix": True, "nothing": None}
    chained = optax.chain(optax.masked(optimizer, mask), optax.scale(0.5))
    updates, _ = chained.update(gradient, chained.init(params), params, **EXTRA)
    np.testing.assert_allclose(updates["rosenbrock"], 0.5 * gradient["rosenbrock"])
    only = {name: params[name] for name in ("parabola", "matrix")}
    alone, _ = optimizer.update(
        {name: gradient[name] for name in only}, optimizer.init(only), only, **EXTRA
    )
    close({name: updates[name] for name in only}, jax.tree.map(lambda u: 0.5 * u, alone))


def test_vmap_over_copies_of_a_model(optimizer):
    params = start()
    both = jax.tree.map(lambda p: jnp.stack([p, p + 1]), params)

    def one(params):
        state = optimizer.init(params)
        for _ in range(2):
            gradient = jax.grad(objective)(params)
            updates, state = optimizer.update(gradient, state, params, **EXTRA)
            params = optax.apply_updates(params, updates)
        return params

    together = jax.vmap(one)(both)
    for i in range(2):
        close(
            jax.tree.map(lambda x, i=i: x[i], together),
            jax.jit(one)(jax.tree.map(lambda x, i=i: x[i], both)),
            atol=1e-3,
        )


@pytest.mark.parametrize("empty", [{}, (), {"a": None}])
def test_empty_trees(optimizer, empty):
    updates, _ = optimizer.update(empty, optimizer.init(empty), empty, **EXTRA)
    assert updates == empty


def test_orbax_round_trip_to_the_bit(optimizer, tmp_path):
    import orbax.checkpoint as ocp

    step = step_function(optimizer)
    params = start()
    params, state = step(params, optimizer.init(params))
    params, state = step(params, state)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    again, _ = step(params, restored)
    straight, _ = step(params, state)
    jax.tree.map(np.testing.assert_array_equal, again, straight)


def test_every_optimiser_takes_extra_arguments(optimizer):
    assert isinstance(optimizer, optax.GradientTransformationExtraArgs)
