"""Likelihoods of answers against those of each text alone, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.data.tokenizers import ByteTokenizer
from hope_jax.evaluation.choices import log_likelihoods, share_won
from hope_jax.inference.sampling import read
from hope_jax.models import LanguageModel, LanguageModelConfig

MODEL = LanguageModel(
    LanguageModelConfig(
        vocab_size=128,
        width=8,
        num_layers=1,
        num_heads=1,
        mlp_width=8,
        sequence_layer="attention",
        attention_window=9,
        in_context={"chunks": (4,), "step_size": 1.0},
    )
)
PROMPTS = ["where?", "who is it?"]
ANSWERS = [["here", "far off"], ["me", "you"]]


def ids(text):
    return jnp.asarray(ByteTokenizer().encode(text))[None]


@pytest.fixture(scope="module")
def params():
    params = jax.jit(MODEL.init)(jax.random.key(0), ids("a"))["params"]
    return jax.tree.map(lambda p: 4 * p, params)


def read_on(params, text, context=None):
    """Reads byte by byte, so that there are two programs in all."""
    for token in ids(text)[0]:
        context = read(MODEL, params, token[None, None], context)
    return context


@pytest.mark.parametrize("before", [None, "read before"])
def test_likelihoods_are_those_of_each_answer_alone(params, before):
    context = None if before is None else read_on(params, before)
    state = None if context is None else context.state
    made = log_likelihoods(MODEL, params, ByteTokenizer(), PROMPTS, ANSWERS, state, batch_size=3)
    expected = np.zeros((2, 2))
    for row, place in np.ndindex(2, 2):
        after = read_on(params, PROMPTS[row], context)
        for letter in ANSWERS[row][place]:
            log_probability = jax.nn.log_softmax(after.logits)[0, ord(letter)]
            expected[row, place] += log_probability
            after = read_on(params, letter, after)
    np.testing.assert_allclose(made, expected, rtol=1e-4)
    assert share_won(made) == np.mean(expected[:, 0] > expected[:, 1])


@pytest.mark.parametrize(
    ("prompts", "answers", "message"),
    [
        (["a"], [["b"], ["c"]], "each prompt needs answers, and as many as every other"),
        (["a", "b"], [["b"], ["c", "d"]], "each prompt needs answers, and as many as every other"),
        (["a"], [[""]], "prompt 'a' or answer '' has no token"),
        ([""], [["a"]], "prompt '' or answer 'a' has no token"),
    ],
)
def test_texts_without_a_token_are_refused(params, prompts, answers, message):
    with pytest.raises(ValueError, match=message):
        log_likelihoods(MODEL, params, ByteTokenizer(), prompts, answers)
