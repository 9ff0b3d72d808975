"""MAD's strings, read by what each task means, and scored by an oracle and a guess."""

import numpy as np
import pytest

from hope_jax.evaluation.answers import share_of_positions
from hope_jax.evaluation.mad import BASELINES, NOISE, POINTS, TITLES, Point, make_sets

SMALL = [
    Point("recall", 16, 40, items=50),
    Point("recall", 9, 12, items=50),
    Point("noisy", 26, 40, items=50, noise=0.4),
    Point("fuzzy", 12, 60, items=50),
    Point("copying", 10, 30, items=50, copied=8),
    Point("memorisation", 40, 12, items=50),
    Point("compression", 9, 12, items=50),
]


def pairs_of(point, tokens):
    """Keys and values of a string of a recall task, noise and padding left out, in order."""
    keys = (point.vocabulary - (NOISE if point.noise else point.task == "fuzzy")) // 2
    noise = point.vocabulary - NOISE if point.noise else point.vocabulary
    pairs, place = [], 0
    tokens = tokens.tolist()
    while place < len(tokens):
        if point.task == "fuzzy" and tokens[place] == point.vocabulary - 1:
            place += 1
        elif tokens[place] >= noise:
            assert place % 2 == 0 and tokens[place + 1] >= noise
            place += 2
        else:
            begin = place
            while tokens[place] < keys:
                place += 1
            middle = place
            while place < len(tokens) and keys <= tokens[place] < noise - (point.task == "fuzzy"):
                place += 1
            assert begin < middle < place
            pairs.append((begin, tuple(tokens[begin:middle]), tuple(tokens[middle:place])))
    return pairs


def whole(examples):
    """Strings with their last token, which is only told."""
    return np.concatenate([examples.tokens, examples.targets[:, -1:]], axis=1)


@pytest.mark.parametrize("point", SMALL[:4])
def test_recall_asks_for_what_keys_have_had_before(point):
    sets = make_sets(point, 0, validation=3, test=40)
    assert len(sets.train.tokens) == 50 and len(sets.validation.tokens) == 3
    np.testing.assert_array_equal(whole(sets.train)[:, 1:], sets.train.targets)
    assert sets.train.weights.all()
    differs, repeated = set(), 0
    for tokens, weights in zip(whole(sets.test), sets.test.weights, strict=True):
        assert len(tokens) == point.length + (point.task == "fuzzy")
        value_of, counted = {}, np.zeros(len(tokens), bool)
        pairs = pairs_of(point, tokens)
        for begin, key, value in pairs:
            if key in value_of:
                assert value_of[key] == value
                counted[begin + len(key) : begin + len(key) + len(value)] = True
                repeated += 1
            value_of[key] = value
            if point.task == "fuzzy":
                assert len(key) == 3 and len(value) <= 3
            else:
                assert len(key) == len(value) == 1
        assert pairs[-1][1] in [key for _, key, _ in pairs[:-1]]
        np.testing.assert_array_equal(weights, counted[1:])
        differs.add(tuple(sorted(value_of.items())))
    assert len(differs) > 30  # the map is drawn anew
    assert repeated > 40
    if point.task == "fuzzy":
        sizes = {len(key) for tokens in whole(sets.train) for _, key, _ in pairs_of(point, tokens)}
        assert sizes == {1, 2, 3}
    if point.noise:
        share = (whole(sets.train) >= point.vocabulary - NOISE).mean()
        assert abs(share - point.noise) < 0.06


def test_what_is_copied_lies_in_order_before_the_sign():
    point = SMALL[4]
    sets = make_sets(point, 0, validation=3, test=40)
    before = set()
    for examples in sets:
        for tokens, targets, weights in zip(*examples, strict=True):
            sign = tokens.tolist().index(9)
            assert sign == 21 and (tokens[sign + 1 :] == 8).all()
            wanted = [token for token in tokens[:sign] if token != 8]
            assert len(wanted) == 8 and targets[weights > 0].tolist() == wanted
            assert weights.tolist() == [0] * 22 + [1] * 8
            before |= set(np.flatnonzero(tokens[:sign] != 8))
    assert before == set(range(21))


def test_what_is_memorised_is_the_same_in_training_and_test():
    sets = make_sets(SMALL[5], 0, validation=3, test=40)
    value_of = {}
    for examples in sets:
        for tokens, targets, weights in zip(*examples, strict=True):
            assert (tokens[1::2] == 39).all() and weights.tolist() == [0, 1] * 6
            for key, value in zip(tokens[::2].tolist(), targets[1::2].tolist(), strict=True):
                assert value_of.setdefault(key, value) == value
    assert set(value_of) == set(range(19))
    assert len(set(value_of.values())) == 19 and set(value_of.values()) <= set(range(19, 39))


def test_what_is_compressed_is_all_told_and_the_sign_comes_last():
    sets = make_sets(SMALL[6], 0, validation=3, test=40)
    for examples in sets:
        assert examples.tokens.shape[1] == 12 and examples.weights.all()
        np.testing.assert_array_equal(examples.tokens, examples.targets)
        assert (examples.tokens[:, -1] == 8).all()
    assert set(sets.train.tokens[:, :-1].ravel()) == set(range(8))


@pytest.mark.parametrize("point", SMALL)
def test_seeds_say_all_and_no_test_string_is_trained_on(point):
    one, same, other = (make_sets(point, seed, validation=20, test=20) for seed in (0, 0, 1))
    for mine, again, theirs in zip(one, same, other, strict=True):
        np.testing.assert_array_equal(mine.tokens, again.tokens)
        assert (mine.tokens != theirs.tokens).any()
    trained = {row.tobytes() for row in one.train.tokens}
    assert not trained & {row.tobytes() for row in one.test.tokens}
    assert not trained & {row.tobytes() for row in one.validation.tokens}


@pytest.mark.parametrize("point", SMALL)
def test_an_oracle_scores_all_and_a_guess_its_chance(point):
    test = make_sets(point, 0, validation=1, test=300).test
    answers = {tokens.tobytes(): targets for tokens, targets, _ in zip(*test, strict=True)}
    assert (
        share_of_positions(lambda batch: [answers.get(row.tobytes(), row) for row in batch], test)
        == 1
    )
    kept = {"noisy": NOISE, "fuzzy": 1, "copying": 2, "memorisation": 1, "compression": 1}
    values = point.vocabulary - kept.get(point.task, 0)
    low, chance = 0, 1 / values
    if point.task == "compression":
        sign = share_of_positions(lambda batch: np.full_like(batch, values), test)
        assert sign == pytest.approx(1 / point.length)
        chance *= 1 - 1 / point.length
    elif point.task != "copying":
        low, chance = values // 2, 1 / (values - values // 2)
    guess = share_of_positions(lambda batch: np.full_like(batch, low + 1), test)
    assert abs(guess - chance) < 0.05


def test_points_are_the_benchmark_s():
    assert BASELINES == ("recall", "fuzzy", "noisy", "copying", "memorisation", "compression")
    assert len(POINTS) == 6 + 10 + 10 + 13 + 12 + 5 + 10
    assert POINTS["compression"] == Point("compression", 16, 32, 12_800)
    assert POINTS["compression/length=256"].vocabulary == 16
    assert POINTS["noisy"] == Point("noisy", 32, 128, 12_800, 0.2, 0)
    assert POINTS["recall/length=512"] == Point("recall", 16, 512, 12_800)
    assert POINTS["copying/copied=96"].length == 256
    assert TITLES["fuzzy/items=800"] == "fuzzy recall"


@pytest.mark.parametrize(
    ("point", "said"),
    [
        (
            Point("noisy", 17, 40, noise=0.1),
            "vocabulary of 17 is too small for noisy; give it at least 18",
        ),
        (Point("recall", 16, 41), "length 41 of recall must be 4 or more, and even"),
        (Point("copying", 16, 32, copied=16), "length 32 of copying must be 33 or more"),
        (Point("compression", 2, 8), "too small for compression; give it at least 3"),
        (Point("fuzzy", 12, 17), "length 17 of fuzzy must be 18 or more"),
    ],
)
def test_sizes_that_hold_nothing_are_refused(point, said):
    with pytest.raises(ValueError, match=said):
        make_sets(point, 0, validation=1, test=1)
