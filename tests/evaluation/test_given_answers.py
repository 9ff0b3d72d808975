"""The mean log-probability of answers against that of each alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.data.tokenizers import ByteTokenizer
from hope_jax.evaluation.choices import log_likelihoods
from hope_jax.evaluation.given_answers import answers_of, mean_log_probability
from tests.evaluation.test_choices import MODEL

PROMPTS, ANSWERS = ["where?", "who is it?", "when?"], ["far off", "me", "now"]


def test_it_is_the_mean_of_each_alone_whatever_the_batches():
    tokenizer = ByteTokenizer()
    text = jnp.asarray(tokenizer.encode("read before"))[None]
    params = jax.tree.map(lambda p: 4 * p, jax.jit(MODEL.init)(jax.random.key(0), text)["params"])
    _, state = jax.jit(MODEL.apply)({"params": params}, text)
    each = log_likelihoods(MODEL, params, tokenizer, PROMPTS, [[one] for one in ANSWERS], state)
    batches = answers_of(tokenizer, PROMPTS, ANSWERS, batch_size=2)
    assert batches.tokens.shape[:2] == (2, 2)
    made = jax.jit(lambda rows: mean_log_probability(rows, MODEL, params, state))(batches)
    np.testing.assert_allclose(made, each.mean(), rtol=1e-4)


def test_what_is_told_lies_behind_opening_and_prompt():
    rows = answers_of(ByteTokenizer(), PROMPTS, ANSWERS, [10])
    assert rows.tokens.shape == (1, 3, len("\nwhere?far off"))
    for tokens, told, prompt, answer in zip(
        rows.tokens[0], rows.told[0], PROMPTS, ANSWERS, strict=True
    ):
        assert bytes(tokens.astype(np.uint8)).startswith(f"\n{prompt}{answer}".encode())
        assert bytes(tokens[told].astype(np.uint8)) == answer.encode()
    assert answers_of(ByteTokenizer(), PROMPTS * 9, ANSWERS * 9).tokens.shape[:2] == (2, 16)


@pytest.mark.parametrize(
    "prompts, answers, said", [([], [], "there is no question"), (["a"], [""], "has no token")]
)
def test_nothing_to_ask_is_refused(prompts, answers, said):
    with pytest.raises(ValueError, match=said):
        answers_of(ByteTokenizer(), prompts, answers)
