"""Generated languages: a dictionary and a grammar, sheets that tell them, and sentences to translate.

A sentence says who does what to whom: "The small dogs saw the bird." A language has a word for each noun,
verb and adjective, an order of subject, verb and object, adjectives before or after their nouns, and
endings for the plural, the past and the object. Languages of one seed differ in all words.
"""

from typing import NamedTuple

import numpy as np

from hope_jax.evaluation.haystack import words
from hope_jax.evaluation.labelled import made_up_words

NOUNS = words("dog, bird, child, king, fish, horse, tree, river, stone, baker, snake, girl")
ADJECTIVES = words("small, old, red, quick, happy, cold")
# As they are said of one, of several, and of the past.
VERBS = tuple(
    tuple(forms.split())
    for forms in words(
        "sees see saw, hears hear heard, finds find found, loves love loved, leaves leave left, brings "
        "bring brought, hits hit hit, feeds feed fed"
    )
)
_IRREGULAR = {"child": "children", "fish": "fishes"}
ORDERS = ("SVO", "SOV", "VSO", "VOS", "OSV", "OVS")
_NAMES = {"S": "subject", "V": "verb", "O": "object"}


class Part(NamedTuple):
    """A subject or an object.

    Attributes:
      noun: number of it.
      adjective: number of it; None for none.
      plural: whether there are several.
    """

    noun: int
    adjective: int | None
    plural: bool


class Meaning(NamedTuple):
    """What a sentence says.

    Attributes:
      subject: who does it.
      verb: number of it.
      past: whether it was.
      object: to whom.
    """

    subject: Part
    verb: int
    past: bool
    object: Part


class Language(NamedTuple):
    """A generated language.

    Attributes:
      name: of it.
      nouns: a word for each.
      adjectives: likewise.
      verbs: likewise.
      order: of subject, verb and object, one of `ORDERS`.
      adjective_first: whether adjectives stand before their nouns.
      plural: ending of nouns of which there are several.
      past: ending of verbs.
      object: ending of an object, behind that of the plural.
    """

    name: str
    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    verbs: tuple[str, ...]
    order: str
    adjective_first: bool
    plural: str
    past: str
    object: str


def make_languages(random: np.random.Generator, count: int) -> list[Language]:
    """Draws languages no two of which have a word, an ending or an order in common.

    Args:
      random: draws them.
      count: how many, at most six.

    Raises:
      ValueError: for more.
    """
    if count > len(ORDERS):
        raise ValueError(f"{count} languages are more than the {len(ORDERS)} orders of words")
    sizes = (1, len(NOUNS), len(ADJECTIVES), len(VERBS))
    drawn = iter(made_up_words(random, count * sum(sizes), 2))
    endings = iter(made_up_words(random, count * 3, 1))
    orders = random.permutation(len(ORDERS))
    languages = []
    for place in range(count):
        (name,), nouns, adjectives, verbs = (
            tuple(next(drawn) for _ in range(size)) for size in sizes
        )
        languages.append(
            Language(
                name.capitalize(),
                nouns,
                adjectives,
                verbs,
                ORDERS[orders[place]],
                bool(random.integers(2)),
                *(next(endings) for _ in range(3)),
            )
        )
    return languages


def draw_meanings(random: np.random.Generator, count: int) -> list[Meaning]:
    """Different meanings, of some 450,000."""

    def part() -> Part:
        adjective = int(random.integers(-1, len(ADJECTIVES)))
        return Part(
            int(random.integers(len(NOUNS))),
            None if adjective < 0 else adjective,
            bool(random.integers(2)),
        )

    found: dict[Meaning, None] = {}
    while len(found) < count:
        verb, past = int(random.integers(len(VERBS))), bool(random.integers(2))
        found[Meaning(part(), verb, past, part())] = None
    return list(found)


def in_english(meaning: Meaning) -> str:
    """The sentence in English.

    Example:
      >>> in_english(Meaning(Part(0, 0, True), 0, True, Part(1, None, False)))
      'The small dogs saw the bird.'
    """

    def told(part: Part) -> str:
        noun = NOUNS[part.noun]
        several = _IRREGULAR.get(noun, f"{noun}s")
        adjective = "" if part.adjective is None else f"{ADJECTIVES[part.adjective]} "
        return f"the {adjective}{several if part.plural else noun}"

    one, several, past = VERBS[meaning.verb]
    verb = past if meaning.past else several if meaning.subject.plural else one
    sentence = f"{told(meaning.subject)} {verb} {told(meaning.object)}."
    return sentence[0].upper() + sentence[1:]


def translated(language: Language, meaning: Meaning) -> str:
    """The sentence in a language."""

    def told(part: Part, ending: str) -> str:
        noun = language.nouns[part.noun] + language.plural * part.plural + ending
        if part.adjective is None:
            return noun
        adjective = language.adjectives[part.adjective]
        return f"{adjective} {noun}" if language.adjective_first else f"{noun} {adjective}"

    parts = {
        "S": told(meaning.subject, ""),
        "V": language.verbs[meaning.verb] + language.past * meaning.past,
        "O": told(meaning.object, language.object),
    }
    return " ".join(parts[place] for place in language.order)


def sheet(language: Language) -> str:
    """The dictionary and the grammar, in English.

    Example:
      >>> language = make_languages(np.random.default_rng(0), 1)[0]
      >>> print(sheet(language)[-54:])
      An object ends in -ta, after any ending of its plural.
    """
    places = ", then the ".join(_NAMES[place] for place in language.order)
    place = "before" if language.adjective_first else "after"
    pairs = [
        *zip(NOUNS, language.nouns, strict=True),
        *zip(ADJECTIVES, language.adjectives, strict=True),
        *((forms[1], word) for forms, word in zip(VERBS, language.verbs, strict=True)),
    ]
    return "\n".join(
        [
            f"A dictionary of {language.name}.",
            *(f"{english} = {word}" for english, word in pairs),
            f"The grammar of {language.name}. There is no word for the. First comes the {places}. "
            f"An adjective stands {place} its noun. In the plural a noun ends in -{language.plural}. "
            f"In the past a verb ends in -{language.past}. An object ends in -{language.object}, after "
            f"any ending of its plural.",
        ]
    )
