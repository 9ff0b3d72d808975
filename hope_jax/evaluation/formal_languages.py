"""Six formal languages, and what is to be told at each position of their strings (Table 5).

The benchmark of Irie, Csordas and Schmidhuber (2023, arXiv 2310.16076), whose data are those of
Bhattamishra et al. (2020). Models are trained on short strings and tested on longer ones, and a string
counts only if every position is right.

| language | a string of size n | told at each position |
| --- | --- | --- |
| parity | n bits, an even number of them 1 | whether the number of 1s so far is even |
| (aa)* | n times a, n even | whether it may end here |
| (abab)* | a and b in turn, n a multiple of 4 | whether it may end here |
| a^n b^n | n times each | which symbols may follow, or the end |
| a^n b^n c^n | n times each | which symbols may follow, or the end |
| shuffle-2 | n brackets of two kinds, each balanced by itself | which kinds are open |

Sets are classes: each language has some two to four of them, one at each position, so that a model of
`VOCABULARY` ids can read and tell any of them.

Of parity and shuffle-2 there are many strings of a size. All that are drawn for training, validation and
test differ, sizes are drawn uniformly, and strings of a size as the language says: bits uniformly, and
brackets by the grammar S -> (S) with probability 1/2, SS with 1/4, else nothing, for each kind, whose
words are then interleaved at random. (The original's two kinds are nested in each other.) Of the other
four there is one string of a size. Training has all of the sizes of Bin0, as in the original, so that
Bin0 holds nothing new; of the sizes of each bin the test has the largest and every second one below it,
validation the rest, and no string of Bin1 or longer is trained on.
"""

import bisect
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from hope_jax.data.examples import Examples, pad_examples

VOCABULARY = 4  # the most symbols, and the most classes, that a language has
BIN0, BIN1 = (2, 50), (51, 100)
_TRIES = 100  # for each string that is wanted, before there are taken to be too few


class Language(NamedTuple):
    """A language.

    Attributes:
      name: also that of the original's folder.
      title: for a table.
      symbols: of its strings; a symbol's place is its id.
      marks: of its classes in the original's files, all of one width; a mark's place is its class.
      unit: sizes are multiples of it.
      letters: symbols of a string, over its size.
      many: whether there are several strings of a size.
      draw: makes a string of a size.
      classes: of each position, from the ids of a string of the language.
    """

    name: str
    title: str
    symbols: str
    marks: tuple[str, ...]
    unit: int
    letters: int
    many: bool
    draw: Callable[[np.random.Generator, int], str]
    classes: Callable[[Int[np.ndarray, " T"]], Int[np.ndarray, " T"]]

    def sizes(self, least: int, most: int) -> range:
        """The sizes that lie within bounds, both included."""
        return range(-(-max(least, 1) // self.unit) * self.unit, most + 1, self.unit)

    def ids(self, text: str) -> Int[np.ndarray, " T"]:
        """The ids of a string's symbols."""
        return np.array([self.symbols.index(symbol) for symbol in text], np.int64)


class Sets(NamedTuple):
    """Strings of a language; see the top of the file for what they share.

    Attributes:
      train: of Bin0.
      validation: by name, `Bin0` and `Bin1`.
      test: by name, `Bin0`, `Bin1` and a length, such as `1,000`.
    """

    train: list[str]
    validation: dict[str, list[str]]
    test: dict[str, list[str]]


def _parity_string(random: np.random.Generator, size: int) -> str:
    bits = random.integers(2, size=size)
    bits[-1] = bits[:-1].sum() % 2
    return "".join(map(str, bits))


@functools.cache
def _rule_shares(pairs: int) -> tuple[float, list[float]]:
    """Weight of all words of so many pairs, and the summed shares of the rules that begin one.

    S -> SS with an empty word on either side changes nothing but the weight, and is left out. The first
    rule is (S); that after it, of place i, is SS with i pairs on the left.
    """
    empty = 2 - 3**0.5  # w = 1/4 + w^2 / 4
    if pairs == 0:
        return empty, []
    weights = np.array([_rule_shares(fewer)[0] for fewer in range(pairs)])
    rules = np.concatenate([[weights[-1] / 2], weights[1:] * weights[:0:-1] / 4])
    return rules.sum() / (1 - empty / 2), (rules.cumsum() / rules.sum()).tolist()


def _balanced(random: np.random.Generator, pairs: int, brackets: str) -> str:
    """A word of one kind of brackets, by the grammar's weights among all of its length."""
    for fewer in range(pairs):
        _rule_shares(fewer)  # one after the other, so that no recursion is deep
    written, left = [], [pairs]
    while left:
        pairs = left.pop()
        if pairs < 0:
            written.append(brackets[1])
        elif pairs:
            rule = bisect.bisect_right(_rule_shares(pairs)[1], random.random())
            if rule == 0:
                written.append(brackets[0])
                left += [-1, pairs - 1]
            else:
                left += [pairs - rule, rule]
    return "".join(written)


def _shuffle_string(random: np.random.Generator, size: int) -> str:
    pairs = random.binomial(size // 2, 0.5)
    words = [
        _balanced(random, count, kind) for count, kind in ((pairs, "()"), (size // 2 - pairs, "[]"))
    ]
    mixed = np.full(size, 1)
    mixed[random.permutation(size)[: 2 * pairs]] = 0
    symbols = [iter(word) for word in words]
    return "".join(next(symbols[kind]) for kind in mixed)


def _even_so_far(ids: np.ndarray) -> np.ndarray:
    return (ids.cumsum() + 1) % 2


def _may_end(period: int, ids: np.ndarray) -> np.ndarray:
    return (np.arange(1, len(ids) + 1) % period == 0).astype(np.int64)


def _may_follow(letters: int, ids: np.ndarray) -> np.ndarray:
    # Class 0 is {a, b}, which only a's have; class i is {symbol i}, and the last one is {end}.
    return np.where(ids == 0, 0, np.append(ids[1:], letters))


def _open_kinds(ids: np.ndarray) -> np.ndarray:
    depths = [((ids == kind).astype(int) - (ids == kind + 1)).cumsum() for kind in (0, 2)]
    return (depths[0] > 0) + 2 * (depths[1] > 0)


def _counter(letters: int, title: str, marks: str) -> Language:
    symbols = "abc"[:letters]
    return Language(
        f"counter-{letters}",
        title,
        symbols,
        tuple(marks),
        1,
        letters,
        False,
        lambda random, size: "".join(symbol * size for symbol in symbols),
        functools.partial(_may_follow, letters),
    )


def _star(name: str, word: str, title: str) -> Language:
    period = len(word)
    return Language(
        name,
        title,
        "".join(sorted(set(word))),
        ("0", "1"),
        period,
        1,
        False,
        lambda random, size: word * (size // period),
        functools.partial(_may_end, period),
    )


LANGUAGES = {
    language.name: language
    for language in (
        Language("parity", "parity", "01", ("0", "1"), 1, 1, True, _parity_string, _even_so_far),
        _star("aa-star", "aa", "(aa)*"),
        _star("abab-star", "abab", "(abab)*"),
        _counter(2, "a^n b^n", "cbT"),
        _counter(3, "a^n b^n c^n", "dbcT"),
        Language(
            "shuffle-2",
            "shuffle-2",
            "()[]",
            ("00", "10", "01", "11"),
            2,
            1,
            True,
            _shuffle_string,
            _open_kinds,
        ),
    )
}


def draw_strings(
    language: Language, sizes: Sequence[int], count: int, random: np.random.Generator
) -> list[str]:
    """Different strings of a language that has many of a size.

    Args:
      language: whose.
      sizes: from which each string's is drawn uniformly.
      count: how many.
      random: source of randomness.

    Raises:
      ValueError: if there are not so many.

    Example:
      >>> draw_strings(LANGUAGES["parity"], [2], 2, np.random.default_rng(0))
      ['11', '00']
    """
    found: dict[str, None] = {}
    for _ in range(_TRIES * count):
        if len(found) == count:
            break
        found[language.draw(random, int(random.choice(sizes)))] = None
    if len(found) < count:
        raise ValueError(
            f"{language.name} has fewer than {count:,} strings of sizes {min(sizes)} to {max(sizes)}, "
            f"or hardly more; ask for fewer, or for longer ones"
        )
    # Of the short ones most come early, and those that are held out are to be like the others.
    strings = list(found)
    return [strings[place] for place in random.permutation(count)]


def make_sets(
    language: Language,
    seed: int,
    *,
    train: int = 10_000,
    validation: int = 200,
    test: int = 2_000,
    bin0: tuple[int, int] = BIN0,
    bin1: tuple[int, int] = BIN1,
    length: int = 1_000,
    long: int = 20,
) -> Sets:
    """Makes strings to train, validate and test on; see the top of the file.

    Args:
      language: whose.
      seed: the same gives the same.
      train: strings, where there is one of a size drawn with repetition.
      validation: strings of each bin, where there are many of a size.
      test: strings of each bin, where there are many of a size.
      bin0: least and largest size of strings that are trained on.
      bin1: of longer ones.
      length: symbols of the longest strings, or of a^n b^n c^n the most below that.
      long: how many of those, where there are many of a size.

    Raises:
      ValueError: if bins overlap, or there are too few strings.
    """
    longest = language.sizes(1, length // language.letters)[-1:]
    if not bin0[1] < bin1[0] <= bin1[1] < min(longest, default=0):
        raise ValueError(
            f"bins {bin0[0]} to {bin0[1]} and {bin1[0]} to {bin1[1]} and length {length:,} of "
            f"{language.name}, which is size {min(longest, default=0)}, must lie one above the other"
        )
    random = np.random.default_rng(seed)
    name, bins = f"{length:,}", [language.sizes(*bin0), language.sizes(*bin1)]
    if not language.many:
        whole = [[language.draw(random, size) for size in sizes[::-1]] for sizes in bins]
        validated, tested = [part[1::2] for part in whole], [part[::2] for part in whole]
        learnt = [whole[0][place] for place in random.integers(len(whole[0]), size=train)]
        far = [language.draw(random, longest[0])]
    else:
        drawn = [
            draw_strings(language, sizes, count + validation + test, random)
            for sizes, count in zip(bins, (train, 0), strict=True)
        ]
        learnt = drawn[0][:train]
        validated = [part[len(part) - validation - test : len(part) - test] for part in drawn]
        tested = [part[len(part) - test :] for part in drawn]
        far = draw_strings(language, longest, long, random)
    bins0, bins1 = zip(validated, tested, strict=True)
    return Sets(
        learnt,
        {"Bin0": bins0[0], "Bin1": bins1[0]},
        {"Bin0": bins0[1], "Bin1": bins1[1], name: far},
    )


def read_strings(
    language: Language, source: str | Path, targets: str | Path | None = None
) -> list[str]:
    """Reads strings from a file of the original, one a line, with or without blanks between symbols.

    What is to be told of them is worked out here. A file of that is compared with it.

    Args:
      language: whose strings they are.
      source: file of strings.
      targets: file of their classes, a line for each string.

    Raises:
      ValueError: with file and line, for a symbol that is none and for classes that are others.
    """
    strings = ["".join(line.split()) for line in Path(source).read_text().splitlines()]
    for number, text in enumerate(strings, 1):
        if other := set(text) - set(language.symbols):
            raise ValueError(
                f"{source}, line {number}: {min(other)!r} is no symbol of {language.name}, which has "
                f"{language.symbols}"
            )
    if targets is None:
        return strings
    lines = ["".join(line.split()) for line in Path(targets).read_text().splitlines()]
    if len(lines) != len(strings):
        raise ValueError(f"{targets} has {len(lines)} lines, {source} {len(strings)}")
    for number, (text, line) in enumerate(zip(strings, lines, strict=True), 1):
        told = "".join(language.marks[one] for one in language.classes(language.ids(text)))
        if told != line:
            raise ValueError(
                f"{targets}, line {number}: {line[:60]} are not the classes of {text[:60]} in "
                f"{source}, which are {told[:60]}"
            )
    return strings


def read_sets(language: Language, folder: str | Path) -> Sets:
    """Reads the files of Irie et al., `FOLDER/NAME/{train,valid,test}_50.{src,tgt}`.

    As there, `valid` is Bin0 and `test` Bin1, and both say when training ends and what came of it.

    Raises:
      ValueError: if a file is not as it should be.
      OSError: if there is none.
    """
    parts = [
        read_strings(
            language, *(Path(folder) / language.name / f"{part}_50.{end}" for end in ("src", "tgt"))
        )
        for part in ("train", "valid", "test")
    ]
    bins = {"Bin0": parts[1], "Bin1": parts[2]}
    return Sets(parts[0], bins, dict(bins))


def as_examples(language: Language, strings: Sequence[str], length: int | None = None) -> Examples:
    """Strings with the class of each position, in rows of one length.

    Args:
      language: whose.
      strings: N of them.
      length: T; None for that of the longest.

    Example:
      >>> as_examples(LANGUAGES["counter-2"], ["aabb"]).targets.tolist()  # {a, b} twice, {b}, {end}
      [[0, 0, 1, 2]]
    """
    ids = [language.ids(text) for text in strings]
    return pad_examples(ids, [language.classes(one) for one in ids], length)
