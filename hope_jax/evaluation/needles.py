"""Needles in a haystack: what a model still knows of a few sentences in a long text.

The kinds of RULER (Hsieh et al., 2024, arXiv 2404.06654). "One of the special magic numbers for K is: V."
stands somewhere in a text, and at its end the model is asked for V.

| kind | text | hidden | asked for |
| --- | --- | --- | --- |
| S-1 | five sentences, repeated | one: word, number | it |
| S-2 | prose | one: word, number | it |
| S-3 | prose | one: word, UUID | it |
| MK-1 | prose | four: word, number | one of them |
| MK-2 | such sentences alone: word, number | | one of them |
| MK-3 | such sentences alone: UUID, UUID | | one of them |
| MV | prose | four numbers of one word | all four |
| MQ | prose | four: word, number | all four |

Prose is a text of yours, or sentences of a small grammar. Words are an adjective and a noun.
"""

import itertools
import uuid
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from hope_jax.evaluation.haystack import generated, noise, sentences_of, words
from hope_jax.evaluation.questions import Hidden, Item

_HOW = words(
    "amber, ancient, bitter, bold, brave, bright, brisk, broad, bronze, busy, clear, cold, crisp, "
    "crooked, damp, dark, deep, distant, dusty, early, empty, fair, faint, fierce, flat, fresh, "
    "frozen, giant, golden, grand, green, hidden, hollow, icy, ivory, jolly, keen, late, light, "
    "little, loud, mellow, mild, misty, narrow, neat, odd, pale, plain, purple, quick, rapid, rough, "
    "round, royal, rusty, salty, scarlet, sharp, shiny, silver, smooth, soft, sour, spare, steep, "
    "swift, tender, thin, tiny, vast, velvet, warm, wild, yellow"
)
_WHAT = words(
    "acorn, anchor, apple, arrow, badger, banner, beacon, bear, bison, blossom, canyon, castle, "
    "cedar, cloud, comet, crane, crow, daisy, desert, dolphin, dragon, eagle, ember, falcon, feather, "
    "fern, field, finch, flame, fox, garden, glacier, hare, harp, hawk, heron, horse, island, ivy, "
    "jewel, lake, lantern, lark, leaf, lily, lion, lotus, maple, meadow, moon, moth, mountain, oak, "
    "ocean, otter, owl, panda, peach, pearl, pine, planet, prairie, rabbit, raven, reef, robin, rose, "
    "seal, shell, sparrow, spruce, star, stone, swan, thistle, tiger, torch, tulip, valley, violet, "
    "walnut, whale, willow, wolf"
)
_PREFACE = (
    "Some special magic {what}s are hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the {what}s afterwards."
)
_SENTENCE = " One of the special magic {what}s for {key} is: {value}."
_ONE = (
    " What is the special magic {what} for {key} mentioned in the provided text? The special magic "
    "{what} for {key} mentioned in the provided text is"
)
_ALL = (
    " What are all the special magic {what}s for {key} mentioned in the provided text? The special magic "
    "{what}s for {key} mentioned in the provided text are"
)


class Kind(NamedTuple):
    """What is hidden, and how much of it is asked for.

    Attributes:
      haystack: `noise`, `prose` or `needles`.
      keys: how many there are; as many as fit where the haystack is needles.
      values: of each key.
      asked: keys that are asked for.
      key: `word` or `uuid`.
      value: `number` or `uuid`.
    """

    haystack: str
    keys: int = 1
    values: int = 1
    asked: int = 1
    key: str = "word"
    value: str = "number"


KINDS = {
    "S-1": Kind("noise"),
    "S-2": Kind("prose"),
    "S-3": Kind("prose", value="uuid"),
    "MK-1": Kind("prose", keys=4),
    "MK-2": Kind("needles"),
    "MK-3": Kind("needles", key="uuid", value="uuid"),
    "MV": Kind("prose", values=4),
    "MQ": Kind("prose", keys=4, asked=4),
}


def draw_word(random: np.random.Generator) -> str:
    """An adjective and a noun, of which there are some six thousand pairs."""
    return f"{_HOW[random.integers(len(_HOW))]}-{_WHAT[random.integers(len(_WHAT))]}"


def draw_number(random: np.random.Generator) -> str:
    """A number of seven digits."""
    return str(random.integers(1_000_000, 10_000_000))


def draw_uuid(random: np.random.Generator) -> str:
    """A UUID of version 4."""
    return str(uuid.UUID(bytes=random.bytes(16), version=4))


_DRAW: dict[str, Callable[[np.random.Generator], str]] = {
    "word": draw_word,
    "number": draw_number,
    "uuid": draw_uuid,
}


def make_needles(
    kind: str | Kind, random: np.random.Generator, depth: float, text: str | None = None
) -> tuple[Item, Iterator[str]]:
    """Draws an item and the text for it.

    Args:
      kind: of `KINDS`, or your own.
      random: draws all of it.
      depth: of what is asked for; where that is several, and of what is not asked for, depths are
        random.
      text: prose to hide things in; None for generated sentences.

    Returns:
      The item, and sentences without end. No key comes twice.
    """
    kind = KINDS[kind] if isinstance(kind, str) else kind
    known: set[str] = set()

    def new(what: str) -> str:
        while (drawn := _DRAW[what](random)) in known:
            pass
        known.add(drawn)
        return drawn

    def sentence(key: str, value: str) -> str:
        return _SENTENCE.format(what=kind.value, key=key, value=value)

    keys = [new(kind.key) for _ in range(kind.keys)]
    values = {key: [new(kind.value) for _ in range(kind.values)] for key in keys}
    asked = keys[: kind.asked]
    alone = kind.asked * kind.values == 1
    hidden = [
        Hidden(sentence(key, value), depth if alone and key in asked else random.random())
        for key in keys
        for value in values[key]
    ]
    answers = tuple(value for key in asked for value in values[key])
    template = _ONE if alone else _ALL
    listed = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    item = Item(
        _PREFACE.format(what=kind.value),
        tuple(hidden),
        template.format(what=kind.value, key=listed),
        answers,
    )
    if kind.haystack == "noise":
        return item, noise()
    if kind.haystack == "needles":
        return item, (sentence(new(kind.key), new(kind.value)) for _ in itertools.count())
    if text is None:
        return item, generated(random)
    return item, sentences_of(text, int(random.integers(1 << 30)))
