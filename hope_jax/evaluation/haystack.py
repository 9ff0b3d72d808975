"""Text in which something is hidden: sentences without end, each with a space before it."""

import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np

# What RULER repeats where a text is to say nothing.
_NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)


def words(listed: str) -> tuple[str, ...]:
    """Words or phrases with commas between them."""
    return tuple(listed.split(", "))


_WHO = words(
    "baker, captain, clerk, doctor, farmer, fisher, gardener, guide, hunter, innkeeper, judge, "
    "knight, merchant, miller, musician, painter, pilot, poet, potter, printer, sailor, shepherd, "
    "smith, student, tailor, teacher, traveller, watchman, weaver, writer"
)
_HOW = words(
    "calm, careful, cheerful, clever, curious, eager, famous, friendly, gentle, honest, humble, "
    "lonely, lucky, noisy, old, patient, polite, proud, quiet, restless, silent, slow, stern, "
    "stubborn, tall, thoughtful, tired, wise, worried, young"
)
_DID = words(
    "bought, carried, cleaned, counted, described, drew, dropped, examined, found, hid, kept, lent, "
    "lost, measured, mended, noticed, opened, ordered, packed, praised, remembered, repaired, "
    "returned, sold, studied, touched, turned, washed, watched, wrapped"
)
_WHAT = words(
    "barrel, basket, bell, blanket, book, bottle, box, brush, candle, chair, cloak, coin, cup, drum, "
    "flag, hammer, jar, kettle, ladder, lamp, letter, map, mirror, needle, picture, plate, ring, "
    "rope, spoon, wheel"
)
_WHERE = words(
    "above the stairs, at the bridge, at the crossing, behind the barn, beside the well, by the "
    "river, in the attic, in the cellar, in the courtyard, in the forest, in the harbour, in the "
    "kitchen, in the library, in the market, in the mill, in the tower, near the chapel, near the "
    "gate, on the ferry, on the hill, on the road, outside the inn, under the arch, under the oak"
)
_WHEN = words(
    "after supper, at dawn, at dusk, at midnight, at noon, before breakfast, during the storm, early "
    "in the spring, in the autumn, in the winter, late in the summer, on the last day, on the third "
    "evening, that morning, when the bells rang, while it rained"
)


def noise() -> Iterator[str]:
    """The same five sentences, over and over.

    Example:
      >>> next(noise())
      ' The grass is green.'
    """
    return (f" {sentence}" for sentence in itertools.cycle(_NOISE))


def generated(random: np.random.Generator) -> Iterator[str]:
    """Sentences of a small grammar, of which there are some ten thousand million.

    Args:
      random: draws them.

    Example:
      >>> next(generated(np.random.default_rng(0)))
      ' The thoughtful printer noticed a candle in the cellar after supper.'
    """
    parts = (_HOW, _WHO, _DID, _WHAT, _WHERE, _WHEN)
    while True:
        how, who, did, what, where, when = (part[random.integers(len(part))] for part in parts)
        article = "an" if what[0] in "aeiou" else "a"
        yield f" The {how} {who} {did} {article} {what} {where} {when}."


def sentences_of(text: str, start: int = 0) -> Iterator[str]:
    """The sentences of a text, from its beginning again after its end.

    Args:
      text: of which white space is one space.
      start: number of the sentence to begin with, counted around.

    Raises:
      ValueError: if the text has no words.

    Example:
      >>> list(itertools.islice(sentences_of("One. Two?\\nThree", 1), 3))
      [' Two?', ' Three', ' One.']
    """
    found: Sequence[str] = [
        f" {' '.join(part.split())}"
        for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", text)
        if part.strip()
    ]
    if not found:
        raise ValueError("the text to hide things in has no words")
    return (found[place % len(found)] for place in itertools.count(start))
