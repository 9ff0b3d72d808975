"""Needles: each stands once where it should, and what is asked for can be read off the text."""

import itertools
import re

import numpy as np
import pytest

from hope_jax.data.tokenizers import ByteTokenizer
from hope_jax.evaluation.haystack import generated, noise, sentences_of
from hope_jax.evaluation.needles import KINDS, make_needles
from hope_jax.evaluation.probes import documents
from hope_jax.evaluation.questions import Hidden, Item, lay_out

NEEDLE = re.compile(r"One of the special magic (number|uuid)s for (\S+) is: (\S+)\.")
ASKED = re.compile(r"special magic \w+ for (\S+) mentioned|special magic \w+s for (.+?) mentioned")
PROSE = "It was cold. Was it?\nIt was, said the old man! And so it stayed\n\nuntil spring."


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("prose", [None, PROSE])
def test_what_is_asked_for_is_what_the_text_says_of_the_key(name, prose):
    kind = KINDS[name]
    for seed, depth in itertools.product(range(3), (0.0, 0.5, 1.0)):
        random = np.random.default_rng(seed)
        item, haystack = make_needles(name, random, depth, prose)
        ids = lay_out(item, haystack, ByteTokenizer(), 4000)
        assert ids.shape == (4000,)
        text = ByteTokenizer().decode(ids)
        assert text.startswith(item.preface) and text.endswith(item.question)
        found = NEEDLE.findall(text)
        values: dict[str, list[str]] = {}
        for what, key, value in found:
            assert what == kind.value
            values.setdefault(key, []).append(value)
        assert len({value for _, _, value in found}) == len(found)
        assert {len(of_key) for of_key in values.values()} == {kind.values}
        (asked,) = {one or several for one, several in ASKED.findall(item.question)}
        keys = asked.replace(", and ", ", ").split(", ")
        assert len(keys) == kind.asked
        assert sorted(item.answers) == sorted(value for key in keys for value in values[key])
        if kind.haystack == "needles":
            assert len(values) > 15
            rest = NEEDLE.sub("", text[len(item.preface) : -len(item.question)])
            assert len(rest.replace(" ", "")) < 120  # but for the part that was cut
        else:
            assert len(values) == kind.keys
        assert all(re.fullmatch(r"\d{7}|[0-9a-f-]{36}", value) for _, _, value in found)
        if len(item.answers) == 1:
            place = text.index(f"{keys[0]} is: {item.answers[0]}") / len(text)
            assert abs(place - depth) < 0.16


def test_a_text_that_is_given_is_hidden_in_and_goes_round():
    assert list(itertools.islice(sentences_of(PROSE, 6), 5)) == [
        " Was it?",
        " It was, said the old man!",
        " And so it stayed",
        " until spring.",
        " It was cold.",
    ]
    with pytest.raises(ValueError, match="no words"):
        sentences_of(" \n ")
    assert len(set(itertools.islice(noise(), 20))) == 5
    drawn = list(itertools.islice(generated(np.random.default_rng(0)), 500))
    assert len(set(drawn)) == 500
    assert all(re.fullmatch(r" The \w+ \w+ \w+ an? [a-z ]+\.", one) for one in drawn)


class Words:
    """A tokenizer of words, with an id in front."""

    before = (1,)

    def encode(self, text):
        return np.array([2 + len(word) for word in text.split()], np.int32)


def test_ids_are_as_many_as_wanted_and_hidden_sentences_lie_at_their_depths():
    item = Item(
        "a bb", (Hidden(" cccccccc", 1.0), Hidden(" ddddddddd", 0.0)), " eeeeeeeeee", ("x",)
    )
    haystack = itertools.cycle([" fff ffff fffff", " ffffff"])
    ids = lay_out(item, haystack, Words(), 14)
    for length in range(7, 30):  # sentences of three words and of one, cut at the front
        cut = lay_out(item, itertools.cycle([" fff ffff fffff", " ffffff"]), Words(), length)
        assert len(cut) == length and cut[-1] == 12
    assert len(ids) == 14 and ids[:3].tolist() == [1, 3, 4] and ids[-1] == 12
    assert ids[-2] == 10  # the end
    whole = lay_out(item, itertools.cycle([" fff"]), Words(), 12)
    assert whole.tolist() == [1, 3, 4, 5, 11, 5, 5, 5, 5, 5, 10, 12]
    with pytest.raises(
        ValueError, match="6 tokens is too small: question and what is hidden take 6"
    ):
        lay_out(item, haystack, Words(), 6)


def test_documents_hold_their_answers_and_follow_their_seed():
    one, same, other = (
        list(documents("needles", 20, lengths=(700, 900), kinds=kinds, seed=seed))
        for kinds, seed in ((("S-1", "MV"), 0), ("S-1,MV", 0), ("S-1,MV", 1))
    )
    assert len(next(documents(lengths=800))) > 800
    with pytest.raises(ValueError, match="kinds has 'S'; there are S-1"):
        next(documents(kinds=("S",)))
    with pytest.raises(ValueError, match="probe='needle' is none; there are needles, facts"):
        next(documents("needle"))
    assert one == same and not set(one) & set(other)
    lengths = set()
    for text in one:
        body, answer = re.fullmatch(
            r"(.*) (?:is|are) (\S+(?:, \S+)*)\.\n", text, re.DOTALL
        ).groups()
        found = [value for _, _, value in NEEDLE.findall(body)]
        assert sorted(answer.split(", ")) == sorted(found)
        lengths.add(round(len(body), -2))
    assert lengths == {700, 900}
