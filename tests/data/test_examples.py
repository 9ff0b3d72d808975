"""Padded examples and their batches."""

import itertools

import numpy as np
import pytest

from hope_jax.data.examples import Examples, pad_examples, shuffled_batches


def test_strings_lie_left_and_only_their_positions_count():
    examples = pad_examples(
        [np.array([5, 6, 7]), np.array([8])], [np.array([1, 2, 3]), np.array([4])], 4
    )
    np.testing.assert_array_equal(examples.tokens, [[5, 6, 7, 0], [8, 0, 0, 0]])
    np.testing.assert_array_equal(examples.targets, [[1, 2, 3, 0], [4, 0, 0, 0]])
    np.testing.assert_array_equal(examples.weights, [[1, 1, 1, 0], [1, 0, 0, 0]])
    assert pad_examples([[1, 2]], [[1, 2]]).tokens.shape == (1, 2)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a string of 3 tokens, longer than length=2"):
        pad_examples([[1, 2, 3]], [[1, 2, 3]], 2)
    with pytest.raises(ValueError, match="string 1 has 2 tokens and 1 classes"):
        pad_examples([[1], [1, 2]], [[1], [1]])


def test_each_pass_has_every_example_once_in_an_order_of_its_own():
    examples = Examples(np.arange(7)[:, None], np.arange(7)[:, None] + 10, np.ones((7, 1)))
    batches = list(itertools.islice(shuffled_batches(examples, 2, seed=3), 7))
    rows = np.concatenate([batch["tokens"][:, 0] for batch in batches])
    assert sorted(rows[:7]) == sorted(rows[7:]) == list(range(7))  # the left-over row comes first
    assert rows[:7].tolist() != rows[7:].tolist()
    for batch in batches:
        np.testing.assert_array_equal(batch["targets"], batch["tokens"] + 10)
        assert set(batch) == {"tokens", "targets", "weights"}
    again = next(shuffled_batches(examples, 7, seed=3))["tokens"][:, 0]
    np.testing.assert_array_equal(again, rows[:7])
    assert next(shuffled_batches(examples, 7, seed=4))["tokens"][:, 0].tolist() != again.tolist()
    assert len(next(shuffled_batches(examples, 20, seed=0))["tokens"]) == 20
