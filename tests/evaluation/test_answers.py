"""The score of positions and whole strings: an oracle, a constant guess, and cases worked by hand."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.data.examples import Examples
from hope_jax.evaluation.answers import (
    likeliest_classes,
    share_of_positions,
    share_of_strings,
    strings_right,
)
from hope_jax.evaluation.formal_languages import LANGUAGES, as_examples, make_sets
from hope_jax.models import LanguageModel, LanguageModelConfig
from tests.evaluation.definitions import MEANING, told

SMALL = dict(train=2, validation=2, test=30, bin0=(2, 8), bin1=(9, 12), length=40, long=3)


def test_a_string_counts_if_all_that_counts_is_right():
    tokens = np.arange(4)[:, None].repeat(3, 1)
    targets = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 0], [1, 2, 0]])
    weights = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0]])
    answers = np.array([[1, 2, 3], [1, 2, 9], [1, 2, 9], [9, 2, 0]])
    seen = []

    def predict(batch):
        seen.append(batch.shape)
        return answers[batch[:, 0]]

    for size, shapes in ((3, [(3, 3)] * 2), (4, [(4, 3)]), (50, [(4, 3)])):
        seen.clear()
        right = strings_right(predict, Examples(tokens, targets, weights), size)
        assert right.tolist() == [True, False, True, False]
        assert seen == shapes
    examples = Examples(tokens, targets, weights)
    assert share_of_strings(predict, examples) == 1 / 2
    assert share_of_positions(predict, examples) == 8 / 10


@pytest.mark.parametrize("name", LANGUAGES)
def test_an_oracle_scores_all_and_a_constant_what_is_constant(name):
    language, meaning = LANGUAGES[name], MEANING[name]
    sets = make_sets(language, 0, **SMALL)

    def oracle(batch):
        """The definition's answer after each symbol, of whatever a row is filled up with, too."""
        texts = ["".join(language.symbols[one] for one in ids) for ids in batch]
        place = lambda one: meaning.index(one) if one in meaning else 0
        return np.array([[place(one) for one in told(name, text)] for text in texts])

    for strings in sets.test.values():
        assert strings_right(oracle, as_examples(language, strings)).all()
    for guess, answer in enumerate(meaning):
        right = strings_right(
            lambda batch, guess=guess: np.full_like(batch, guess),
            as_examples(language, sets.test["Bin0"]),
        )
        wanted = [set(told(name, text)) == {answer} for text in sets.test["Bin0"]]
        assert right.tolist() == wanted
        assert any(wanted) == (name == "parity" and answer is True)  # such as 0000


def test_a_model_s_answer_is_the_class_of_its_largest_logit():
    config = LanguageModelConfig(
        vocab_size=4, width=8, num_layers=1, num_heads=2, mlp_width=8, sequence_layer="attention"
    )
    model = LanguageModel(config)
    tokens = np.array([[0, 1, 3], [2, 2, 1]])
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    logits, _ = jax.jit(model.apply)({"params": params}, tokens)
    wanted = [[max(range(4), key=lambda i: row[i]) for row in rows] for rows in np.asarray(logits)]
    np.testing.assert_array_equal(likeliest_classes(model)(params, tokens), wanted)
