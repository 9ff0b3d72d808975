"""Invented people and facts about them, told and asked in several ways.

A world has a number. People of different worlds have different names, so that no fact of one is a fact of
another: a model that was trained on some worlds knows how facts are told and asked, and nothing of the
others. What can be said of people is a small vocabulary, and answers of one kind begin with different
letters. Names are new, and so that small models of bytes find them, in capitals, those of a day with
different first letters.

Facts come day by day. A friend was told of on an earlier day, so that questions such as "Where does the
friend of TAVOMI live?" need facts of two days.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hope_jax.evaluation.haystack import words

_FRIEND = "friend"
_PEOPLE = 64  # names that are kept for each world
_INITIALS, _VOWELS = "bcdfghjklmnprstvwxz", "aeiou"
SYLLABLES = [consonant + vowel for consonant in _INITIALS for vowel in _VOWELS]
_TAILS = len(_VOWELS) * len(SYLLABLES) ** 2  # names that begin with the same letter
_SAME = -(-_PEOPLE // len(_INITIALS))  # people of a world who may have it in common
WORLDS = _TAILS // _SAME


class Kind(NamedTuple):
    """What can be known of a person.

    Attributes:
      values: that there are; of friends, they are people.
      told: ways to tell it.
      asked: ways to ask for it.
    """

    values: tuple[str, ...]
    told: tuple[str, ...]
    asked: tuple[str, ...]


KINDS = {
    "home": Kind(
        words(
            "Athens, Berlin, Cairo, Dublin, Essen, Florence, Geneva, Havana, Istanbul, Jakarta, Kyoto, "
            "Lisbon, Madrid, Nairobi, Oslo, Paris"
        ),
        (
            "{name} lives in {value}.",
            "The home of {name} is {value}.",
            "{name} has a house in {value}.",
        ),
        (
            "Where does {name} live?",
            "Where is the home of {name}?",
            "In which city does {name} live?",
        ),
    ),
    "work": Kind(
        words(
            "baking, carving, dancing, farming, gardening, hunting, juggling, knitting, logging, mining, "
            "nursing, painting, roofing, sailing, teaching, weaving"
        ),
        (
            "{name} earns a living by {value}.",
            "The work of {name} is {value}.",
            "{name} is good at {value}.",
        ),
        (
            "How does {name} earn a living?",
            "What is the work of {name}?",
            "What is {name} good at?",
        ),
    ),
    "food": Kind(
        words(
            "apples, bread, cheese, dates, eggs, fish, grapes, honey, jam, kale, lemons, mangoes, nuts, "
            "olives, pears, rice"
        ),
        ("{name} eats {value}.", "The food of {name} is {value}.", "{name} asks for {value}."),
        (
            "What does {name} eat?",
            "What is the food of {name}?",
            "What does {name} ask for?",
        ),
    ),
    "pet": Kind(
        words(
            "bear, cat, dog, fox, goat, hare, jackal, koala, lamb, mouse, newt, pig, rabbit, seal, "
            "turtle, wolf"
        ),
        ("{name} keeps a {value}.", "The pet of {name} is a {value}.", "{name} feeds a {value}."),
        (
            "Which animal does {name} keep?",
            "What is the pet of {name}?",
            "Which animal does {name} feed?",
        ),
    ),
    _FRIEND: Kind(
        (),
        (
            "{name} has a friend, {value}.",
            "The friend of {name} is {value}.",
            "{name} often meets {value}.",
        ),
        (
            "Which friend has {name}?",
            "Who is the friend of {name}?",
            "Whom does {name} often meet?",
        ),
    ),
}
PHRASINGS = 3  # of each fact, and of each question


class Fact(NamedTuple):
    """One thing that is known of a person.

    Attributes:
      name: of the person.
      kind: of `KINDS`.
      value: what is known.
    """

    name: str
    kind: str
    value: str


class Question(NamedTuple):
    """A question with its answers.

    Attributes:
      prompt: up to where an answer begins.
      answer: the right one, with a space before it and a full stop.
      wrong: others of the same kind, each different from the right one.
      facts: from which the answer follows.
    """

    prompt: str
    answer: str
    wrong: tuple[str, ...]
    facts: tuple[Fact, ...]


def make_world(
    number: int,
    *,
    seed: int = 0,
    days: int = 1,
    people: int = 4,
    kinds: Sequence[str] = tuple(KINDS),
) -> tuple[tuple[Fact, ...], ...]:
    """Draws a world: for every day, new people, and a fact of each kind about each of them.

    Args:
      number: of the world, below `WORLDS`. With one seed, no two worlds share a name, whatever their
        sizes are.
      seed: of names and facts.
      days: of which each has people of its own.
      people: of a day. Those of the first day have friends among themselves, and later ones among all
        of the days before.
      kinds: of facts.

    Returns:
      The facts of each day, in a random order.

    Raises:
      ValueError: for a number that is none, more people than a world has names, a kind that is none,
        and friends for people who are alone.

    Example:
      >>> make_world(3, people=1, kinds=["home"])
      ((Fact(name='JAGEZE', kind='home', value='Oslo'),),)
    """
    if not 0 <= number < WORLDS:
        raise ValueError(f"number must lie between 0 and {WORLDS - 1}, got {number}")
    if not 0 < days * people <= _PEOPLE:
        raise ValueError(
            f"a world has 1 to {_PEOPLE} people, and {days} days of {people} are {days * people}"
        )
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"kinds has {unknown[0]!r}; there are {', '.join(KINDS)}")
    if _FRIEND in kinds and people == 1:
        raise ValueError(
            "a person alone has no friend: give at least 2 people, or kinds without it"
        )
    random = np.random.default_rng([seed, number])
    names = _names(number, seed, random)[: days * people]
    told = []
    for day in range(days):
        facts = []
        for person in range(day * people, (day + 1) * people):
            for kind in kinds:
                values: Sequence[str] = KINDS[kind].values
                if kind == _FRIEND:
                    near = names[: max(1, day) * people]
                    values = [name for name in near if name != names[person]]
                value = values[int(random.integers(len(values)))]
                facts.append(Fact(names[person], kind, value))
        told.append(tuple(facts[int(place)] for place in random.permutation(len(facts))))
    return tuple(told)


def _names(number: int, seed: int, random: np.random.Generator) -> list[str]:
    """Names of a world, of which no nineteen in a row have two that begin with the same letter."""
    initials = random.permutation(len(_INITIALS))
    names = []
    for person in range(_PEOPLE):
        turn, place = divmod(person, len(_INITIALS))
        initial = int(initials[place])
        tail = int(_orders(seed)[initial, _SAME * number + turn])
        tail, last = divmod(tail, len(SYLLABLES))
        vowel, middle = divmod(tail, len(SYLLABLES))
        parts = _INITIALS[initial], _VOWELS[vowel], SYLLABLES[middle], SYLLABLES[last]
        names.append("".join(parts).upper())
    return names


@functools.lru_cache(maxsize=4)
def _orders(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([random.permutation(_TAILS) for _ in _INITIALS])


def tell(fact: Fact, phrasing: int) -> str:
    """A fact as a sentence.

    Example:
      >>> tell(Fact("TAVOMI", "home", "Oslo"), 1)
      'The home of TAVOMI is Oslo.'
    """
    return KINDS[fact.kind].told[phrasing].format(name=fact.name, value=fact.value)


def ask(facts: Sequence[Fact], random: np.random.Generator, wrong: int = 3) -> list[Question]:
    """A question about each of some facts.

    Args:
      facts: that are asked for.
      random: draws the phrasings and the wrong answers.
      wrong: answers to each question, what is true of others as far as it goes: it is not enough to
        know what there is talk of.

    Raises:
      ValueError: if there are fewer of a kind.

    Example:
      >>> (question,) = ask([Fact("TAVOMI", "home", "Oslo")], np.random.default_rng(0))
      >>> question[:3]
      ('Where is the home of TAVOMI?', ' Oslo.', (' Cairo.', ' Lisbon.', ' Dublin.'))
    """
    return [_question(fact.name, (fact,), facts, random, wrong) for fact in facts]


def ask_joined(
    friendships: Sequence[Fact],
    facts: Sequence[Fact],
    random: np.random.Generator,
    wrong: int = 3,
) -> list[Question]:
    """The questions that need a friendship of some facts and what others tell of the friend.

    Args:
      friendships: facts, of one day, say.
      facts: of another day, or the same ones.
      random: as for `ask`.
      wrong: as for `ask`.

    Example:
      >>> later, earlier = [Fact("RULEBO", "friend", "TAVOMI")], [Fact("TAVOMI", "home", "Oslo")]
      >>> ask_joined(later, earlier, np.random.default_rng(0))[0].prompt
      'Where is the home of the friend of RULEBO?'
    """
    return [
        _question(f"the friend of {link.name}", (link, fact), facts, random, wrong)
        for link in friendships
        for fact in facts
        if link.kind == _FRIEND and link.value == fact.name
    ]


def _question(
    who: str,
    rests_on: tuple[Fact, ...],
    facts: Sequence[Fact],
    random: np.random.Generator,
    wrong: int,
) -> Question:
    fact = rests_on[-1]
    kind = KINDS[fact.kind]
    near = {other.value for other in facts if other.kind == fact.kind}
    rest = set(kind.values) or {other.name for other in facts}
    others = []
    for some in (near, rest - near):
        listed = sorted(some - {fact.value})  # a set's own order is not the same in every process
        others += [listed[int(place)] for place in random.permutation(len(listed))]
    if len(others) < wrong:
        raise ValueError(f"wrong={wrong}, but there are {len(others)} other answers to {fact}")
    prompt = kind.asked[int(random.integers(PHRASINGS))].format(name=who)
    said = [f" {value}." for value in (fact.value, *others[:wrong])]
    return Question(prompt, said[0], tuple(said[1:]), rests_on)


def documents(
    count: int = 1000,
    first: int = 0,
    length: int = 512,
    people: Sequence[int] = (2, 3, 4),
    kinds: Sequence[int] = (1, 2, 3),
    seed: int = 0,
) -> Iterator[str]:
    """Texts that tell the facts of a world and ask for them, with answers: a `data.source`.

    All have the same length, so that the windows of training are whole documents where
    `data.sequence_length` is that.

    Args:
      count: of documents, each of a world of its own.
      first: number of the first world.
      length: of each document, in bytes.
      people: of whom each document has one number, drawn.
      kinds: of facts about each person, likewise; which ones is drawn too.
      seed: of the worlds.

    Raises:
      ValueError: if a document has no room for a question, and as `make_world`.

    Example:
      >>> print(next(documents(length=120, people=(2,), kinds=(1,))).strip())
      The work of DIJIBU is logging.
      The work of NANAME is baking.
      How does NANAME earn a living? baking.
    """
    for number in range(first, first + count):
        random = np.random.default_rng([seed, number, 1])
        some = random.permutation(list(KINDS))[: _one_of(kinds, random)].tolist()
        (facts,) = make_world(number, seed=seed, people=_one_of(people, random), kinds=some)
        lines = [tell(fact, int(random.integers(PHRASINGS))) for fact in facts]
        text = "\n".join(lines) + "\n"
        asked: list[Question] = []
        while True:
            if not asked:
                asked = ask(facts, random, 0) + ask_joined(facts, facts, random, 0)
                asked = [asked[int(place)] for place in random.permutation(len(asked))]
            question = asked.pop()
            line = f"{question.prompt}{question.answer}\n"
            if len(text) + len(line) > length:
                break
            text += line
        if "?" not in text:
            raise ValueError(f"length={length} leaves no room for a question; give more")
        yield text.ljust(length, "\n")


def _one_of(numbers: Sequence[int], random: np.random.Generator) -> int:
    return int(numbers[int(random.integers(len(numbers)))])
