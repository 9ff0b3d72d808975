"""Experts beside the levels, against NumPy and against a model without them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.layers.experts import Experts, read_experts
from hope_jax.layers.level_learning import InContextConfig
from hope_jax.models import LanguageModel, LanguageModelConfig

BATCH, TOKENS, VOCAB, WIDTH, RANK, ROOM = 2, 11, 13, 8, 3, 2
TEXT = np.random.default_rng(0).integers(VOCAB, size=(BATCH, TOKENS))
BASE = LanguageModelConfig(
    vocab_size=VOCAB,
    width=WIDTH,
    num_layers=2,
    num_heads=1,
    mlp_width=6,
    sequence_layer="attention",
    cms_levels=2,
    in_context={"chunks": (2, 4), "blocks": 1},
)


def random_experts(*home, active=True, seed=1):
    random = np.random.default_rng(seed)
    shapes = (*home, ROOM, WIDTH, RANK), (*home, ROOM, RANK, WIDTH), (*home, ROOM, WIDTH)
    arrays = [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes]
    return Experts(*arrays, jnp.full((*home, ROOM), active))


def with_experts(state, experts):
    return state._replace(adapting=state.adapting._replace(experts=experts))


@functools.cache
def made():
    model = LanguageModel(BASE)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), TEXT)["params"])
    apply = jax.jit(model.apply)
    _, fresh = apply({"params": params}, TEXT[:, :0])
    _, read = apply({"params": params}, TEXT)
    return model, params, apply, fresh, read


@pytest.mark.parametrize("own", [True, False])
def test_equals_the_formula(own, x64):
    random = np.random.default_rng(2)
    home = (BATCH, 2) if own else (2,)
    experts = random_experts(*home)
    active = random.random((*home, ROOM)) < 0.5
    x = random.normal(size=(BATCH, 5, WIDTH))
    experts = Experts(*(np.asarray(w, np.float64) for w in experts[:3]), active)
    found = jax.jit(lambda x, e: read_experts(x, e, 1, "float64"))(x, experts)
    gelu = lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    wanted = np.zeros_like(x)
    for b in range(BATCH):
        down, up, router, on = (w[b, 1] if own else w[1] for w in experts)
        for t in range(5):
            for e in range(ROOM):
                gate = 1 / (1 + np.exp(-x[b, t] @ router[e] / WIDTH**0.5))
                wanted[b, t] += on[e] * gate * (gelu(x[b, t] @ down[e]) @ up[e])
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_switched_on_at_zero_it_changes_no_bit():
    _, params, apply, _, read = made()
    experts = random_experts(1, BATCH, 2)
    experts = experts._replace(
        up=experts.up.at[:, :, :, 1].set(0), active=experts.active.at[:, :, :, 1].set(False)
    )
    on = experts._replace(active=experts.active.at[:, :, :, 1].set(True))
    off, on = (apply({"params": params}, TEXT, with_experts(read, e)) for e in (experts, on))
    np.testing.assert_array_equal(off[0], on[0])
    jax.tree.map(
        np.testing.assert_array_equal, *(state.adapting.blocks.continuum for _, state in (off, on))
    )
    plain, _ = apply({"params": params}, TEXT, read)
    assert np.abs(plain - off[0]).max() > 1e-2  # the older expert speaks
    none = random_experts(1, BATCH, 2, active=False)
    room, _ = apply({"params": params}, TEXT, with_experts(read, none))
    np.testing.assert_allclose(room, plain, rtol=1e-4, atol=1e-5)


def test_a_pool_lies_beside_the_level_that_owns_it():
    """What level 0 has learned goes to level 1, and what level 1 has learned below it; nothing to 0."""
    _, params, apply, fresh, _ = made()
    silent = jax.tree.map(jnp.zeros_like, params["blocks"]["continuum"]["level_1_norm"])
    quiet = {**params["blocks"]["continuum"], "level_1_norm": silent}
    quiet = {**params, "blocks": {**params["blocks"], "continuum": quiet}}
    experts = random_experts(1, BATCH, 2)
    both = [
        apply({"params": params}, TEXT[:, :2], with_experts(fresh, e))[0]
        for e in (experts, experts._replace(active=experts.active.at[:, :, 1].set(False)))
    ]
    assert np.abs(both[0] - both[1]).max() > 1e-3
    plain, _ = apply({"params": quiet}, TEXT[:, :2], fresh)
    heard, _ = apply({"params": quiet}, TEXT[:, :2], with_experts(fresh, experts))
    np.testing.assert_array_equal(plain, heard)


@pytest.mark.parametrize("objective", ["next_token", "local"])
def test_pieces_give_what_one_call_gives_and_experts_outlast_a_reset(objective):
    learning = {**BASE.in_context, "objective": objective}
    model = LanguageModel(dataclasses.replace(BASE, in_context=learning))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), TEXT)["params"])
    apply = jax.jit(model.apply)
    reset = np.zeros((BATCH, TOKENS), bool)
    reset[1, 4] = True  # where chunks of both sizes begin
    experts = random_experts(1, BATCH, 2)
    _, fresh = apply({"params": params}, TEXT[:, :0])
    start = with_experts(fresh, experts)
    whole, last = apply({"params": params}, TEXT, start, reset)
    state, pieces = start, []
    for part in (slice(0, 3), slice(3, TOKENS)):
        logits, state = apply({"params": params}, TEXT[:, part], state, reset[:, part])
        pieces.append(logits)
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=2e-4, atol=2e-4)
    jax.tree.map(np.testing.assert_array_equal, last.adapting.experts, experts)
    anew, _ = apply({"params": params}, TEXT[:, 4:], start)
    np.testing.assert_allclose(whole[1, 4:], anew[1], rtol=2e-4, atol=2e-4)


def test_everyones_in_the_parameters_are_as_ones_own_in_the_state():
    _, params, apply, fresh, _ = made()
    shared = random_experts(1, 2)
    own = jax.tree.map(lambda w: jnp.broadcast_to(w[:, None], (1, BATCH, *w.shape[1:])), shared)
    wanted, _ = apply({"params": params}, TEXT, with_experts(fresh, own))
    together, _ = apply({"params": params}, TEXT, with_experts(fresh, shared))
    np.testing.assert_allclose(together, wanted, rtol=1e-5, atol=1e-5)
    learning = {**BASE.in_context, "experts": ROOM, "expert_width": RANK}
    model = LanguageModel(dataclasses.replace(BASE, in_context=learning))
    begun = nn.unbox(jax.jit(model.init)(jax.random.key(0), TEXT)["params"])
    for name, leaf in params.items():  # all else begins as without
        jax.tree.map(np.testing.assert_array_equal, begun[name], leaf)
    given = {f"expert_{name}": getattr(shared, name) for name in ("down", "up", "router")}
    assert jax.tree.map(jnp.shape, {n: begun[n] for n in given}) == jax.tree.map(jnp.shape, given)
    apply = jax.jit(model.apply)
    nothing, _ = apply({"params": begun}, TEXT)
    plain, _ = made()[2]({"params": params}, TEXT)
    np.testing.assert_allclose(nothing, plain, rtol=1e-4, atol=1e-5)
    found, _ = apply({"params": {**params, **given}}, TEXT)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_where_knowledge_goes():
    chain = InContextConfig(chunks=(2, 4, 8)).sender_of_each(2, 3)
    np.testing.assert_array_equal(chain, [[0, 1, 2], [0, 1, 2]])
    over_depth = InContextConfig(chunks=(2, 4, 8)).sender_of_each(4, 1)
    np.testing.assert_array_equal(over_depth, [[-1, -1], [-1, -1], [0, -1], [1, 2]])
    np.testing.assert_array_equal(InContextConfig(chunks=(2,)).sender_of_each(2, 1), [[0], [0]])
