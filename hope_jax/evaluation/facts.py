"""Facts scattered in a long text, and a question that needs one, two or three of them.

The first five tasks of bAbI (Weston et al., 2015, arXiv 1502.05698), hidden in prose as in BABILong
(Kuratov et al., 2024, arXiv 2406.10149):

* `one`: people move about. Where is one of them?
* `two`: they also take things and put them down. Where is a thing?
* `three`: likewise. Where was a thing before it came to where it is?
* `places`: places lie north, south, east or west of each other. What is north of one, or what is one
  north of?
* `gifts`: people give each other things. Who gave a thing to someone, what, or to whom?

The question asks for one word, and the last fact that answers it holds.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hope_jax.evaluation.haystack import generated, sentences_of, words
from hope_jax.evaluation.questions import Hidden, Item

_PEOPLE = words("Mary, John, Sandra, Daniel, Fred, Bill, Julie, Jeff")
_PLACES = words("bathroom, bedroom, garden, hallway, kitchen, office, park, school")
_THINGS = words("apple, football, milk, cake, pen, key, ball, hat")
_WENT = words("moved to, went to, travelled to, journeyed to, went back to")
_TOOK = words("got, took, picked up, grabbed")
_LEFT = words("dropped, left, put down, discarded")
_GAVE = words("gave, handed, passed")
_SIDES = {"north": "south", "south": "north", "east": "west", "west": "east"}
_PREFACE = (
    "Facts about people, things and places are hidden within the following text. Remember them. I will "
    "ask you about one of them afterwards."
)
KINDS = ("one", "two", "three", "places", "gifts")


class Story(NamedTuple):
    """Facts in their order, and what is asked after them.

    Attributes:
      facts: sentences.
      question: with a question mark.
      answer: one word.
    """

    facts: tuple[str, ...]
    question: str
    answer: str


def make_story(kind: str, random: np.random.Generator) -> Story:
    """Draws a story.

    Args:
      kind: of `KINDS`.
      random: draws it.

    Example:
      >>> story = make_story("one", np.random.default_rng(0))
      >>> story.facts[-1], story.question, story.answer
      ('Julie moved to the kitchen.', 'Where is Julie?', 'kitchen')
    """
    if kind == "one":
        return _moves(random)
    if kind == "places":
        return _sides(random)
    if kind == "gifts":
        return _gifts(random)
    while (story := _things(random, before=kind == "three")) is None:
        pass
    return story


def _pick(random: np.random.Generator, some: Sequence[str]) -> str:
    return some[int(random.integers(len(some)))]


def _moves(random: np.random.Generator) -> Story:
    people = _some(random, _PEOPLE, 4)
    where: dict[str, str] = {}
    facts = []
    for _ in range(int(random.integers(4, 11))):
        person = _pick(random, people)
        where[person] = _pick(random, [place for place in _PLACES if place != where.get(person)])
        facts.append(f"{person} {_pick(random, _WENT)} the {where[person]}.")
    person = _pick(random, list(where))
    return Story(tuple(facts), f"Where is {person}?", where[person])


def _things(random: np.random.Generator, before: bool) -> Story | None:
    """A story of things that are carried, or None if nothing came about to be asked for."""
    people, things = _some(random, _PEOPLE, 3), _some(random, _THINGS, 3)
    where: dict[str, str] = {}
    holder: dict[str, str] = {}
    been: dict[str, list[str]] = {}
    facts = []
    for _ in range(int(random.integers(12, 25)) if before else int(random.integers(6, 15))):
        person = _pick(random, people)
        here = where.get(person)
        held = [thing for thing in things if holder.get(thing) == person]
        # What nobody has and nobody has seen elsewhere may lie anywhere.
        near = [
            thing
            for thing in things
            if here and thing not in holder and been.get(thing, [here])[-1] == here
        ]
        act = random.random()
        if act < 0.3 and near:
            thing = _pick(random, near)
            holder[thing] = person
            been.setdefault(thing, []).append(str(here))
            facts.append(f"{person} {_pick(random, _TOOK)} the {thing}.")
        elif act < 0.45 and held:
            thing = _pick(random, held)
            del holder[thing]
            facts.append(f"{person} {_pick(random, _LEFT)} the {thing}.")
        else:
            where[person] = _pick(random, [place for place in _PLACES if place != here])
            for thing in held:
                been[thing].append(where[person])
            facts.append(f"{person} {_pick(random, _WENT)} the {where[person]}.")
    path = {
        thing: [place for i, place in enumerate(of) if i == 0 or place != of[i - 1]]
        for thing, of in been.items()
    }
    if not before:
        if not path:
            return None
        thing = _pick(random, list(path))
        return Story(tuple(facts), f"Where is the {thing}?", path[thing][-1])
    # Of a place that a thing came to twice it would not be said which time is meant.
    clear = [thing for thing, of in path.items() if len(of) > 1 and of.count(of[-1]) == 1]
    if not clear:
        return None
    thing = _pick(random, clear)
    *_, earlier, now = path[thing]
    return Story(tuple(facts), f"Where was the {thing} before the {now}?", earlier)


def _sides(random: np.random.Generator) -> Story:
    middle, one, other = _some(random, _PLACES, 3)
    side = _pick(random, list(_SIDES))
    # The other lies on the opposite side, or on another one.
    far = _pick(random, [name for name in _SIDES if name != side])
    facts = [f"The {one} is {side} of the {middle}.", f"The {other} is {far} of the {middle}."]
    random.shuffle(facts)
    if random.random() < 0.5:
        return Story(tuple(facts), f"What is {side} of the {middle}?", one)
    return Story(tuple(facts), f"What is the {one} {side} of?", middle)


def _gifts(random: np.random.Generator) -> Story:
    people, things = _some(random, _PEOPLE, 4), _some(random, _THINGS, 4)
    holder = {thing: _pick(random, people) for thing in things}
    gifts: list[tuple[str, str, str]] = []
    facts = []
    for _ in range(int(random.integers(4, 9))):
        thing = _pick(random, things)
        giver = holder[thing]
        taker = _pick(random, [person for person in people if person != giver])
        holder[thing] = taker
        gifts.append((giver, thing, taker))
        facts.append(f"{giver} {_pick(random, _GAVE)} the {thing} to {taker}.")
    giver, thing, taker = gifts[int(random.integers(len(gifts)))]
    asked = int(random.integers(3))
    if asked == 0:
        last = [one[0] for one in gifts if one[1:] == (thing, taker)][-1]
        return Story(tuple(facts), f"Who gave the {thing} to {taker}?", last)
    if asked == 1:
        last = [one[1] for one in gifts if (one[0], one[2]) == (giver, taker)][-1]
        return Story(tuple(facts), f"What did {giver} give to {taker}?", last)
    last = [one[2] for one in gifts if one[:2] == (giver, thing)][-1]
    return Story(tuple(facts), f"Who did {giver} give the {thing} to?", last)


def _some(random: np.random.Generator, of: Sequence[str], count: int) -> list[str]:
    return [of[int(place)] for place in random.permutation(len(of))[:count]]


def make_facts(
    kind: str, random: np.random.Generator, depth: float, text: str | None = None
) -> tuple[Item, Iterator[str]]:
    """Draws a story and the text in which it is scattered.

    Args:
      kind: of `KINDS`.
      random: draws all of it.
      depth: where the last fact lies; the others lie anywhere before it, in their order.
      text: prose to scatter them in; None for generated sentences.

    Returns:
      The item, and sentences without end.
    """
    story = make_story(kind, random)
    places = sorted(depth * random.random(len(story.facts) - 1))
    hidden = tuple(
        Hidden(f" {fact}", float(place))
        for fact, place in zip(story.facts, [*places, depth], strict=True)
    )
    item = Item(_PREFACE, hidden, f" Question: {story.question} Answer:", (story.answer,))
    if text is None:
        return item, generated(random)
    return item, sentences_of(text, int(random.integers(1 << 30)))
