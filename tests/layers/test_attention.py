import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.layers.attention import Attention, layer_of, with_layer

BATCH, TOKENS, WIDTH, HEADS = 2, 13, 8, 2
BASE = 100.0
RESET = np.zeros((BATCH, TOKENS), bool)
RESET[0, 4] = RESET[1, [0, 5, 6]] = True


def layer(window, sinks=0):
    return Attention(num_heads=HEADS, window=window, rope_base=BASE, sinks=sinks)


@functools.cache
def compiled(window, sinks=0):
    return jax.jit(layer(window, sinks).apply)


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(0).normal(size=(BATCH, TOKENS, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def params(inputs):
    return jax.jit(layer(4).init)(jax.random.key(1), inputs)


def naive_attention(params, x, window, reset=None, start=0, sinks=0):
    """The definition, token by token, in float64.

    First tokens of a document that lie behind the window are seen as if the rest of it began at once
    behind them.
    """
    kernels = {
        name: np.asarray(value["kernel"].unbox(), np.float64) for name, value in params.items()
    }
    x = np.asarray(x, np.float64)
    batch, tokens, width = x.shape
    half = width // HEADS // 2
    y = np.zeros_like(x)
    for b in range(batch):
        query, key, value = (
            np.einsum("td,dhn->thn", x[b], kernels[name]) for name in ("query", "key", "value")
        )
        turn = np.exp(1j * (start + np.arange(tokens))[:, None] * BASE ** (-np.arange(half) / half))
        query, key = ((z[..., :half] + 1j * z[..., half:]) * turn[:, None] for z in (query, key))
        first = 0
        for t in range(tokens):
            if reset is not None and reset[b, t]:
                first = t
            near = np.arange(max(first, t - window + 1), t + 1)
            behind = np.arange(first, min(first + sinks, near[0]))
            seen = np.concatenate([behind, near]).astype(int)
            left_out = near[0] - (behind[-1] + 1 if len(behind) else near[0])
            nearer = np.exp(1j * BASE ** (-np.arange(half) / half) * left_out)
            for h in range(HEADS):
                keys = key[seen, h]
                keys[: len(behind)] *= nearer
                scores = (keys.conj() * query[t, h]).real.sum(-1) / np.sqrt(2 * half)
                weights = np.exp(scores - scores.max())
                mixed = weights @ value[seen, h] / weights.sum()
                y[b, t] += mixed @ kernels["out"][h]
    return y


def far_state(params, inputs, window, position):
    """The state of a context that has read nothing, as if at a later position."""
    _, state = compiled(window)(params, inputs[:, :0])
    return state._replace(position=state.position + position, document=state.document + position)


@pytest.mark.parametrize("reset", [None, RESET], ids=["one_document", "documents"])
@pytest.mark.parametrize("window", [1, 4, 13, 50])
def test_agrees_with_the_definition(params, inputs, window, reset):
    y, _ = compiled(window)(params, inputs, None, reset)
    expected = naive_attention(params["params"], inputs, window, reset)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("reset", [None, RESET], ids=["one_document", "documents"])
@pytest.mark.parametrize("window, sinks", [(1, 3), (4, 1), (3, 2), (5, 20), (50, 2)])
def test_first_tokens_are_seen_behind_the_window(params, inputs, window, sinks, reset):
    y, _ = compiled(window, sinks)(params, inputs, None, reset)
    expected = naive_attention(params["params"], inputs, window, reset, sinks=sinks)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    cut = naive_attention(params["params"], inputs, window, reset)
    assert (np.abs(expected - cut).max() > 0.01) == (window < TOKENS)


@pytest.mark.parametrize("sinks", [1, 3])
@pytest.mark.parametrize("pieces", [[1] * TOKENS, [3, 0, 9, 1], [6, 7], [2, 11]], ids=str)
def test_pieces_with_sinks_give_what_one_call_gives(params, inputs, sinks, pieces):
    step = compiled(3, sinks)
    one_call, last = step(params, inputs, None, RESET)
    for at in (0, 100_000):
        _, state = step(params, inputs[:, :0])
        state = state._replace(position=state.position + at, document=state.document + at)
        outputs = []
        for begin, end in zip(np.cumsum(pieces) - pieces, np.cumsum(pieces), strict=True):
            y, state = step(params, inputs[:, begin:end], state, RESET[:, begin:end])
            outputs.append(y)
        np.testing.assert_allclose(np.concatenate(outputs, 1), one_call, atol=1e-4 if at else 1e-5)
    # The first sequence's last document began at 4, the second's at 6; all of their sinks are read.
    for ours, theirs in zip(state.sinks, last.sinks, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_gradients_pass_through_sinks(params, inputs):
    loss = lambda params, x: jnp.sum(compiled(3, 2)(params, x, None, RESET)[0] ** 2)
    gradient = jax.grad(loss, 1)(params, inputs)
    way = np.random.default_rng(1).normal(size=inputs.shape).astype(np.float32)
    slope = (loss(params, inputs + 1e-3 * way) - loss(params, inputs - 1e-3 * way)) / 2e-3
    np.testing.assert_allclose(jnp.sum(gradient * way), slope, rtol=0.01)


@pytest.mark.parametrize("window", [4, 50])
@pytest.mark.parametrize("pieces", [[1] * TOKENS, [3, 0, 9, 1], [6, 7]], ids=str)
def test_pieces_give_what_one_call_gives(params, inputs, window, pieces):
    step = compiled(window)
    one_call, last = step(params, inputs, None, RESET)
    state = far_state(params, inputs, window, 0)
    ends = np.cumsum(pieces)
    outputs = []
    for begin, end in zip(ends - pieces, ends, strict=True):
        y, state = step(params, inputs[:, begin:end], state, RESET[:, begin:end])
        outputs.append(y)
    np.testing.assert_allclose(np.concatenate(outputs, 1), one_call, atol=1e-5)
    for carried, expected in zip(state, last, strict=True):
        np.testing.assert_allclose(carried, expected, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_far_positions_lose_nothing(params, inputs, tokens):
    state = far_state(params, inputs, 4, 100_000 - 2)
    outputs = []
    for begin in range(0, TOKENS, tokens):
        y, state = compiled(4)(params, inputs[:, begin : begin + tokens], state)
        outputs.append(y)
    expected = naive_attention(params["params"], inputs, 4, start=100_000 - 2)
    np.testing.assert_allclose(np.concatenate(outputs, 1), expected, atol=1e-5)


@pytest.mark.parametrize("heads", [{"num_kv_heads": 1}, {"persistent": 3}, {"sinks": 2}], ids=str)
def test_a_token_is_written_where_the_ring_of_its_layer_lies(inputs, heads, x64):
    """Two layers whose states are stacked, two rows that stand at different places in their rings."""
    reader = Attention(2, 4, rope_base=BASE, **heads, dtype=jnp.float64, param_dtype=jnp.float64)
    x = jnp.asarray(inputs, jnp.float64)
    params = jax.jit(reader.init)(jax.random.key(1), x)
    joined = lambda *states: jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states)

    @jax.jit
    def found(params, x):
        # By the one call that reads all of a row, which knows no ring, and by rings that were
        # filled by pieces of other lengths.
        whole = [
            [reader.apply(params, x[row, :t][None])[0][:, -1] for t in (3, 10)] for row in (0, 1)
        ]
        begun = [[reader.apply(params, x[row, :t][None])[1] for t in (2, 9)] for row in (0, 1)]
        mixed = [joined(begun[0][0], begun[1][1]), joined(begun[0][1], begun[1][0])]
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *mixed)
        tokens = jnp.stack([x[jnp.array([0, 1]), jnp.array(at)] for at in ([2, 9], [9, 2])])
        outputs = []
        for index in range(2):
            state = layer_of(states, jnp.array(index))
            y, state = reader.apply(params, tokens[index][:, None], state)
            outputs.append(y[:, 0])
            states = with_layer(states, state, jnp.array(index))
        wanted = [[whole[0][0], whole[1][1]], [whole[0][1], whole[1][0]]]
        after = [[reader.apply(params, x[row, :t][None])[1] for t in (3, 10)] for row in (0, 1)]
        kept = [joined(after[0][0], after[1][1]), joined(after[0][1], after[1][0])]
        kept = jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept)
        return (jnp.stack(outputs), states), (jnp.stack([jnp.concatenate(w) for w in wanted]), kept)

    # The call that knows no ring forms its softmax in float32.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    jax.tree.map(close, *found(params, x))


def test_a_document_is_read_as_if_alone(params, inputs):
    together, _ = compiled(50)(params, inputs, None, RESET)
    alone, _ = compiled(50)(params, inputs[:1, 4:])
    np.testing.assert_allclose(together[:1, 4:], alone, atol=1e-5)


def test_no_score_outside_the_band_is_formed(params, inputs):
    """With a window of 4, memory grows with T; with one as long as the sequence, with T * T."""

    def memory(window, tokens):
        x = jax.ShapeDtypeStruct((1, tokens, WIDTH), jnp.float32)
        y_only = jax.jit(lambda params, x: layer(window).apply(params, x)[0])
        return y_only.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    assert memory(4, 1024) < 2.2 * memory(4, 512)
    assert memory(1024, 1024) > 3 * memory(512, 512)


def test_bfloat16_keeps_its_dtype_and_its_sense(params, inputs):
    exact, _ = compiled(4)(params, inputs)
    low = Attention(num_heads=HEADS, window=4, rope_base=BASE, dtype=jnp.bfloat16)
    y, state = jax.jit(low.apply)(params, inputs)
    assert y.dtype == state.ring_keys.dtype == state.ring_values.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.1)


@pytest.mark.parametrize("heads", [3, 8], ids=["uneven", "odd_width"])
def test_widths_that_do_not_split_are_refused(inputs, heads):
    with pytest.raises(ValueError, match=f"width 8 does not split so into {heads} heads"):
        Attention(num_heads=heads, window=4).init(jax.random.key(0), inputs)


def test_sinks_and_persistent_tokens_are_not_had_together(inputs):
    with pytest.raises(ValueError, match="sinks=1 and persistent=2 serve the same end"):
        Attention(num_heads=2, window=4, sinks=1, persistent=2).init(jax.random.key(0), inputs)
