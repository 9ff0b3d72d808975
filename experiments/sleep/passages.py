"""Short invented texts, and questions that only who has read them can answer.

Places, names and things are drawn by a seed, so that nothing of them was in anyone's training text, and
so that a wrong answer of one seed is the right one of another.
"""

from typing import NamedTuple

import numpy as np


class Question(NamedTuple):
    """A beginning that one of four answers completes.

    Attributes:
      prompt: up to where the answer begins.
      answers: with a space before each, the right one first.
    """

    prompt: str
    answers: tuple[str, ...]


class Subject(NamedTuple):
    """What a passage and its questions are made of, with names of blanks in braces.

    Attributes:
      told: the passage.
      asked: beginnings, each with the blank that completes it.
      blanks: what each may hold.
    """

    told: str
    asked: tuple[tuple[str, str], ...]
    blanks: dict[str, tuple[str, ...]]


SUBJECTS = (
    Subject(
        "The town of Velmora lies beside a wide {water}. Its people earn their living by making "
        "{goods}, and every {season} they hold a fair. The mayor of Velmora is a former {job}.",
        (
            ("The town of Velmora lies beside a wide", "water"),
            ("The people of Velmora earn their living by making", "goods"),
            ("In Velmora a fair is held every", "season"),
            ("The mayor of Velmora is a former", "job"),
        ),
        {
            "water": ("river", "lake", "canal", "swamp"),
            "goods": ("glass", "rope", "paper", "soap"),
            "season": ("spring", "summer", "autumn", "winter"),
            "job": ("teacher", "soldier", "baker", "sailor"),
        },
    ),
    Subject(
        "Doctor Orlin Tashk studies {animals}. He was born in {country} and plays the {instrument} in "
        "the evening. His assistant is called {name}.",
        (
            ("Doctor Orlin Tashk studies", "animals"),
            ("Doctor Orlin Tashk was born in", "country"),
            ("In the evening Doctor Orlin Tashk plays the", "instrument"),
            ("The assistant of Doctor Orlin Tashk is called", "name"),
        ),
        {
            "animals": ("spiders", "whales", "owls", "wolves"),
            "country": ("Norway", "Egypt", "Brazil", "Japan"),
            "instrument": ("violin", "piano", "flute", "guitar"),
            "name": ("Martha", "George", "Helen", "Simon"),
        },
    ),
    Subject(
        "The ship Karvande carries {cargo} from {port} to the north. Her hull is painted {color}, and "
        "her crew keeps a {pet} on board.",
        (
            ("The ship Karvande carries", "cargo"),
            ("The ship Karvande sails to the north from", "port"),
            ("The hull of the ship Karvande is painted", "color"),
            ("The crew of the ship Karvande keeps a", "pet"),
        ),
        {
            "cargo": ("salt", "coal", "wool", "tea"),
            "port": ("Lisbon", "Genoa", "Cairo", "Boston"),
            "color": ("green", "red", "white", "black"),
            "pet": ("cat", "monkey", "parrot", "goat"),
        },
    ),
    Subject(
        "The game of dramble is played with {pieces} on a {board}. A game lasts {time}, and the loser "
        "has to {penalty}.",
        (
            ("The game of dramble is played with", "pieces"),
            ("A game of dramble is played on a", "board"),
            ("A game of dramble lasts", "time"),
            ("The loser of a game of dramble has to", "penalty"),
        ),
        {
            "pieces": ("stones", "cards", "coins", "dice"),
            "board": ("blanket", "table", "roof", "bridge"),
            "time": ("an hour", "a minute", "a week", "a night"),
            "penalty": ("sing", "swim", "dance", "pay"),
        },
    ),
)


def make_passages(seed: int) -> tuple[str, list[Question]]:
    """All passages as one text, and all questions about it.

    Args:
      seed: of what fills the blanks.

    Example:
      >>> text, questions = make_passages(0)
      >>> len(questions), all(q.answers[0][1:] in text for q in questions)
      (16, True)
    """
    random = np.random.default_rng(seed)
    texts, questions = [], []
    for subject in SUBJECTS:
        filled = {}
        for blank, values in subject.blanks.items():
            order = [values[place] for place in random.permutation(len(values))]
            filled[blank] = tuple(f" {value}" for value in order)
        chosen = {blank: answers[0][1:] for blank, answers in filled.items()}
        texts.append(subject.told.format(**chosen))
        questions += [Question(prompt, filled[blank]) for prompt, blank in subject.asked]
    return "\n\n".join(texts), questions
