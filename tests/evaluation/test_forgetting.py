"""Metrics of learning in stages, on matrices worked out by hand, and chrF beside sacreBLEU."""

import math

import numpy as np
import pytest
from sacrebleu.metrics import CHRF

from hope_jax.evaluation.chrf import chrf
from hope_jax.evaluation.forgetting import averages, forgetting, forward_transfer

NOT = math.nan
SCORES = np.array(
    [
        [0.10, 0.20, 0.30],
        [0.90, 0.25, NOT],
        [0.95, 0.80, 0.50],
        [0.60, 0.70, 0.90],
    ]
)


def test_the_average_is_of_the_stages_so_far():
    np.testing.assert_allclose(averages(SCORES), [0.90, (0.95 + 0.80) / 2, 2.20 / 3])


def test_what_is_forgotten_is_the_best_since_it_was_seen_less_the_end():
    # 0.95 - 0.60 of the first stage, 0.80 - 0.70 of the second; 0.99 before it was seen is no matter.
    scores = SCORES.copy()
    scores[0, 1] = scores[1, 1] = 0.99
    assert forgetting(scores) == pytest.approx((0.35 + 0.10) / 2)
    gained = np.array([[0, 0], [0.5, 0.0], [0.7, 0.9]])
    assert forgetting(gained) == pytest.approx(-0.2)


def test_forward_transfer_is_what_earlier_stages_give_a_later_one():
    assert forward_transfer(SCORES) == pytest.approx(((0.25 - 0.20) + (0.50 - 0.30)) / 2)


def test_one_stage_has_nothing_to_forget():
    one = np.array([[0.1], [0.8]])
    assert averages(one).tolist() == [0.8]
    assert math.isnan(forgetting(one)) and math.isnan(forward_transfer(one))
    with pytest.raises(ValueError, match=r"shape \(2, 2\) must have a row for each stage"):
        averages(np.zeros((2, 2)))


def test_chrf_of_a_case_by_hand():
    # "abc" for "abd": of 3 letters 2, of 2 pairs 1, of 1 triple none, either way.
    assert chrf("abc", "abd") == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    # "ab" for "abcd": precision 1 and 1, recall 2 of 4 and 1 of 3; recall counts twice.
    recall = (2 / 4 + 1 / 3) / 2
    assert chrf("a b", "abcd") == pytest.approx(5 * recall / (4 + recall))
    assert chrf("", "abcd") == chrf("xy", "abcd") == 0


def test_chrf_is_sacrebleu_s():
    random = np.random.default_rng(0)
    theirs = CHRF()
    for _ in range(50):
        said, answer = (
            "".join(random.choice(list("abc "), size=random.integers(6, 20))) for _ in range(2)
        )
        if min(len(text.replace(" ", "")) for text in (said, answer)) >= 6:
            wanted = theirs.sentence_score(said, [answer]).score / 100
            assert chrf(said, answer) == pytest.approx(wanted, abs=1e-6), (said, answer)
