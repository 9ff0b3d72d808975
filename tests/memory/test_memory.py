"""The chunk-parallel memory against its token form and against a NumPy loop."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.memory import (
    Bank,
    Gates,
    MemoryRule,
    Tokens,
    dot_error,
    init_state,
    l2_error,
    read,
    update,
    update_and_read,
    update_and_read_by_token,
)
from hope_jax.memory.directions import direction, unit
from hope_jax.memory.objectives import LpError
from tests.memory.reference import loop, network

WIDTH, HIDDEN, LENGTH, CHUNK = 3, 4, 8, 3
OBJECTIVES = {"l2": l2_error, "dot": dot_error}
NETWORKS = {"matrix": None, "mlp": jax.nn.gelu}
in_chunks = jax.jit(update_and_read, static_argnums=0)
by_token = jax.jit(update_and_read_by_token, static_argnums=0)
init = jax.jit(Bank.init, static_argnums=(0, 2, 3, 4))


def make_rule(objective="l2", projector="per_map", momentum=True, network="mlp", **settings):
    settings = {"chunk_size": CHUNK, **settings}
    return MemoryRule(
        Bank(activation=NETWORKS[network]), OBJECTIVES[objective], projector, momentum, **settings
    )


def make_inputs(rule, seed=0, length=LENGTH, dtype=jnp.float64):
    draw = np.random.default_rng(seed)
    initial = init(rule.bank, jax.random.key(seed), WIDTH, HIDDEN, dtype)
    keys, values, queries = draw.normal(size=(3, length, WIDTH)) * 0.6
    eta, alpha, beta, theta = draw.uniform(0.1, 0.9, size=(4, length))
    gamma = draw.uniform(0.1, 0.9, size=length)
    gates = Gates(
        eta,
        np.log(alpha),
        None if rule.projector == "none" else beta,
        np.log(theta) if rule.momentum else None,
        gamma if rule.window > 1 else None,
    )
    tokens = Tokens(keys, values, gates, queries)
    return initial, jax.tree.map(lambda x: x.astype(dtype), tokens)


RESET = np.array([0, 0, 1, 0, 0, 1, 1, 0], bool)


WINDOW = 5  # longer than a chunk
ZERO, INITIAL = "zero", "initial"
# What is read, of memories that decay to what: of the six pairs, two for each network, projector and
# momentum, so that any three of the five settings meet in all their values.
CASES = {
    ("matrix", "per_map", False, 1): (("before", ZERO), ("chunk", INITIAL)),
    ("matrix", "per_map", True, 1): (("after", ZERO), ("chunk", INITIAL)),
    ("matrix", "first_map", False, 1): (("after", ZERO), ("before", INITIAL)),
    ("matrix", "first_map", True, 1): (("chunk", ZERO), ("before", INITIAL)),
    ("matrix", "none", False, 1): (("chunk", ZERO), ("after", INITIAL)),
    ("matrix", "none", True, 1): (("before", ZERO), ("after", INITIAL)),
    ("mlp", "per_map", False, 1): (("before", ZERO), ("after", INITIAL)),
    ("mlp", "per_map", True, 1): (("chunk", ZERO), ("before", INITIAL)),
    ("mlp", "first_map", False, 1): (("after", ZERO), ("chunk", INITIAL)),
    ("mlp", "first_map", True, 1): (("before", ZERO), ("after", INITIAL)),
    ("mlp", "none", False, 1): (("chunk", ZERO), ("before", INITIAL)),
    ("mlp", "none", True, 1): (("after", ZERO), ("chunk", INITIAL)),
    ("mlp", "second_map", False, 1): (("before", ZERO), ("chunk", INITIAL)),
    ("mlp", "second_map", True, 1): (("after", ZERO), ("before", INITIAL)),
    # Oja's rule, and the Omega rule: each of the six pairs once.
    ("matrix", "values", False, 1): (("before", ZERO), ("chunk", ZERO), ("after", INITIAL)),
    ("matrix", "values", True, 1): (("after", ZERO), ("before", INITIAL), ("chunk", INITIAL)),
    ("matrix", "none", False, WINDOW): (("after", ZERO), ("before", INITIAL), ("chunk", INITIAL)),
    ("mlp", "none", True, WINDOW): (("before", ZERO), ("chunk", ZERO), ("after", INITIAL)),
}


def test_any_three_settings_meet():
    rows = [
        (network, projector, momentum, *variant)
        for (network, projector, momentum, window), variants in CASES.items()
        for variant in variants
        if window == 1 and projector not in ("second_map", "values")  # of one network alone
    ]
    for three in itertools.combinations(range(5), 3):
        met = [{row[i] for row in rows} for i in three]
        assert {tuple(row[i] for i in three) for row in rows} == set(itertools.product(*met))


@pytest.mark.slow
@pytest.mark.parametrize(("network", "projector", "momentum", "window"), CASES)
def test_chunked_equals_by_token_values_and_gradients(network, projector, momentum, window, x64):
    """T is no multiple of C; values and all gradients, to 1e-9.

    The parameters above, read mode, retention target, objective, gated retention or none (alpha = 1),
    and one document or several. The last three are data, a batch of one program.
    """
    variants = CASES[network, projector, momentum, window]
    rules = [
        make_rule(
            "dot",
            projector,
            momentum,
            network,
            read=read,
            decay_to=decay_to,
            window=window,
            bounded_step=decay_to == "initial",
            flips=read == "before",
            generated_target=read == "before" and projector != "values",
        )
        for read, decay_to in variants
    ]
    initial, tokens = make_inputs(rules[0])
    weights = np.random.default_rng(1).normal(size=(LENGTH, WIDTH))
    objectives = [False] if projector == "values" else [False, True]  # of L2, or Oja's only one
    log_alphas = [tokens.gates.log_alpha, np.zeros(LENGTH)]
    resets = [np.zeros(LENGTH, bool), RESET]
    batch = [
        np.stack(values)
        for values in zip(*itertools.product(objectives, log_alphas, resets), strict=True)
    ]

    def measure(form):
        # A program of several variants at once: compiling is most of this test's time.
        def run(initial, tokens):
            def loss(initial, tokens, rule, reset):
                out, state = form(rule, initial, tokens._replace(reset=reset))
                parts = [jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(state.bank)]
                return jnp.sum(out * weights) + sum(parts), (out, state)

            def measured(rule, squared, log_alpha, reset):
                if projector != "values":
                    error = lambda *pair: jnp.where(squared, l2_error(*pair), dot_error(*pair))
                    rule = dataclasses.replace(rule, error=error)
                given = tokens._replace(gates=tokens.gates._replace(log_alpha=log_alpha))
                gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
                return gradient(initial, given, rule, reset)

            return [jax.vmap(functools.partial(measured, rule))(*batch) for rule in rules]

        return jax.jit(run)(initial, tokens)

    fast, slow = measure(update_and_read), measure(update_and_read_by_token)
    for variant, a, b in zip(variants, fast, slow, strict=True):
        jax.tree.map(
            lambda x, y, v=variant: np.testing.assert_allclose(
                x, y, rtol=1e-9, atol=1e-9, err_msg=str(v)
            ),
            a,
            b,
        )
    # The gradient of every input is there, not merely equal.
    (_, _), (initial_gradient, token_gradient) = fast[0]
    for leaf in jax.tree.leaves((initial_gradient, token_gradient.keys, token_gradient.gates)):
        assert np.abs(np.asarray(leaf)).max() > 1e-6


@pytest.mark.parametrize("reset", [None, RESET], ids=["one_document", "resets"])
@pytest.mark.parametrize("network_name", ["matrix", "mlp"])
@pytest.mark.parametrize("form", [in_chunks, by_token], ids=["in_chunks", "by_token"])
def test_equals_numpy_loop(network_name, reset, form, x64):
    """An independent transcription of the equations; each choice of each setting."""
    for objective, projector, momentum, decay_to, read_mode, generated, window in (
        ("l2", "per_map", True, "zero", "before", True, 1),
        ("l2", "first_map", False, "initial", "after", False, 1),
        ("dot", "none", True, "initial", "chunk", False, 1),
        ("dot", "per_map", False, "zero", "after", True, 1),
        ("l2", "second_map", False, "zero", "before", True, 1),
        ("l2", "none", True, "initial", "after", True, WINDOW),
        ("dot", "values", True, "initial", "before", False, 1),
        ("dot", "values", False, "zero", "after", False, 1),
    ):
        if (projector, network_name) in (("values", "mlp"), ("second_map", "matrix")):
            continue
        settings = dict(
            read=read_mode, decay_to=decay_to, generated_target=generated, window=window
        )
        rule = make_rule(objective, projector, momentum, network_name, **settings)
        initial, tokens = make_inputs(rule, seed=3)
        tokens = tokens._replace(reset=reset)
        out, state = form(rule, initial, tokens)
        gates = tokens.gates
        expected, weights, moving = loop(
            maps(initial),
            *(np.asarray(x) for x in (tokens.keys, tokens.values, tokens.queries)),
            np.asarray(gates.eta),
            np.exp(gates.log_alpha),
            None if gates.beta is None else np.asarray(gates.beta),
            None if gates.log_theta is None else np.exp(gates.log_theta),
            chunk=CHUNK,
            objective=objective,
            projector=projector,
            momentum=momentum,
            decay_to=decay_to,
            read=read_mode,
            generated_target=generated,
            reset=reset,
            window=window,
            gamma=None if gates.gamma is None else np.asarray(gates.gamma),
        )
        np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-9)
        for mine, theirs in zip(maps(state.bank.weights), weights, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9)
        if momentum:
            for mine, theirs in zip(maps(state.bank.momentum), moving, strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9)


def maps(weights):
    """The maps of a single memory, as NumPy matrices."""
    first = [np.asarray(weights.first)]
    return first if weights.values is None else [*first, np.asarray(weights.values[0])]


def test_gradient_equals_finite_differences_of_numpy_loop(x64):
    rule = make_rule()
    initial, tokens = make_inputs(rule, seed=5)
    weights = np.random.default_rng(2).normal(size=(LENGTH, WIDTH))
    gates = tokens.gates

    def numpy_loss(first, key):
        keys = np.array(tokens.keys)
        keys[1] = key
        out, _, _ = loop(
            [first, maps(initial)[1]],
            keys,
            np.asarray(tokens.values),
            np.asarray(tokens.queries),
            np.asarray(gates.eta),
            np.exp(gates.log_alpha),
            np.asarray(gates.beta),
            np.exp(gates.log_theta),
            chunk=CHUNK,
            objective="l2",
            projector="per_map",
            momentum=True,
            decay_to="zero",
            read="before",
        )
        return np.sum(out * weights)

    gradient = jax.jit(
        jax.grad(lambda i, t: jnp.sum(update_and_read(rule, i, t)[0] * weights), argnums=(0, 1))
    )
    of_initial, of_tokens = gradient(initial, tokens)
    first, key, step = np.array(initial.first), np.array(tokens.keys[1]), 1e-6
    for index in ((0, 0), (2, 3)):
        nudge = np.zeros_like(first)
        nudge[index] = step
        slope = (numpy_loss(first + nudge, key) - numpy_loss(first - nudge, key)) / (2 * step)
        np.testing.assert_allclose(of_initial.first[index], slope, rtol=1e-5, atol=1e-8)
    nudge = np.array([0, step, 0])
    slope = (numpy_loss(first, key + nudge) - numpy_loss(first, key - nudge)) / (2 * step)
    np.testing.assert_allclose(of_tokens.keys[1, 1], slope, rtol=1e-5, atol=1e-8)


def test_second_derivatives_equal_those_by_token(x64):
    """A model that learns by gradients through its memories is itself trained through them."""
    rule = make_rule()
    initial, tokens = make_inputs(rule)

    def twice(form):
        loss = lambda keys: jnp.sum(jnp.sin(form(rule, initial, tokens._replace(keys=keys))[0]))
        slope = lambda keys: jnp.sum(jnp.sin(jax.grad(loss)(keys)))
        return jax.jit(jax.grad(slope))(tokens.keys)

    np.testing.assert_allclose(
        twice(update_and_read), twice(update_and_read_by_token), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("momentum", [False, True])
def test_equal_keys_in_float32(momentum):
    """The chunk's triangular system is at its worst when all keys are the same."""
    rule = make_rule(momentum=momentum, chunk_size=64)
    initial, tokens = make_inputs(rule, length=128, dtype=jnp.float32)
    key = np.full_like(tokens.keys, WIDTH**-0.5)
    gates = tokens.gates._replace(
        eta=tokens.gates.eta * np.float32(0.5),
        beta=np.full(128, 0.9, np.float32),
        log_alpha=np.zeros(128, np.float32),
    )
    tokens = tokens._replace(keys=key, gates=gates)
    fast, slow = in_chunks(rule, initial, tokens), by_token(rule, initial, tokens)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), fast, slow)


@pytest.mark.parametrize("forgets", [-30.0, -1e5, -np.inf])
def test_gates_that_forget_everything(forgets):
    """Within a chunk, of retention and of momentum: values and gradients as token by token."""
    rule = make_rule(chunk_size=8)
    initial, tokens = make_inputs(rule, length=16, dtype=jnp.float32)
    log_alpha, log_theta = tokens.gates.log_alpha.copy(), tokens.gates.log_theta.copy()
    log_alpha[[3, 9]] = log_theta[[5, 9]] = forgets

    def measure(form):
        def loss(initial, gates):
            out, state = form(rule, initial, tokens._replace(gates=gates))
            return jnp.sum(jnp.sin(out)) + sum(map(jnp.sum, jax.tree.leaves(state.bank))), out

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

    both = jax.jit(
        lambda *args: [measure(f)(*args) for f in (update_and_read, update_and_read_by_token)]
    )
    gates = tokens.gates._replace(log_alpha=log_alpha, log_theta=log_theta)
    fast, slow = both(initial, gates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), fast, slow)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fast))


def test_pieces_equal_one_call(x64):
    """Chunk buffers that are local to a call never fill with small calls; these carry over."""
    rule = make_rule()
    initial, tokens = make_inputs(rule)
    tokens = tokens._replace(reset=RESET)
    whole, end = in_chunks(rule, initial, tokens)
    state, parts = init_state(rule, initial), []
    for first, last in ((0, 1), (1, 5), (5, 5), (5, 7), (7, 8)):
        piece = jax.tree.map(lambda x, i=first, j=last: x[i:j], tokens)
        out, state = in_chunks(rule, initial, piece, state)
        parts.append(out)
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-12, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), state, end)


def test_shorter_than_a_chunk_still_learns(x64):
    rule = make_rule(chunk_size=64)
    initial, tokens = make_inputs(rule, length=5)
    _, fast = in_chunks(rule, initial, tokens)
    _, slow = by_token(rule, initial, tokens)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), fast, slow)
    assert np.abs(fast.bank.weights.first - initial.first).max() > 0.01


def test_states_can_be_donated():
    """No array stands in a state twice, nor is one of the initial weights."""
    rule = make_rule(projector="none", window=3)
    initial, tokens = make_inputs(rule, length=2 * CHUNK, dtype=jnp.float32)
    donate = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    donate(init_state(rule, initial))
    donate(update_and_read(rule, initial, tokens)[1])  # not compiled, and at a chunk's edge
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(initial))


def test_update_then_read(x64):
    rule = make_rule()
    initial, tokens = make_inputs(rule)

    @jax.jit
    def both(initial, tokens):
        start = init_state(rule, initial)
        state = update(rule, initial, start, tokens.keys, tokens.values, tokens.gates)
        return read(rule, state, tokens.queries), state

    out, state = both(initial, tokens)
    np.testing.assert_allclose(
        out, network(maps(state.bank.weights), np.asarray(tokens.queries)), rtol=1e-12
    )


def test_memories_of_a_batch_are_their_own(x64):
    rule = make_rule()
    initial, tokens = make_inputs(rule)
    other = tokens._replace(values=tokens.values + 1)
    both = jax.tree.map(lambda *pair: np.stack(pair), tokens, other)
    out = np.asarray(jax.vmap(lambda tokens: in_chunks(rule, initial, tokens))(both)[0])
    np.testing.assert_allclose(out[0], in_chunks(rule, initial, tokens)[0], rtol=1e-12)
    assert np.abs(out[0] - out[1]).max() > 0.01


def test_states_every_changes_memory_not_gradients():
    """Fewer kept states: the same gradients from fewer bytes; growth is with T / C states."""
    width, chunk = 32, 4

    def program(length, every):
        rule = MemoryRule(momentum=False, chunk_size=chunk, states_every=every)
        initial = rule.bank.init(jax.random.key(0), width)
        keys = jax.random.normal(jax.random.key(1), (length, width)) / width**0.5
        gates = Gates(jnp.full(length, 0.3), jnp.zeros(length), jnp.full(length, 0.3))
        loss = lambda initial: jnp.sum(
            update_and_read(rule, initial, Tokens(keys, keys[::-1], gates, keys))[0] ** 2
        )
        gradient = jax.jit(jax.grad(loss))
        return gradient(initial), gradient.lower(initial).compile().memory_analysis()

    one, one_memory = program(512, 1)
    eight, eight_memory = program(512, 8)
    _, double_memory = program(1024, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, eight)
    assert eight_memory.temp_size_in_bytes < 0.75 * one_memory.temp_size_in_bytes
    state_bytes = 2 * width * width * 4
    growth = double_memory.temp_size_in_bytes - one_memory.temp_size_in_bytes
    assert growth < 3 * (512 / chunk) * state_bytes  # a state a token would be twelve times this


@pytest.mark.parametrize("projector", ["per_map", "none"])
def test_bounded_steps_stay_bounded_where_others_overflow(projector):
    """Repetitive tokens and grown maps; outside of that the bound changes nothing."""
    rule = make_rule(projector=projector, momentum=False, chunk_size=16, generated_target=True)
    bounded = dataclasses.replace(rule, bounded_step=True)
    initial, tokens = make_inputs(rule, length=640, dtype=jnp.float32)
    rows = [jax.jit(unit)(np.tile(x[:5], (128, 1))) for x in (tokens.keys, tokens.values)]
    gates = tokens.gates._replace(log_alpha=np.full(640, -1e-3, np.float32))
    tokens = Tokens(*rows, gates, rows[0])
    initial, tokens = jax.tree.map(np.asarray, (initial, tokens))
    grown = jax.tree.map(lambda w: 3 * w, initial)
    assert not np.isfinite(in_chunks(rule, grown, tokens)[0]).all()
    read_out, state = jax.tree.map(np.asarray, in_chunks(bounded, grown, tokens))
    assert all(np.linalg.norm(w) < 100 for w in jax.tree.leaves(state.bank.weights))
    assert np.abs(read_out).max() < 100
    small = jax.tree.map(lambda w: np.float32(0.1) * w, initial)
    short = jax.tree.map(lambda x: x[:8], tokens._replace(gates=gates._replace(eta=gates.eta / 16)))
    np.testing.assert_array_equal(
        in_chunks(bounded, small, short)[0], in_chunks(rule, small, short)[0]
    )


BOUNDED = {
    "matrix": dict(network="matrix", projector="none", momentum=False),
    "generated": dict(network="matrix", projector="none", momentum=False, generated_target=True),
    "matrix_moving": dict(network="matrix", projector="none"),
    "moving": dict(projector="none"),
    "projected": dict(network="matrix"),
    "first_map": dict(projector="first_map"),
    "all_maps": dict(),
    "second_map": dict(projector="second_map"),
    "window": dict(network="matrix", projector="none", momentum=False, window=5),
    "window_moving": dict(projector="none", window=5),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_every_memory_is_bounded(name):
    """Equal tokens, and a momentum that sums its steps; without the bound all of these overshoot."""
    length = 640
    rule = make_rule(chunk_size=16, **BOUNDED[name])
    initial, tokens = make_inputs(rule, dtype=jnp.float32)
    key, value = (np.asarray(jax.jit(unit)(rows[0])) for rows in (tokens.keys, tokens.values))
    full = lambda number, given=True: np.full(length, number, np.float32) if given else None
    gates = Gates(
        full(0.3),
        full(-1e-4),
        full(0.3, rule.projector != "none"),
        full(np.log(0.9), rule.momentum),
        full(1.0, rule.window > 1),
    )
    rows = [np.tile(row, (length, 1)) for row in (key, value)]
    tokens = Tokens(*rows, gates, rows[0])

    def farthest(rule):
        """The largest error over the first."""
        error = jnp.linalg.norm(update_and_read(rule, initial, tokens)[0] - value, axis=1)
        return jnp.max(error) / error[0]

    bounded = dataclasses.replace(rule, bounded_step=True)
    without, within = jax.jit(lambda: (farthest(rule), farthest(bounded)))()
    assert not without < 5
    assert within < 1.2


def test_bounded_steps_of_a_steep_objective_converge():
    """An error of L_3 is the square of how far off a memory is: a full step from far off explodes."""
    rule = make_rule(projector="none", momentum=False, chunk_size=1)
    rule = dataclasses.replace(rule, error=LpError(3.0))
    initial, tokens = make_inputs(rule, length=40, dtype=jnp.float32)
    key, value = tokens.keys[:1] / np.linalg.norm(tokens.keys[0]), 20 * tokens.values[:1]
    gates = Gates(np.full(40, 0.5, np.float32), np.zeros(40, np.float32))
    key, value = np.tile(key, (40, 1)), np.tile(value, (40, 1))
    tokens = Tokens(key, value, gates, key)

    def distances(rule):
        return np.linalg.norm(in_chunks(rule, initial, tokens)[0] - value, axis=1)

    assert float(distances(rule).max()) > 1e4
    bounded = distances(dataclasses.replace(rule, bounded_step=True))
    assert float(bounded.max()) < 2 * float(bounded[0])  # the map is bent, the bound is linear
    assert float(bounded[-1]) < 0.1


def test_bounded_steps_of_errors_that_vanish_have_derivatives():
    """The bound divides by the error, whose fourth power is no float32 number."""
    rule = make_rule(bounded_step=True)
    initial, tokens = make_inputs(rule, dtype=jnp.float32)

    def loss(initial, eta):
        given = tokens._replace(gates=tokens.gates._replace(eta=eta))
        return jnp.sum(update_and_read(rule, initial, given)[0])

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(initial, jnp.full(LENGTH, 1e-11))
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))


def test_errors_say_what_does_not_fit():
    rule = make_rule()
    initial, tokens = make_inputs(rule, dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"log_theta is missing"):
        update_and_read(rule, initial, tokens._replace(gates=tokens.gates._replace(log_theta=None)))
    with pytest.raises(ValueError, match=r"Gates.beta is missing"):
        update_and_read(rule, initial, tokens._replace(gates=tokens.gates._replace(beta=None)))
    with pytest.raises(ValueError, match=r"shape \(T, N\)"):
        update_and_read(rule, initial, tokens._replace(values=tokens.values[:2]))
    with pytest.raises(ValueError, match=r"chunk_size=0"):
        make_rule(chunk_size=0)
    with pytest.raises(ValueError, match=r"projector='all'"):
        make_rule(projector="all")
    with pytest.raises(ValueError, match=r"window=2, but Gates.gamma is missing"):
        update_and_read(
            make_rule(projector="none", window=2),
            initial,
            tokens._replace(gates=tokens.gates._replace(beta=None)),
        )
    with pytest.raises(ValueError, match=r"window=2 writes errors of several tokens"):
        make_rule(window=2)
    with pytest.raises(ValueError, match=r"needs a matrix memory"):
        make_rule(objective="dot", projector="values", network="mlp")


@pytest.mark.parametrize(("function", "slope"), [(unit, 100), (lambda x: direction(x)[0], 1)])
def test_derivatives_of_short_rows_are_bounded(function, slope):
    """A zero row, as padding makes it, and one of rounding noise: no derivative of a root at zero."""
    once = jax.grad(lambda rows: jnp.sum(jnp.sin(function(rows))))
    both = jax.jit(lambda rows: (once(rows), jax.jacobian(once)(rows)))
    for size in (0, 1e-20):
        first, second = both(np.full((1, 3), size, np.float32))
        np.testing.assert_allclose(first, slope, rtol=1e-6)
        assert np.isfinite(second).all()
