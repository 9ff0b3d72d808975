"""The kernel, interpreted, against the scan of XLA's and the token form: values and all gradients."""

import dataclasses

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
    update_and_read,
    update_and_read_by_token,
)
from hope_jax.memory.objectives import HuberError, LpError

WIDTH, HIDDEN, CHUNK, LENGTH = 8, 8, 8, 20  # an open chunk at the end
MATRIX, MLP = Bank(activation=None), Bank()
# Every network, objective, projector, retention target and read, with and without momentum and bounds.
RULES = {
    "hope": dict(generated_target=True, bounded_step=True),
    "gated_delta_net": dict(bank=MATRIX, error=dot_error, momentum=False, read="after"),
    "initial": dict(decay_to="initial", generated_target=True, bounded_step=True, flips=True),
    "oja": dict(bank=MATRIX, error=dot_error, projector="values", momentum=False, read="after"),
    "oja_momentum": dict(  # five chunks, of which every other state is rebuilt
        bank=MATRIX,
        error=dot_error,
        projector="values",
        decay_to="initial",
        chunk_size=4,
        states_every=2,
    ),
    "ttt_linear": dict(
        bank=MATRIX, projector="none", momentum=False, read="after", bounded_step=True
    ),
    "ttt_mlp": dict(projector="none", momentum=False, read="chunk", bounded_step=True),
    "lp": dict(error=LpError(3.0), projector="none", read="after", bounded_step=True),
    "huber": dict(error=HuberError(0.5), projector="second_map", bounded_step=True),
    "first_map": dict(projector="first_map", decay_to="initial", read="chunk"),
}
QUICK = ("hope", "gated_delta_net")


def make_rule(name):
    return MemoryRule(**{"chunk_size": CHUNK, **RULES[name]})


def with_kernel(rule):
    return dataclasses.replace(rule, form="kernel")


def make_inputs(rule, seed=0, length=LENGTH, dtype=jnp.float32):
    draw = np.random.default_rng(seed)
    initial = rule.bank.init(jax.random.key(seed), WIDTH, HIDDEN)
    keys, values, queries = draw.normal(size=(3, length, WIDTH)) * WIDTH**-0.5
    eta, alpha, beta, theta = (
        jnp.asarray(gate, jnp.float32) for gate in draw.uniform(0.1, 0.9, size=(4, length))
    )
    gates = Gates(
        0.5 * eta,
        jnp.log(alpha) / 8,
        None if rule.projector == "none" else beta,
        jnp.log(theta) if rule.momentum else None,
    )
    reset = jnp.arange(length) == CHUNK + 2
    return initial, Tokens(*(jnp.asarray(x, dtype) for x in (keys, values)), gates, queries, reset)


def measured(form, rule, initial, tokens):
    """A loss of all that is given, its gradients, and what was given."""

    def loss(initial, tokens):
        out, state = form(rule, initial, tokens)
        parts = [jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(state.bank)]
        return jnp.sum(jnp.sin(3 * out)) + sum(parts), (out, state)

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True, allow_int=True)
    return gradient(initial, tokens)


def floating(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def assert_close(mine, theirs, tolerance):
    for a, b in zip(floating(mine), floating(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max()))


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[] if x in QUICK else pytest.mark.slow) for x in RULES]
)
def test_equals_xla_and_token_form(name):
    """Of one document and of two, which are data of one program."""
    rule = make_rule(name)
    initial, tokens = make_inputs(rule)
    resets = jnp.stack([tokens.reset, jnp.zeros_like(tokens.reset)])

    forms = [(update_and_read, with_kernel(rule)), (update_and_read, rule)]
    if name in QUICK:  # that the scan equals the token form is a test of its own for every rule
        forms.append((update_and_read_by_token, rule))

    @jax.jit
    def run(initial, tokens):
        return [
            jax.vmap(lambda reset, f=f: measured(*f, initial, tokens._replace(reset=reset)))(resets)
            for f in forms
        ]

    kernel, scan, *by_token = run(initial, tokens)
    assert_close(kernel, scan, 1e-5)
    for other in by_token:
        assert_close(kernel, other, 1e-5)
    # The gradient of every input is there, not merely equal.
    (_, _), (of_initial, of_tokens) = kernel
    for leaf in floating((of_initial, of_tokens)):
        assert np.abs(leaf).max() > 1e-6


def test_pieces_that_hand_on_their_states_equal_one_call():
    """From the middle of a chunk, and within one."""
    rule = with_kernel(make_rule("gated_delta_net"))
    initial, tokens = make_inputs(rule)
    part = lambda start, stop: jax.tree.map(lambda x: x[start:stop], tokens)
    run = jax.jit(update_and_read, static_argnums=0)
    outs, state = [], init_state(rule, initial)
    for start, stop in ((0, 11), (11, 13), (13, 20)):
        out, state = run(rule, initial, part(start, stop), state)
        outs.append(out)
    expected, end = run(dataclasses.replace(rule, form="xla"), initial, tokens)
    np.testing.assert_allclose(jnp.concatenate(outs), expected, rtol=1e-5, atol=1e-6)
    assert_close(state, end, 1e-5)


def test_equal_keys_for_thousands_of_tokens():
    """The chunk's triangular system is at its worst, and so is what rounding adds up to."""
    rule = dataclasses.replace(make_rule("hope"), chunk_size=64)
    initial, tokens = make_inputs(rule, length=4096)
    gate = jnp.full(4096, 0.1)
    ones = jnp.ones_like(tokens.keys) / WIDTH**0.5
    gates = Gates(gate / 2, jnp.log1p(-gate / 1000), gate, jnp.log(5 * gate))
    tokens = Tokens(ones, tokens.values, gates, tokens.queries)
    run = jax.jit(update_and_read, static_argnums=0)
    (mine, state), (theirs, other) = (run(r, initial, tokens) for r in (with_kernel(rule), rule))
    assert_close((mine, state.bank), (theirs, other.bank), 1e-5)


def test_second_derivatives_are_those_of_the_scan():
    """A model that learns by gradients through its memories is itself trained through them."""
    rule = make_rule("gated_delta_net")
    initial, tokens = make_inputs(rule)

    def twice(rule):
        loss = lambda keys: jnp.sum(
            jnp.sin(update_and_read(rule, initial, tokens._replace(keys=keys))[0])
        )
        return jax.jit(jax.grad(lambda keys: jnp.sum(jnp.sin(jax.grad(loss)(keys)))))(tokens.keys)

    np.testing.assert_allclose(twice(with_kernel(rule)), twice(rule), rtol=1e-5, atol=1e-6)


def test_bfloat16_is_as_near_to_float32_as_the_scan():
    """Keys, values and queries of bfloat16, and states kept in it for the backward pass."""
    rule = make_rule("gated_delta_net")
    initial, exact = make_inputs(rule)
    halves = lambda x: x.astype(jnp.bfloat16)
    tokens = exact._replace(
        keys=halves(exact.keys), values=halves(exact.values), queries=halves(exact.queries)
    )
    run = jax.jit(lambda *args: measured(update_and_read, *args), static_argnums=0)
    truth = run(rule, initial, exact)
    mine, theirs = run(with_kernel(rule), initial, tokens), run(rule, initial, tokens)
    for a, b, c in zip(*map(floating, (mine, theirs, truth)), strict=True):
        error = lambda x, c=c: np.linalg.norm(np.float32(x) - c) / np.linalg.norm(c)
        assert error(a) < max(1.5 * error(b), 4e-3)
