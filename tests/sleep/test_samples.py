"""What is said behind openings of unequal length, and what of it counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.inference.sampling import Context, read
from hope_jax.models import LanguageModel
from hope_jax.sleep import seeding
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.expansion import make_room
from hope_jax.sleep.readers import axes, readers_of
from hope_jax.sleep.samples import Samples, mean_of, openings_of, say
from tests.sleep.reader import CONFIG, TEXT, VOCAB, assert_same, made

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

    def imitate(model, params, student, original, starts, first, *_):
        assert first == 0
        starts_of.append(np.asarray(starts))
        place = np.arange(9)
        return jnp.where(place < starts[:, None], original, (original + 1) % VOCAB)

    monkeypatch.setattr(seeding, "_imitate", imitate)
    settings = SleepConfig(tokens=tokens, continuations=2, lam=0.5, a=0.5)
    for number in range(40):
        keys = jax.random.split(jax.random.key(number))
        said = seeding._imitated(None, None, None, original, 0, keys, settings, None)
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


def test_what_all_prefixes_have_is_read_at_once_and_gives_the_same():
    model, params, _ = made()
    loud = params | {"embedding": 1e3 * params["embedding"]}  # so that nothing is left to chance
    original = RANDOM.integers(VOCAB, size=(3, 8))
    context = read(model, loud, TEXT[:1])
    room = make_room(model, context.state, 2, 3)
    reader = readers_of(Context(room, context.logits))

    def imitations(first):
        one = lambda reader: seeding._imitate(
            model, loud, reader, original, jnp.array([4, 5, 7]), first, jax.random.key(0), None
        )
        return jax.jit(jax.vmap(one, in_axes=(axes(model),)))(reader)[0]

    at_once = imitations(4)
    np.testing.assert_array_equal(at_once, imitations(0))
    for row, ours, start in zip(original, at_once, (4, 5, 7), strict=True):
        np.testing.assert_array_equal(ours[:start], row[:start])
    assert (at_once != original).any()


def test_kept_samples_are_taken_in_turn():
    number = jnp.arange(10)
    kept = seeding.Kept(Samples(number[:, None], number, number + 1), number, number)
    taken = [seeding._in_turn(kept, jnp.asarray(step), 4) for step in range(6)]
    for of in (lambda kept: kept.samples.start, lambda kept: kept.taught, lambda kept: kept.below):
        assert np.ravel(list(map(of, taken))).tolist() == [number % 10 for number in range(24)]
    late = seeding._in_turn(kept, jnp.asarray(2**31 - 1), 4)  # no product outgrows its integers
    np.testing.assert_array_equal(late.taught, (4 * (2**31 - 1) + np.arange(4)) % 10)


def test_the_mean_is_of_what_counts():
    values, counted = jnp.array([1.0, 2.0, 6.0]), jnp.array([True, False, True])
    assert float(mean_of(values, counted)) == 3.5
    assert float(mean_of(values, jnp.zeros(3, bool))) == 0
