"""Levels that learn while the model reads, against loops that do one thing after the other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.models import LanguageModel, LanguageModelConfig, init_state

VOCAB, BATCH, TOKENS = 7, 2, 11
PLAIN = LanguageModelConfig(
    vocab_size=VOCAB,
    width=4,
    num_layers=3,
    num_heads=1,
    mlp_width=6,
    sequence_layer="attention",
    attention_window=5,
    cms_levels=2,
    dtype="float64",
    param_dtype="float64",
    loss_chunk=3,
)
TEXT = np.random.default_rng(1).integers(VOCAB, size=(BATCH, TOKENS + 1))
RESET = np.zeros((BATCH, TOKENS), bool)
RESET[0, [4, 5]] = RESET[1, [0, 6]] = True  # at a chunk's start, within, twice within


def settings(**changes):
    return {"chunks": (2, 4), "step_size": (0.5, 0.3), "blocks": 2, **changes}


CASES = {
    "sequential": (PLAIN, settings()),
    "independent": (dataclasses.replace(PLAIN, cms_connection="independent"), settings()),
    "nested": (dataclasses.replace(PLAIN, cms_connection="nested"), settings()),
    "three_levels_with_momentum": (
        dataclasses.replace(PLAIN, cms_levels=3, cms_connection="nested", cms_order="slow_to_fast"),
        settings(chunks=(1, 2, 4), step_size=0.4, optimizer="momentum", decay=0.1),
    ),
    "dgd": (PLAIN, settings(chunks=(3, 6), optimizer="dgd", learned_step=False)),
    "levels_over_depth": (
        dataclasses.replace(PLAIN, cms_levels=1),
        settings(blocks=3, chunks=(2, 6)),
    ),
    "titans": (
        dataclasses.replace(
            PLAIN,
            sequence_layer="titans",
            titans={"memory_chunk": 2, "others_chunk": 4, "convolution": 2},
        ),
        settings(),
    ),
    "cut": (PLAIN, settings(gradient_steps=0)),
    "truncated": (PLAIN, settings(gradient_steps=2, optimizer="momentum")),
}


@pytest.fixture
def exact(x64, monkeypatch):
    """Float64 throughout: JAX's own attention takes its softmax in float32."""

    def attention(query, key, value, mask=None, is_causal=False):
        scores = jnp.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(query.shape[-1])
        visible = True if mask is None else mask
        if is_causal:
            visible &= np.tri(query.shape[1], key.shape[1], dtype=bool)
        weights = jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1)
        return jnp.einsum("bnts,bsnh->btnh", weights, value)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)


@functools.cache
def made(name, **changes):
    plain, learning = CASES[name]
    model = LanguageModel(dataclasses.replace(plain, in_context={**learning, **changes}))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), TEXT[:, :2])["params"])
    if "log_step" in params:
        params["log_step"] = 0.3 * jax.random.normal(jax.random.key(1), params["log_step"].shape)
    return model, params


def reference(name, params, text, reset):
    """Losses and final weights of one sequence: slices, `jax.grad` on each, the change by hand.

    The plain model knows nothing of learning; it is given other parameters after each chunk.
    """
    plain, learning = CASES[name]
    model = LanguageModel(plain)
    blocks, levels = learning["blocks"], plain.cms_levels
    chunks = learning["chunks"]
    steps = np.broadcast_to(learning["step_size"], len(chunks))
    slow = {key: value for key, value in params.items() if key != "log_step"}
    log_step = params.get("log_step", jnp.zeros((blocks, levels)))
    pairs = [(block, level) for block in range(blocks) for level in range(levels)]
    index = {
        (block, level): level if levels > 1 else block * len(chunks) // blocks
        for block, level in pairs
    }
    first = plain.num_layers - blocks
    names = ("gate", "up", "down")

    def initial():
        return {
            (block, level): {
                n: slow["blocks"]["continuum"][f"level_{level}"][n]["kernel"][first + block]
                for n in names
            }
            for block, level in pairs
        }

    def inserted(fast):
        tree = jax.tree.map(lambda x: x, slow)
        for (block, level), maps in fast.items():
            for n, w in maps.items():
                held = tree["blocks"]["continuum"][f"level_{level}"][n]
                held["kernel"] = held["kernel"].at[first + block].set(w)
        return tree

    def losses_of(fast, tokens, targets, state):
        (logits, state), seen = model.apply(
            {"params": inserted(fast)}, tokens[None], state, capture_intermediates=True
        )
        logits = logits[0]
        return jax.nn.logsumexp(logits, -1) - logits[jnp.arange(len(targets)), targets], state, seen

    def dgd(fast, inputs):
        result = {}
        for (block, level), maps in fast.items():
            result[block, level] = {}
            for n, w in maps.items():
                x = inputs[block, level, n]
                x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
                result[block, level][n] = x.T @ x @ w
        return result

    def inputs_of(fast, tokens, state):
        from hope_jax.optim.dense_inputs import apply_with_dense_inputs

        _, seen = apply_with_dense_inputs(
            model, {"params": inserted(fast)}, tokens[None], state
        )
        return {
            (block, level, n): seen["blocks"]["continuum"][f"level_{level}"][n]["kernel"][
                first + block, 0
            ]
            for block, level in pairs
            for n in names
        }

    fast, state, losses = initial(), None, []
    zero = jax.tree.map(jnp.zeros_like, fast)
    summed, momentum = zero, zero
    smallest, length = chunks[0], len(text) - 1
    for start in range(0, length, smallest):
        end = min(start + smallest, length)
        tokens, targets, resets = text[start:end], text[start + 1 : end + 1], reset[start:end]
        # Documents within the chunk, each from its reset on.
        cuts = [0, *[int(i) for i in np.flatnonzero(resets) if i > 0], end - start]
        for a, b in zip(cuts, cuts[1:], strict=False):
            if resets[a]:
                fast, state, summed, momentum = initial(), None, zero, zero
            part, part_state = (tokens[a:b], targets[a:b]), state
            part_losses, state, _ = losses_of(fast, *part, state)
            losses.append(part_losses)
        if end == length:  # nothing more will be read
            break
        counted = 0.0 if reset[end] else 1.0
        gradient = jax.grad(lambda w: losses_of(w, *part, part_state)[0].sum())(fast)
        if learning.get("optimizer") == "dgd":
            extra = dgd(fast, inputs_of(fast, part[0], part_state))
            gradient = jax.tree.map(jnp.add, gradient, extra)
        done = end // smallest
        summed = jax.tree.map(lambda s, g: s + counted * g / smallest, summed, gradient)
        beginning, stop = initial(), jax.lax.stop_gradient
        fast, summed, momentum = (dict(tree) for tree in (fast, summed, momentum))
        for block, level in pairs:
            here = block, level
            period = chunks[index[here]] // smallest
            if done % period == 0:
                mean = jax.tree.map(lambda s: s / period, summed[here])
                if learning.get("gradient_steps") == 0:
                    mean = stop(mean)
                if learning.get("optimizer") == "momentum":
                    mean = jax.tree.map(lambda m, g: 0.9 * m + g, momentum[here], mean)
                    momentum[here] = mean
                step = steps[index[here]] * jnp.exp(log_step[here])
                keep = 1 - learning.get("decay", 0.0)
                fast[here] = jax.tree.map(
                    lambda w, w_0, g: w_0 + keep * (w - w_0) - step * g,
                    fast[here],
                    beginning[here],
                    mean,
                )
                summed[here] = zero[here]
            nested = plain.cms_connection == "nested" and level + 1 < levels
            if nested and done % (chunks[level + 1] // smallest) == 0:
                fast[here], momentum[here] = beginning[here], zero[here]
            if learning.get("gradient_steps") and done % learning["gradient_steps"] == 0:
                fast[here] = jax.tree.map(
                    lambda w, w_0: stop(w) + w_0 - stop(w_0), fast[here], beginning[here]
                )
                summed[here], momentum[here] = stop(summed[here]), stop(momentum[here])
    return jnp.concatenate(losses), fast


def fast_weights(state):
    """{(block, level): maps} of each sequence, as the reference has them."""
    levels = state.adapting.blocks.continuum.levels
    blocks, batch = levels[0].weights.gate.shape[:2]
    return [
        {
            (block, level): {
                name: value[block, row] for name, value in levels[level].weights._asdict().items()
            }
            for block in range(blocks)
            for level in range(len(levels))
        }
        for row in range(batch)
    ]


@pytest.mark.parametrize("with_resets", [False, True], ids=["", "resets"])
@pytest.mark.parametrize("name", CASES)
def test_equals_a_loop_over_slices_with_gradients_by_hand(exact, name, with_resets):
    model, params = made(name)
    reset = RESET if with_resets else np.zeros_like(RESET)
    weight = jnp.asarray(np.random.default_rng(2).normal(size=(BATCH, TOKENS)))

    def ours(params):
        losses = model.apply(
            {"params": params},
            TEXT[:, :-1],
            TEXT[:, 1:],
            reset if with_resets else None,
            method="token_losses",
        )
        return jnp.sum(losses * weight), losses

    def theirs(params):
        rows = [reference(name, params, TEXT[i], reset[i]) for i in range(BATCH)]
        losses = jnp.stack([losses for losses, _ in rows])
        return jnp.sum(losses * weight), (losses, [fast for _, fast in rows])

    (_, losses), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    (_, (expected, fast)), expected_gradient = jax.jit(
        jax.value_and_grad(theirs, has_aux=True)
    )(params)
    np.testing.assert_allclose(losses, expected, rtol=1e-9, atol=1e-9)
    assert np.abs(losses - plain_losses(name, params, with_resets)).max() > 1e-3
    jax.tree.map_with_path(
        lambda path, ours, theirs: np.testing.assert_allclose(
            ours, theirs, rtol=1e-8, atol=1e-9, err_msg=jax.tree_util.keystr(path)
        ),
        gradient,
        expected_gradient,
    )
    _, state = jax.jit(model.apply)({"params": params}, TEXT[:, :-1], None, reset if with_resets else None)
    if not with_resets:  # a finished document's are dropped early
        jax.tree.map(
            lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9),
            fast_weights(state),
            fast,
        )


def plain_losses(name, params, with_resets):
    plain, _ = CASES[name]
    params = {key: value for key, value in params.items() if key != "log_step"}
    return LanguageModel(plain).apply(
        {"params": params},
        TEXT[:, :-1],
        TEXT[:, 1:],
        RESET if with_resets else None,
        method="token_losses",
    )
