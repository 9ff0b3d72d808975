"""Titans' three ways of joining memory and attention, each against its equations written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.layers.attention import Attention
from hope_jax.layers.memory_and_attention import MemoryAsGate, MemoryAsLayer
from hope_jax.layers.memory_as_context import MemoryAsContext
from hope_jax.layers.titans import SelfModifyingTitans, TitansConfig

BATCH, LENGTH, WIDTH, HEADS, SEGMENT, PERSISTENT = 2, 11, 8, 2, 4, 3
SIZE = WIDTH // HEADS
CONFIG = TitansConfig(WIDTH, HEADS, memory_chunk=2, generator_chunk=4, initial_eta=0.5)
FLOATS = {"dtype": jnp.float64, "param_dtype": jnp.float64}
RESET = np.zeros((BATCH, LENGTH), bool)
RESET[0, 5] = RESET[1, [4, 9]] = True  # within a segment, and where one begins
KINDS = ("context", "gate", "layer")


@functools.cache
def made(kind):
    attention = functools.partial(
        Attention, num_heads=HEADS, window=SEGMENT, persistent=PERSISTENT, **FLOATS
    )
    memory = functools.partial(SelfModifyingTitans, CONFIG, **FLOATS)
    if kind == "context":
        layer = MemoryAsContext(CONFIG, SEGMENT, PERSISTENT, **FLOATS)
    else:
        joined = MemoryAsGate if kind == "gate" else MemoryAsLayer
        layer = joined(attention, memory, **FLOATS)
    x = jax.random.normal(jax.random.key(0), (BATCH, LENGTH, WIDTH), jnp.float64)
    return layer, nn.unbox(jax.jit(layer.init)(jax.random.key(1), x)), x


@functools.cache
def make(kind):
    layer, params, x = made(kind)
    return params, x, jax.jit(lambda p, x, s, r: layer.apply(p, x, s, r))


def rms(x, part):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6) * np.asarray(part["scale"])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@jax.jit
def memory_layer(params, x, reset):
    return SelfModifyingTitans(CONFIG, **FLOATS).apply({"params": params}, x, None, reset)


def turned(rows, positions):
    """Rotary embedding at base 10,000, by complex numbers."""
    half = rows.shape[-1] // 2
    turn = np.exp(1j * positions[:, None] * 10_000.0 ** (-np.arange(half) / half))
    z = (rows[..., :half] + 1j * rows[..., half:]) * turn[:, None]
    return np.concatenate([z.real, z.imag], -1)


def attend(params, x, context, see):
    """Rows of x, (T, D), to `context`, a list of (rows, positions), and the persistent tokens.

    `see(t, j)`: whether x_t sees row j of each part of the context.
    """
    to_heads = lambda rows, name: np.einsum(
        "td,dhn->thn", rows, np.asarray(params[name]["kernel"], np.float64)
    )
    persistent = np.asarray(params["persistent"], np.float64)
    query = to_heads(x, "query")
    turned_query = turned(query, np.arange(len(x)))
    out = np.zeros_like(x)
    for t in range(len(x)):
        for h in range(HEADS):
            scores = list(to_heads(persistent, "key")[:, h] @ query[t, h])
            values = list(to_heads(persistent, "value")[:, h])
            for rows, positions in context:
                keys = turned(to_heads(rows, "key"), positions)
                seen = [j for j in range(len(rows)) if see(t, j)]
                scores += [keys[j, h] @ turned_query[t, h] for j in seen]
                values += [to_heads(rows, "value")[j, h] for j in seen]
            weights = np.exp(np.array(scores) / np.sqrt(SIZE))
            mixed = weights @ np.stack(values) / weights.sum()
            out[t] += mixed @ np.asarray(params["out"]["kernel"][h])
    return out


def starts(reset):
    """First token of the document of each token."""
    return np.maximum.accumulate(np.where(reset, np.arange(len(reset)), 0))


def window_attention(params, x, reset):
    rows = []
    for b in range(BATCH):
        first, places = starts(reset[b]), np.arange(LENGTH)
        see = lambda t, j, first=first: max(first[t], t - SEGMENT + 1) <= j <= t
        rows.append(attend(params, x[b], [(x[b], places)], see))
    return np.stack(rows)


def by_hand(kind, params, x, reset):
    x = np.asarray(x)
    if kind == "layer":
        far = np.asarray(memory_layer(params["memory"], x, reset)[0])
        return window_attention(params["attention"], rms(far, params["memory_norm"]), reset)
    if kind == "gate":
        near = window_attention(params["attention"], x, reset)
        far = np.asarray(memory_layer(params["memory"], x, reset)[0])
    else:
        params = params["piece"]
        near = np.zeros_like(x)
        initial = memory_layer(params["memory"], near[:, :0], reset[:, :0])[1]
        for begin in range(0, LENGTH, SEGMENT):
            own = slice(begin, min(begin + SEGMENT, LENGTH))
            # The memory as it is once it has read all segments before.
            state = memory_layer(params["memory"], near[:, :begin], reset[:, :begin])[1]
            for b in range(BATCH):
                segment, count = x[b, own], len(x[b, own])
                first = starts(reset[b, own])
                recalled = np.zeros_like(segment)
                for t in range(count):
                    source = initial if reset[b, own][: t + 1].any() else state
                    weights = source.heads.memory.weights
                    for h in range(HEADS):
                        q = segment[t] @ np.asarray(params["recall"]["kernel"][:, h])
                        q = q / np.linalg.norm(q)
                        hidden = jax.nn.gelu(q @ np.asarray(weights.first[b, h]))
                        found = q + np.asarray(hidden) @ np.asarray(weights.values[b, h, 0])
                        recalled[t] += found @ np.asarray(params["recalled"]["kernel"][h])
                recalled = rms(recalled, params["recalled_norm"])
                places = np.arange(count)
                see = lambda t, j, first=first: first[t] <= j <= t
                context = [(recalled, places), (segment, places)]
                mixed = attend(params, segment, context, see)
                near[b, own] = rms(mixed, params["attention_norm"])
        far = np.asarray(memory_layer(params["memory"], near, reset)[0])
        return near * sigmoid(rms(far, params["memory_norm"]))
    return rms(near, params["attention_norm"]) * sigmoid(rms(far, params["memory_norm"]))


@pytest.mark.parametrize("reset", [np.zeros_like(RESET), RESET], ids=["one_document", "documents"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_its_equations(kind, reset, x64):
    params, x, call = make(kind)
    y, _ = call(params, x, None, reset)
    # Rotary angles are float32 everywhere.
    expected = by_hand(kind, params["params"], x, reset)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_give_what_one_call_gives(kind, x64):
    params, x, call = make(kind)
    whole, end = call(params, x, None, RESET)
    nothing = call(params, x[:, :0], None, RESET[:, :0])[1]
    for cuts in (range(LENGTH + 1), (0, 5, 5, 6, LENGTH)):
        state, parts = nothing, []
        for i, j in zip(cuts[:-1], cuts[1:], strict=True):
            y, state = call(params, x[:, i:j], state, RESET[:, i:j])
            parts.append(y)
        # JAX forms the softmax in float32.
        np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, end)


@pytest.mark.parametrize("kind", KINDS)
def test_goes_on_at_an_edge(kind, x64):
    """By whole segments, as a fresh context."""
    layer, params, x = made(kind)
    whole, _ = jax.jit(layer.apply)(params, x[:, :8], None, RESET[:, :8])
    first, state = jax.jit(layer.apply)(params, x[:, :4], None, RESET[:, :4])
    read = jax.jit(lambda p, x, s, r: layer.apply(p, x, s, r, at_edge=True))
    rest, _ = read(params, x[:, 4:8], state, RESET[:, 4:8])
    np.testing.assert_allclose(np.concatenate([first, rest], 1), whole, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_causal_and_independent(kind, x64):
    params, x, call = make(kind)
    y = call(params, x, None, RESET)[0]
    for t in (2, 6):  # within segments: what is recalled for a token is seen by none before it
        changed = call(params, x.at[:, t].add(1.0), None, RESET)[0]
        np.testing.assert_allclose(changed[:, :t], y[:, :t], atol=1e-14)
        assert np.abs(changed[:, t:] - y[:, t:]).max() > 1e-3
    changed = call(params, x.at[1].add(1.0), None, RESET)[0]
    np.testing.assert_allclose(changed[0], y[0], atol=1e-14)
    changed = call(params, x.at[0, :5].add(1.0), None, RESET)[0]
    np.testing.assert_allclose(changed[0, 5:], y[0, 5:], atol=1e-14)
    # The memory carries what attention's window no longer sees.
    changed = call(params, x.at[0, 0].add(1.0), None, None)[0] - call(params, x, None, None)[0]
    assert np.abs(changed[0, 2 * SEGMENT :]).max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained_by_its_exact_gradient(kind, x64):
    """Finite differences along a direction that moves all parameters."""
    params, x, call = make(kind)
    weights = jax.random.normal(jax.random.key(3), x.shape, jnp.float64)
    loss = lambda params: jnp.sum(call(params, x, None, RESET)[0] * weights)
    gradient = jax.jit(jax.grad(loss))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    draw = np.random.default_rng(0)
    direction = jax.tree.map(lambda w: draw.normal(size=w.shape), params)
    # JAX forms the softmax in float32: steps well above its rounding, and a rule of fourth order.
    moved = lambda step: loss(jax.tree.map(lambda w, d: w + step * d, params, direction))
    step = 5e-4
    first, second = (moved(n * step) - moved(-n * step) for n in (1, 2))
    slope = (8 * first - second) / (12 * step)
    mine = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction))))  # noqa: B905
    np.testing.assert_allclose(mine, slope, rtol=5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_states_can_be_donated(kind, x64):
    layer, params, x = made(kind)
    state = layer.apply(params, x[:, :0])[1]  # not compiled
    jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)(state)


def test_segments_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match="segment of 6 tokens is no multiple of the memory's chunk"
    ):
        MemoryAsContext(CONFIG, 6).init(jax.random.key(0), jnp.zeros((1, 2, WIDTH)))
