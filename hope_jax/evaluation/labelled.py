"""Texts with a label: generated ones, and those of a file."""

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hope_jax.evaluation.haystack import words


class Labelled(NamedTuple):
    """A text and what it is to be called.

    Attributes:
      text: without line breaks.
      label: likewise.
    """

    text: str
    label: str


def read_labelled(path: str | Path) -> list[Labelled]:
    """The texts of a file: JSON lines, or CSV with a heading, of which `text` and `label` are read.

    Runs of white space become one space. A text that comes again is left out, so that none is in training
    and in the test.

    Args:
      path: of the file; one whose name ends in `.csv` is CSV.

    Raises:
      ValueError: if it cannot be read, or a line has not both.
    """
    path = Path(path)
    try:
        content = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    found: dict[str, str] = {}
    for number, line in _lines(path, content):
        values = [line.get(name) if isinstance(line, dict) else None for name in Labelled._fields]
        if not all(isinstance(value, str | int) and str(value).strip() for value in values):
            raise ValueError(f"{path}, line {number}: there is no text and label; give both")
        text, label = (" ".join(str(value).split()) for value in values)
        found.setdefault(text, label)
    if not found:
        raise ValueError(f"{path} is empty; give lines with text and label")
    return [Labelled(*pair) for pair in found.items()]


def _lines(path: Path, content: str) -> Iterator[tuple[int, object]]:
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(content.splitlines(keepends=True))
        for line in reader:
            yield reader.line_num, line
        return
    for number, text in enumerate(content.splitlines(), 1):
        if text.strip():
            try:
                yield number, json.loads(text)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from error


_ACTS = tuple(
    words(ways)
    for ways in (
        "buy, pay for, order",
        "sell, get rid of, find a buyer for",
        "mend, repair, put right",
        "lend, give away for a week, let a friend have",
        "find, look for, search for",
        "clean, wash, dust",
        "paint, colour, varnish",
        "send, post, mail",
        "measure, weigh, take the size of",
        "describe, tell of, say something about",
    )
)
_THINGS = tuple(
    words(names)
    for names in (
        "bicycle, bike",
        "coat, jacket",
        "sofa, couch",
        "lamp, light",
        "boat, ship",
        "ring, jewel",
        "stove, oven",
        "phone, telephone",
        "book, novel",
        "carpet, rug",
        "clock, watch",
        "tent, camp bed",
        "violin, fiddle",
        "ladder, set of steps",
        "kettle, teapot",
        "suitcase, travelling bag",
        "mirror, looking glass",
        "piano, organ",
        "saw, hammer",
        "umbrella, parasol",
    )
)
_OPENERS = words(
    "I want to, I would like to, Please help me to, How do I, Can you, We need to, My aunt wishes to, "
    "Is it possible to"
)
_WHEN = words(
    "today, tomorrow, this evening, next week, before noon, on Monday, at the weekend, in spring, as "
    "soon as possible, after work, without haste, by the end of the month"
)
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
CLASSES = len(_ACTS) * len(_THINGS)


def made_up_words(random: np.random.Generator, count: int, syllables: int) -> list[str]:
    """Different words of so many syllables, each a consonant and a vowel."""
    kinds = len(_CONSONANTS) * len(_VOWELS)

    def word(number: int) -> str:
        parts = []
        for _ in range(syllables):
            number, part = divmod(number, kinds)
            parts.append(_CONSONANTS[part // len(_VOWELS)] + _VOWELS[part % len(_VOWELS)])
        return "".join(parts)

    return [word(int(n)) for n in random.choice(kinds**syllables, size=count, replace=False)]


def generated_labelled(random: np.random.Generator, classes: int, each: int) -> list[Labelled]:
    """Requests such as "I want to mend a bike today.", of so many classes.

    A class is what is wished (of ten acts, said in three ways) with which thing (of twenty, with two
    names). Its label is a made-up word, so that nothing but other texts of the class can tell it.

    Args:
      random: draws them.
      classes: how many, at most `CLASSES`.
      each: different texts of each, at most 576.

    Raises:
      ValueError: if there are fewer.

    Example:
      >>> generated_labelled(np.random.default_rng(0), 1, 1)
      [Labelled(text='Can you paint a phone at the weekend?', label='notu')]
    """
    texts = len(_OPENERS) * 3 * 2 * len(_WHEN)
    if classes > CLASSES or each > texts:
        raise ValueError(
            f"{classes} classes of {each} texts are more than the {CLASSES} of {texts} that can be "
            f"generated; ask for fewer, or give a file"
        )
    labels = made_up_words(random, classes, 2)
    kinds = random.choice(CLASSES, size=classes, replace=False)
    made = []
    for label, kind in zip(labels, kinds, strict=True):
        ways, names = _ACTS[kind // len(_THINGS)], _THINGS[kind % len(_THINGS)]
        said = list(itertools.product(_OPENERS, ways, names, _WHEN))
        for place in random.choice(len(said), size=each, replace=False):
            opener, way, name, when = said[place]
            article = "an" if name[0] in _VOWELS else "a"
            end = "?" if opener.startswith(("How", "Can", "Is")) else "."
            made.append(Labelled(f"{opener} {way} {article} {name} {when}{end}", label))
    return made
