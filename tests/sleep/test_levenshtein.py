"""Edit distances against a table that is filled in cell by cell."""

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.sleep.levenshtein import levenshtein


def slow_levenshtein(first, second):
    table = np.zeros((len(first) + 1, len(second) + 1), int)
    table[:, 0], table[0] = np.arange(len(first) + 1), np.arange(len(second) + 1)
    for i, token in enumerate(first, 1):
        for j, other in enumerate(second, 1):
            table[i, j] = min(
                table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (token != other)
            )
    return table[-1, -1]


def test_distances_are_those_of_the_table():
    random = np.random.default_rng(0)
    batch = 60
    first, second = random.integers(3, size=(batch, 9)), random.integers(3, size=(batch, 6))
    second[:20] = first[:20, 2:8]
    lengths = random.integers(10, size=batch), random.integers(7, size=batch)
    lengths[0][:2], lengths[1][:2] = (0, 9), (6, 0)
    expected = [
        slow_levenshtein(row[:n], other[:m])
        for row, other, n, m in zip(first, second, *lengths, strict=True)
    ]
    for distances in (levenshtein, jax.jit(levenshtein)):
        made = distances(first, second, *lengths)
        assert made.dtype == jnp.int32
        np.testing.assert_array_equal(made, expected)
        np.testing.assert_array_equal(distances(second, first, *lengths[::-1]), expected)
    whole = [slow_levenshtein(*pair) for pair in zip(first, second, strict=True)]
    np.testing.assert_array_equal(levenshtein(first, second), whole)


def test_what_lies_beyond_the_lengths_does_not_count():
    first, second = jnp.array([[1, 2, 9, 9]]), jnp.array([[1, 2, 7]])
    assert levenshtein(first, second, jnp.array([2]), 2).tolist() == [0]


def test_nothing_is_as_far_from_a_sequence_as_that_is_long():
    nothing, some = jnp.zeros((2, 0), jnp.int32), jnp.ones((2, 5), jnp.int32)
    assert levenshtein(nothing, some).tolist() == levenshtein(some, nothing).tolist() == [5, 5]
    assert levenshtein(nothing, nothing).tolist() == [0, 0]
