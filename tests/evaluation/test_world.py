"""Worlds, read by a reader of their sentences that knows nothing of how they were drawn."""

import itertools
import re

import numpy as np
import pytest

from hope_jax.evaluation.world import KINDS, WORLDS, ask, ask_joined, documents, make_world, tell

TOLD = {
    "home": r"(\w+) lives in (\w+)|The home of (\w+) is (\w+)|(\w+) has a house in (\w+)",
    "work": r"(\w+) earns a living by (\w+)|The work of (\w+) is (\w+)|(\w+) is good at (\w+)",
    "food": r"(\w+) eats (\w+)|The food of (\w+) is (\w+)|(\w+) asks for (\w+)",
    "pet": r"(\w+) keeps a (\w+)|The pet of (\w+) is a (\w+)|(\w+) feeds a (\w+)",
    "friend": r"(\w+) has a friend, (\w+)|The friend of (\w+) is (\w+)|(\w+) often meets (\w+)",
}
WHO = r"((?:the friend of )?[A-Z]\w+)"
ASKED = {
    "home": f"Where does {WHO} live|Where is the home of {WHO}|In which city does {WHO} live",
    "work": f"How does {WHO} earn a living|What is the work of {WHO}|What is {WHO} good at",
    "food": f"What does {WHO} eat|What is the food of {WHO}|What does {WHO} ask for",
    "pet": f"Which animal does {WHO} keep|What is the pet of {WHO}|Which animal does {WHO} feed",
    "friend": f"Which friend has {WHO}|Who is the friend of {WHO}|Whom does {WHO} often meet",
}


def parsed(patterns, text):
    """The one kind whose pattern fits, which phrasing it is, and what is in it."""
    found = [
        (kind, place, *(group for group in match.groups() if group))
        for kind, pattern in patterns.items()
        for place, one in enumerate(pattern.split("|"))
        if (match := re.fullmatch(one, text))
    ]
    (only,) = found
    return only


def learnt(sentences):
    """What is told, by name and kind; nothing is told twice."""
    known = {}
    for sentence in sentences:
        kind, _, name, value = parsed(TOLD, sentence.removesuffix("."))
        assert sentence.endswith(".") and (name, kind) not in known
        known[name, kind] = value
    return known


def answer(known, prompt):
    kind, _, who = parsed(ASKED, prompt.removesuffix("?"))
    assert prompt.endswith("?")
    if who.startswith("the friend of "):
        who = known[who.removeprefix("the friend of "), "friend"]
    return known[who, kind]


def test_every_question_has_one_answer_and_the_wrong_ones_are_wrong():
    seen = set()
    for number in range(20):
        random = np.random.default_rng(number)
        days = make_world(number, days=3)
        facts = [fact for day in days for fact in day]
        known = learnt([tell(fact, int(random.integers(3))) for fact in facts])
        assert len(known) == len(facts) == 3 * 4 * len(KINDS)
        questions = ask(facts, random)
        assert len(questions) == len(facts)
        questions += ask_joined(facts, facts, random)
        assert len(questions) == len(facts) + 12 * len(KINDS)
        names = {fact.name for fact in facts}
        for question in questions:
            kind, phrasing, _ = parsed(ASKED, question.prompt.removesuffix("?"))
            seen.add((kind, phrasing))
            right = question.answer.removesuffix(".").removeprefix(" ")
            assert question.answer == f" {right}." and right == answer(known, question.prompt)
            wrong = {one.removesuffix(".").removeprefix(" ") for one in question.wrong}
            assert len(wrong) == 3 and right not in wrong
            assert wrong <= (names if kind == "friend" else set(KINDS[kind].values))
            # What is true of others, so that it is not enough to know what there is talk of.
            told = {value for (_, other), value in known.items() if other == kind}
            assert len(wrong & told) == min(3, len(told - {right}))
            assert all(fact in facts for fact in question.facts)
    assert len(seen) == 3 * len(KINDS)
    said = {(fact.kind, place): tell(fact, place) for fact in facts for place in range(3)}
    assert len(set(said.values())) == 3 * len(KINDS)


def test_answers_of_a_kind_begin_with_different_letters():
    for kind in KINDS.values():
        assert len({value[0] for value in kind.values}) == len(kind.values)


def test_facts_of_two_days_are_joined():
    first, second, third = make_world(5, days=3, people=4)
    random = np.random.default_rng(0)
    assert not ask_joined(first, second, random) and not ask_joined(second, third, random)
    joined = ask_joined(third, first, random) + ask_joined(third, second, random)
    assert len(joined) == 4 * len(KINDS)
    for question in joined:
        link, fact = question.facts
        assert link in third and fact in first + second and link.value == fact.name
        assert answer(learnt([tell(link, 0), tell(fact, 0)]), question.prompt) in question.answer


def names_of(number, **settings):
    return {fact.name for day in make_world(number, **settings) for fact in day}


def test_no_two_worlds_share_a_name():
    sizes = itertools.cycle([{"people": 4}, {"people": 8, "days": 8}, {"people": 64}])
    numbers = [*range(90), WORLDS - 1]
    worlds = [names_of(number, **size) for number, size in zip(numbers, sizes, strict=False)]
    assert len(set().union(*worlds)) == sum(map(len, worlds)) > 91 * 4


def test_names_of_a_day_begin_with_different_letters():
    for number in range(20):
        for day in make_world(number, days=3, people=19):
            names = {fact.name for fact in day}
            assert len({name[0] for name in names}) == len({name[1:] for name in names}) == 19


def test_a_seed_makes_a_world():
    assert make_world(7, days=2) == make_world(7, days=2)
    assert make_world(7, days=2) != make_world(7, days=2, seed=1)
    assert names_of(7, days=2, people=2) == names_of(7, people=4)
    assert list(documents(3)) == list(documents(3))
    for _ in range(2):
        random = np.random.default_rng(3)
        first = ask(make_world(7)[0], random)
        assert first == ask(make_world(7)[0], np.random.default_rng(3))


def test_documents_tell_before_they_ask():
    texts = list(documents(40, first=9, length=256, people=(2, 3), kinds=(1, 2)))
    worlds, joined = [], 0
    for text in texts:
        assert len(text.encode()) == 256
        lines = text.rstrip("\n").split("\n")
        facts = [line for line in lines if "?" not in line]
        assert lines[: len(facts)] == facts and len(facts) < len(lines)
        known = learnt(facts)
        worlds.append({name for name, _ in known})
        for line in lines[len(facts) :]:
            prompt, said = re.fullmatch(r"(.*\?) (\w+)\.", line).groups()
            assert answer(known, prompt) == said
            joined += "the friend of" in prompt and "Who is" not in prompt
    assert len(set().union(*worlds)) == sum(map(len, worlds)) and joined
    assert set().union(*worlds) <= set().union(*(names_of(number) for number in range(9, 49)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_world(WORLDS), f"number must lie between 0 and {WORLDS - 1}, got {WORLDS}"),
        (lambda: make_world(0, days=9, people=8), "9 days of 8 are 72"),
        (lambda: make_world(0, kinds=["hat"]), "kinds has 'hat'; there are home, work"),
        (lambda: make_world(0, people=1), "a person alone has no friend"),
        (lambda: next(documents(length=30)), "length=30 leaves no room for a question"),
        (
            lambda: ask(make_world(0, people=2, kinds=["friend"])[0], np.random.default_rng(0)),
            "wrong=3, but there are 1 other answers to",
        ),
    ],
)
def test_what_cannot_be_made_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
