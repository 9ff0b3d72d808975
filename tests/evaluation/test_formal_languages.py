"""Strings of formal languages against the languages' definitions."""

import collections
import random

import numpy as np
import pytest

from hope_jax.evaluation.formal_languages import (
    LANGUAGES,
    VOCABULARY,
    as_examples,
    draw_strings,
    make_sets,
    read_sets,
    read_strings,
)
from tests.evaluation.definitions import MEANING, all_strings, contains, told

SMALL = dict(train=120, validation=20, test=40, bin0=(2, 12), bin1=(13, 20), length=66, long=5)
MANY = [name for name, language in LANGUAGES.items() if language.many]
EACH = pytest.mark.parametrize("name", LANGUAGES)


def every_string(sets):
    return [*sets.train, *sum(sets.validation.values(), []), *sum(sets.test.values(), [])]


@EACH
def test_every_string_is_one_of_the_language_and_of_its_bin(name):
    language, sets = LANGUAGES[name], make_sets(LANGUAGES[name], 0, **SMALL)
    assert all(contains(name, text) for text in every_string(sets))
    for part, (least, most) in (
        (sets.train, (2, 12)),
        (sets.validation["Bin0"], (2, 12)),
        (sets.test["Bin0"], (2, 12)),
        (sets.validation["Bin1"], (13, 20)),
        (sets.test["Bin1"], (13, 20)),
    ):
        sizes = {len(text) // language.letters for text in part}
        assert sizes and sizes <= set(range(least, most + 1))
    far = {"abab-star": 64}.get(name, 66)
    assert list(sets.test) == ["Bin0", "Bin1", "66"]
    assert {len(text) for text in sets.test["66"]} == {far}
    counts = {part: len(texts) for part, texts in sets.test.items()}
    if name in MANY:
        assert counts == {"Bin0": 40, "Bin1": 40, "66": 5}
        assert {len(texts) for texts in sets.validation.values()} == {20}
    else:
        assert counts["66"] == 1
    assert len(sets.train) == 120


@EACH
def test_classes_are_what_the_definition_tells(name):
    language, sets = LANGUAGES[name], make_sets(LANGUAGES[name], 1, **SMALL)
    texts = [*dict.fromkeys(every_string(sets))]
    examples = as_examples(language, texts)
    assert examples.targets.max() < len(language.marks) <= VOCABULARY
    assert examples.tokens.max() < len(language.symbols) <= VOCABULARY
    assert len(MEANING[name]) == len(language.marks)
    for text, ids, classes, weights in zip(texts, *examples, strict=True):
        count = int(weights.sum())
        assert "".join(language.symbols[one] for one in ids[:count]) == text
        assert [MEANING[name][one] for one in classes[:count]] == told(name, text)


def test_the_spec_s_examples():
    def classes(name, text):
        return "".join(map(str, as_examples(LANGUAGES[name], [text]).targets[0]))

    assert classes("parity", "0110100") == "1011000"
    assert classes("aa-star", "aaaa") == "0101"
    assert classes("abab-star", "abababab") == "00010001"
    assert classes("counter-2", "aaabbb") == "000112"  # a or b, three times; b, b, the end
    assert classes("counter-3", "aabbcc") == "001223"
    assert classes("shuffle-2", "([)[]]()") == "13222010"


@pytest.mark.parametrize(("name", "size"), [("parity", 5), ("shuffle-2", 4)])
def test_all_strings_of_a_size_are_drawn(name, size):
    language = LANGUAGES[name]
    wanted = all_strings(name, language.symbols, size)
    found = draw_strings(language, [size], len(wanted), np.random.default_rng(0))
    assert set(found) == wanted
    with pytest.raises(ValueError, match=f"{name} has fewer than .* of sizes {size} to {size}"):
        draw_strings(language, [size], len(wanted) + 1, np.random.default_rng(0))


def test_brackets_interleave_and_follow_the_grammar():
    def word(left):
        """S -> (S), SS or nothing, cut off where it grows beyond what is looked at."""
        rule = random.random()
        if rule >= 0.75 or left < 0:
            return "" if left >= 0 else "x"
        return f"({word(left - 1)})" if rule < 0.5 else word(left) + word(left)

    random.seed(0)
    grammar = collections.Counter(
        text for text in (word(3) for _ in range(40_000)) if len(text) == 6
    )
    grammar = {text: count for text, count in grammar.items() if contains("shuffle-2", text)}
    source = np.random.default_rng(0)
    drawn = collections.Counter(LANGUAGES["shuffle-2"].draw(source, 6) for _ in range(20_000))
    # Of one kind alone, where nothing is interleaved.
    ours = {text: count for text, count in drawn.items() if set(text) == set("()")}
    assert set(ours) == set(grammar) and len(ours) == 5
    for text, count in ours.items():
        share = grammar[text] / sum(grammar.values())
        assert abs(count / sum(ours.values()) - share) < 0.03, text
    assert drawn["([)]()"] and drawn["[(])[]"]  # neither is nested
    kinds = sum(count for text, count in drawn.items() if text.count("(") == 1) / 20_000
    assert abs(kinds - 3 / 8) < 0.02


@EACH
def test_a_seed_makes_the_same_and_another_makes_others(name):
    sets = [make_sets(LANGUAGES[name], seed, **SMALL) for seed in (0, 0, 1)]
    assert sets[0] == sets[1]
    assert sets[0].train != sets[2].train
    assert (sets[0].test != sets[2].test) == (name in MANY)


@EACH
def test_no_test_string_is_seen_before_where_there_is_room(name):
    sets = make_sets(LANGUAGES[name], 0, **SMALL)
    validated = [set(part) for part in sets.validation.values()]
    for part, texts in sets.test.items():
        assert len(set(texts)) == len(texts)
        assert not any(set(texts) & other for other in validated)
        if name in MANY or part != "Bin0":
            assert not set(texts) & set(sets.train)
    if name in MANY:
        assert len(set(sets.train)) == len(sets.train)
        assert not set(sets.train) & (validated[0] | validated[1])
    else:
        sizes = LANGUAGES[name].sizes(2, 12)
        assert len(validated[0]) + len(sets.test["Bin0"]) == len(sizes)
        assert set(sets.train) == validated[0] | set(sets.test["Bin0"])  # all that there are


@pytest.mark.parametrize("name", MANY)
def test_strings_that_are_held_out_are_as_short_as_those_trained_on(name):
    # Soon no short one is left to draw.
    many = {**SMALL, "train": 100, "test": 100, "bin0": (2, 8)}
    sets = make_sets(LANGUAGES[name], 0, **many)
    lengths = [np.mean([len(text) for text in part]) for part in (sets.train, sets.test["Bin0"])]
    assert abs(lengths[0] - lengths[1]) < 0.5


def test_bins_that_overlap_are_refused():
    for changes in ({"bin1": (12, 20)}, {"bin0": (12, 2), "bin1": (1, 0)}, {"length": 20}):
        with pytest.raises(ValueError, match="must lie one above the other"):
            make_sets(LANGUAGES["parity"], 0, **{**SMALL, **changes})
    with pytest.raises(ValueError, match="of counter-3, which is size 20"):
        make_sets(LANGUAGES["counter-3"], 0, **{**SMALL, "length": 62})


ORIGINAL = {
    "parity": (["0110", "11"], ["1011", "01"]),
    "aa-star": (["aaaa"], ["0101"]),
    "abab-star": (["abab"], ["0001"]),
    "counter-2": (["aabb", "aaabbb"], ["ccbT", "cccbbT"]),
    "counter-3": (["aabbcc"], ["ddbccT"]),
    "shuffle-2": (["([)]", "[]"], ["10110100", "0100"]),
}


@EACH
@pytest.mark.parametrize("blank", ["", " "])
def test_the_original_s_files_are_read(name, blank, tmp_path):
    language, (strings, targets) = LANGUAGES[name], ORIGINAL[name]
    width = len(language.marks[0])
    marks = [[line[i : i + width] for i in range(0, len(line), width)] for line in targets]
    folder = tmp_path / name
    folder.mkdir()
    for part in ("train", "valid", "test"):
        (folder / f"{part}_50.src").write_text("\n".join(map(blank.join, strings)) + "\n")
        (folder / f"{part}_50.tgt").write_text("\n".join(map(blank.join, marks)))
    sets = read_sets(language, tmp_path)
    assert sets.train == sets.test["Bin0"] == sets.validation["Bin1"] == strings
    assert read_strings(language, folder / "test_50.src") == strings


def test_files_that_do_not_fit_are_refused(tmp_path):
    source, targets = tmp_path / "a.src", tmp_path / "a.tgt"
    source.write_text("01\n0210\n")
    with pytest.raises(ValueError, match="a.src, line 2: '2' is no symbol of parity, which has 01"):
        read_strings(LANGUAGES["parity"], source)
    source.write_text("00\n0110\n")
    targets.write_text("11\n")
    with pytest.raises(ValueError, match="a.tgt has 1 lines, .*a.src 2"):
        read_strings(LANGUAGES["parity"], source, targets)
    targets.write_text("11\n1111\n")
    with pytest.raises(ValueError, match="a.tgt, line 2: 1111 are not .* of 0110 .* are 1011"):
        read_strings(LANGUAGES["parity"], source, targets)
