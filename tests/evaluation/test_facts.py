"""Stories, read by a reader of their sentences that knows nothing of how they were drawn."""

import re
from collections import Counter

import numpy as np
import pytest

from hope_jax.data.tokenizers import ByteTokenizer
from hope_jax.evaluation.facts import KINDS, make_facts, make_story
from hope_jax.evaluation.questions import lay_out

WENT = re.compile(r"(\w+) (?:moved|went|travelled|journeyed|went back) to the (\w+)\.")
TOOK = re.compile(r"(\w+) (?:got|took|picked up|grabbed) the (\w+)\.")
LEFT = re.compile(r"(\w+) (?:dropped|left|put down|discarded) the (\w+)\.")
GAVE = re.compile(r"(\w+) (?:gave|handed|passed) the (\w+) to (\w+)\.")
LIES = re.compile(r"The (\w+) is (north|south|east|west) of the (\w+)\.")


def answer(facts, question):
    """What follows from facts."""
    at, has, path, gifts, lies = {}, {}, {}, [], []

    def come(thing, place):
        if path.setdefault(thing, [place])[-1] != place:
            path[thing].append(place)

    for fact in facts:
        if found := GAVE.fullmatch(fact):
            gifts.append(found.groups())
        elif found := LIES.fullmatch(fact):
            lies.append(found.groups())
        elif found := TOOK.fullmatch(fact):
            who, thing = found.groups()
            assert thing not in has and path.get(thing, [at[who]])[-1] == at[who]
            has[thing] = who
            come(thing, at[who])
        elif found := LEFT.fullmatch(fact):
            assert has.pop(found[2]) == found[1]
        else:
            who, place = WENT.fullmatch(fact).groups()
            assert at.get(who) != place
            at[who] = place
            for thing, holder in has.items():
                if holder == who:
                    come(thing, place)
    if found := re.fullmatch(r"Where is ([A-Z]\w+)\?", question):
        return at[found[1]]
    if found := re.fullmatch(r"Where is the (\w+)\?", question):
        return path[found[1]][-1]
    if found := re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question):
        places = path[found[1]]
        assert places.count(found[2]) == 1
        return places[places.index(found[2]) - 1]
    if found := re.fullmatch(r"What is (\w+) of the (\w+)\?", question):
        (one,) = [one for one, side, other in lies if (side, other) == found.groups()]
        return one
    if found := re.fullmatch(r"What is the (\w+) (\w+) of\?", question):
        (other,) = [other for one, side, other in lies if (one, side) == found.groups()]
        return other
    if found := re.fullmatch(r"Who gave the (\w+) to (\w+)\?", question):
        return [giver for giver, thing, taker in gifts if (thing, taker) == found.groups()][-1]
    if found := re.fullmatch(r"What did (\w+) give to (\w+)\?", question):
        return [thing for giver, thing, taker in gifts if (giver, taker) == found.groups()][-1]
    found = re.fullmatch(r"Who did (\w+) give the (\w+) to\?", question)
    return [taker for giver, thing, taker in gifts if (giver, thing) == found.groups()][-1]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_from_the_facts(kind):
    stories = [make_story(kind, np.random.default_rng(seed)) for seed in range(150)]
    assert all(answer(story.facts, story.question) == story.answer for story in stories)
    assert len({(story.facts, story.question) for story in stories}) > 140
    answers = Counter(story.answer for story in stories)
    assert len(answers) >= 8 and max(answers.values()) < 40  # no word is a good guess
    if kind == "gifts":
        assert len({story.question.split()[1] for story in stories}) >= 2
    again = make_story(kind, np.random.default_rng(7))
    assert again == stories[7]


def test_facts_are_needed_and_not_the_last_one_alone():
    for kind in ("two", "three", "gifts"):
        stories = [make_story(kind, np.random.default_rng(seed)) for seed in range(100)]
        named = sum(story.answer in story.facts[-1] for story in stories)
        assert named < 60


@pytest.mark.parametrize("depth", [0.2, 1.0])
def test_facts_stand_in_the_text_in_their_order_up_to_their_depth(depth):
    for seed in range(5):
        item, haystack = make_facts("two", np.random.default_rng(seed), depth)
        text = ByteTokenizer().decode(lay_out(item, haystack, ByteTokenizer(), 9000))
        assert text.endswith(item.question) and item.question.endswith("? Answer:")
        place = 0
        for hidden in item.hidden:
            place = text.index(hidden.sentence, place + 1)
        assert abs(place / len(text) - depth) < 0.1
        facts = [hidden.sentence.strip() for hidden in item.hidden]
        question = item.question.removeprefix(" Question: ").removesuffix(" Answer:")
        assert (answer(facts, question),) == item.answers
