"""What is said behind openings of unequal length, and what of it counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.inference.sampling import read
from hope_jax.models import LanguageModel
from hope_jax.sleep import seeding
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.samples import Samples, mean_of, openings_of, say
from tests.sleep.reader import CONFIG, VOCAB, assert_same

RANDOM = np.random.default_rng(3)
PLAIN = dataclasses.replace(CONFIG, num_layers=1, cms_levels=1, in_context=None)
ROWS, LENGTHS = RANDOM.integers(VOCAB, size=(3, 5)), np.array([5, 2, 5])


def test_openings_of_equal_length_have_no_rest():
    whole = openings_of(ROWS)
    assert whole.first.shape == (3, 5) and whole.rest.shape == (3, 0)
    assert_same(openings_of(ROWS, np.array([5, 5, 5])), whole)
    assert_same(openings_of(ROWS, np.array([3, 3, 3])), openings_of(ROWS[:, :3]))
    for lengths in ([5, 5], [5, 6, 1], [5, 0, 1]):
        with pytest.raises(ValueError, match=r"prompt_lengths=\[.* must hold a number from 1 to 5"):
            openings_of(ROWS, np.array(lengths))
    with pytest.raises(ValueError, match="there must be one"):
        openings_of(ROWS[:0])


def test_what_is_said_behind_an_opening_is_what_it_alone_is_followed_by():
    model, nothing = LanguageModel(PLAIN), np.full((8, 3), 1)
    params = jax.jit(model.init)(jax.random.key(0), nothing)["params"]
    context = read(model, params, nothing)
    greedy = dict(num_tokens=4, temperature=0.0, top_p=1.0, vocab_size=None)
    said = say(model, params, context, jax.random.key(1), openings_of(ROWS, LENGTHS), **greedy)
    assert said.tokens.shape == (8, 9)
    assert set(said.start.tolist()) == {2, 5}
    np.testing.assert_array_equal(said.end, said.start + 4)
    for row, length in zip(ROWS, LENGTHS, strict=True):
        alone = say(
            model, params, context, jax.random.key(2), openings_of(row[None, :length]), **greedy
        )
        np.testing.assert_array_equal(alone.tokens[:, :length], np.tile(row[:length], (8, 1)))
        np.testing.assert_array_equal(
            alone.spoken, np.arange(length + 4) >= np.full((8, 1), length)
        )
        same = (said.tokens[:, :length] == row[:length]).all(1)
        assert same.any()
        for number in np.flatnonzero((said.start == length) & same):
            np.testing.assert_array_equal(said.tokens[number, : length + 4], alone.tokens[0])
            np.testing.assert_array_equal(
                said.spoken[number], [0] * length + [1] * 4 + [0] * (5 - length)
            )


def test_what_counts_in_a_step_follows_each_row_s_own_opening(monkeypatch):
    """Imitations begin behind the opening, and are compared and counted to where the sample ends."""
    length, starts_of = np.array([0, 3, 5]), []
    size, tokens = len(length), 4
    original = Samples(
        jnp.asarray(RANDOM.integers(VOCAB, size=(size, 9))),
        jnp.asarray(length),
        jnp.asarray(length + tokens),
    )

    def imitate(model, params, student, original, starts, *_):
        starts_of.append(np.asarray(starts))
        place = np.arange(9)
        return jnp.where(place < starts[:, None], original, (original + 1) % VOCAB)

    monkeypatch.setattr(seeding, "_teach", lambda *_: original)
    monkeypatch.setattr(seeding, "_imitate", imitate)
    settings = SleepConfig(tokens=tokens, continuations=2, lam=0.5, a=0.5)
    for number in range(40):
        said = seeding._speak(*[None] * 4, jax.random.key(number), settings, None, None)
        starts, ends = starts_of[-1], np.repeat(length + tokens, 2)
        place = np.arange(9)
        np.testing.assert_array_equal(said.counted[:size], original.spoken)
        np.testing.assert_array_equal(
            said.counted[size:], (place >= starts[:, None]) & (place < ends[:, None])
        )
        # Every token from the start to the end is another.
        wrong = ends - starts
        near = said.rewards.reshape(-1)
        assert (near <= 1 - 1 / ends).all() and (near >= 1 - wrong / ends - 1e-6).all()
    starts = np.array(starts_of)[:, ::2]
    np.testing.assert_array_equal(starts.min(0), np.maximum(length, 1))
    np.testing.assert_array_equal(starts.max(0), length + tokens - 1)


def test_the_mean_is_of_what_counts():
    values, counted = jnp.array([1.0, 2.0, 6.0]), jnp.array([True, False, True])
    assert float(mean_of(values, counted)) == 3.5
    assert float(mean_of(values, jnp.zeros(3, bool))) == 0
