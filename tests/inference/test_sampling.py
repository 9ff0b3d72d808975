import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.inference.sampling import decode_step, generate, read, sample, sample_token
from hope_jax.models import LanguageModel, LanguageModelConfig

MODEL = LanguageModel(
    LanguageModelConfig(
        vocab_size=11,
        width=8,
        num_layers=2,
        num_heads=2,
        mlp_width=12,
        attention_window=5,
        sequence_layer="attention",
    )
)
PROMPT = jnp.asarray(np.random.default_rng(0).integers(11, size=(2, 6)))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda p: 3 * p, MODEL.init(jax.random.key(0), PROMPT)["params"])


def frequencies(logits, **settings):
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: sample_token(key, jnp.log(logits)[None], **settings)[0])(keys)
    return np.bincount(drawn, minlength=len(logits)) / len(keys)


def test_draws_follow_the_distribution():
    probability = np.array([0.1, 0.5, 0.15, 0.25])
    close = {"atol": 0.03}
    np.testing.assert_allclose(frequencies(probability), probability, **close)
    sharper = probability**2 / (probability**2).sum()
    np.testing.assert_allclose(frequencies(probability, temperature=0.5), sharper, **close)
    # 0.5 + 0.25 falls short of 0.8, so the nucleus takes the third as well.
    nucleus = np.array([0, 0.5, 0.15, 0.25]) / 0.9
    np.testing.assert_allclose(frequencies(probability, top_p=0.8), nucleus, **close)
    np.testing.assert_array_equal(frequencies(probability, top_p=0.01), [0, 1, 0, 0])
    np.testing.assert_array_equal(frequencies(probability, temperature=0.0), [0, 1, 0, 0])
    # Ids that no token has are never drawn, whatever they are worth.
    few = {"vocab_size": 1}
    np.testing.assert_array_equal(frequencies(probability, **few), [1, 0, 0, 0])
    np.testing.assert_array_equal(frequencies(probability, temperature=0.0, **few), [1, 0, 0, 0])
    nucleus = np.array([0.1, 0.5, 0, 0]) / 0.6
    np.testing.assert_allclose(frequencies(probability, top_p=0.9, vocab_size=2), nucleus, **close)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p must lie in \(0, 1\]"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        sample_token(jax.random.key(0), jnp.zeros((1, 3)), **settings)


def test_greedy_decoding_is_what_the_whole_forward_pass_would_choose(params):
    seen = []
    made, _ = generate(
        MODEL,
        params,
        read(MODEL, params, PROMPT),
        jax.random.key(0),
        num_tokens=8,
        temperature=0.0,
        on_token=lambda token: seen.append(token.tolist()),
    )
    logits, _ = MODEL.apply({"params": params}, np.concatenate([PROMPT, made], axis=1))
    np.testing.assert_array_equal(made, np.argmax(logits[:, 5:-1], axis=-1))
    np.testing.assert_array_equal(np.transpose(seen), made)


def test_a_context_goes_on_from_call_to_call(params):
    def sample(context, tokens):
        return generate(MODEL, params, context, jax.random.key(1), num_tokens=tokens, temperature=0)

    whole, _ = sample(read(MODEL, params, PROMPT), 9)
    first, context = sample(read(MODEL, params, PROMPT), 4)
    second, _ = sample(context, 5)
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), whole)
    _, context = sample(read(MODEL, params, PROMPT[:, :2]), 0)
    rest, _ = sample(read(MODEL, params, PROMPT[:, 2:], context), 9)
    np.testing.assert_array_equal(rest, whole)


def test_the_key_decides(params):
    def sample(seed):
        context = read(MODEL, params, PROMPT)
        return generate(MODEL, params, context, jax.random.key(seed), num_tokens=8)[0]

    np.testing.assert_array_equal(sample(0), sample(0))
    assert (sample(0) != sample(1)).any()
    assert len(set(sample(0)[0])) > 1


def test_a_step_reuses_the_memory_of_the_context(params):
    context = read(MODEL, params, PROMPT)
    _, after = decode_step(MODEL, params, context, jax.random.key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(context))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, context)


def test_reading_nothing_is_refused(params):
    with pytest.raises(ValueError, match="tokens has length 0"):
        read(MODEL, params, PROMPT[:, :0])


def test_generation_ends_where_every_sequence_has_had_an_end(params):
    def sample(context, tokens, ends=()):
        return generate(
            MODEL,
            params,
            context,
            jax.random.key(1),
            num_tokens=tokens,
            temperature=0,
            end_ids=ends,
        )

    whole, _ = sample(read(MODEL, params, PROMPT), 9)
    first = [next(i for i, token in enumerate(row) if token == row[2]) for row in whole]
    ends = [int(row[2]) for row in whole]
    had = [np.flatnonzero(np.isin(row, ends))[0] for row in whole]
    made, context = sample(read(MODEL, params, PROMPT), 9, ends)
    assert made.shape[1] == max(had) + 1 <= max(first) + 1 < 9
    np.testing.assert_array_equal(made, whole[:, : made.shape[1]])
    # The context has read the end and nothing more.
    rest, _ = sample(context, 9 - made.shape[1])
    np.testing.assert_array_equal(rest, whole[:, made.shape[1] :])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "sequence_layer": "titans",
            "titans": {
                "adaptive": ("k",),
                "network": "matrix",
                "momentum": "none",
                "memory_chunk": 2,
                "generator_chunk": 4,
            },
        },
        {"in_context": {"chunks": (2,), "step_size": 1.0}},
    ],
    ids=["attention", "hope", "levels_in_context"],
)
def test_a_scan_draws_what_generate_draws(changes):
    model = LanguageModel(dataclasses.replace(MODEL.config, num_layers=1, **changes))
    params = jax.jit(model.init)(jax.random.key(0), PROMPT[:, :1])["params"]
    params = jax.tree.map(lambda p: 3 * p, params)
    settings = {"temperature": 0.7, "top_p": 0.95, "vocab_size": 9}
    key = jax.random.key(2)
    context = read(model, params, PROMPT)
    made, after = sample(model, params, context, key, num_tokens=7, **settings)
    expected, last = generate(model, params, context, key, num_tokens=7, **settings)
    assert made.dtype == jnp.int32
    np.testing.assert_array_equal(made, expected)
    assert len(np.unique(made)) > 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after, last)


def test_a_scan_begins_with_what_is_given(params):
    context = read(MODEL, params, PROMPT)
    lengths = np.arange(len(PROMPT)) % 2 * 3
    given = (np.asarray(PROMPT[:, :1]) + np.arange(5)) % MODEL.config.vocab_size
    made, _ = sample(
        MODEL,
        params,
        context,
        jax.random.key(0),
        num_tokens=5,
        temperature=0,
        given=jnp.asarray(given),
        given_length=jnp.asarray(lengths),
    )
    logits, _ = MODEL.apply({"params": params}, np.concatenate([PROMPT, made], axis=1))
    drawn = np.argmax(logits[:, PROMPT.shape[1] - 1 : -1], axis=-1)
    wanted = np.where(np.arange(5) < lengths[:, None], given, drawn)
    np.testing.assert_array_equal(made, wanted)
    assert (given != drawn)[lengths > 0, :3].any()


def test_a_scan_works_within_compiled_and_mapped_functions(params):
    scaled = jax.tree.map(lambda p: jnp.stack([p, 0.9 * p]), params)
    keys = jax.random.split(jax.random.key(3), 2)

    def both(params, key):
        context = read(MODEL, params, PROMPT)
        first, context = sample(MODEL, params, context, key, num_tokens=3)
        return first, sample(MODEL, params, context, key, num_tokens=2)[0]

    first, second = jax.jit(jax.vmap(both))(scaled, keys)
    assert first.shape == (2, 2, 3) and second.shape == (2, 2, 2)
    for row in range(2):
        one = jax.tree.map(lambda p, row=row: p[row], scaled)
        context = read(MODEL, one, PROMPT)
        for made, count in ((first, 3), (second, 2)):
            expected, context = generate(MODEL, one, context, keys[row], num_tokens=count)
            np.testing.assert_array_equal(made[row], expected)
