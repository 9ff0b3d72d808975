"""The experiment of ten nights: its days, what a night leaves alone, and what is made of its trials."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.expansion import experts_of, with_experts
from tests.sleep.conftest import reader_with

SHORT = SleepConfig(
    steps=2, samples=2, kept_samples=4, tokens=4, lam=0.0, a=1.0, experts=3, expert_width=4
)


@pytest.fixture
def ten(scripts, monkeypatch):
    """The experiment with few texts."""
    module = scripts["ten_nights"]
    for name, value in {"LINES": 6, "TEXTS": 6, "PART": 16, "PIECE": 10}.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def worlds(ten, tokenizer):
    return ten.days_of(tokenizer, 0)


def test_each_day_tells_of_other_people_and_asks_for_them(ten, worlds):
    people = [{question.facts[0].name for question in world.questions} for world in worlds]
    assert len(worlds) == ten.DAYS and {len(some) for some in people} == {ten.PEOPLE}
    assert len(set.union(*people)) == ten.DAYS * ten.PEOPLE
    for world, names in zip(worlds, people, strict=True):
        assert all(any(name in line for name in names) for line in world.lines)
        assert len(world.questions) == 2 * len(world.lines) == 16


def test_openings_are_taken_equally_often(ten):
    taken = np.bincount(ten.evenly(np.arange(7), 24))
    assert len(taken) == 7 and set(taken.tolist()) == {3, 4}


def test_a_night_adds_an_expert_and_leaves_those_of_earlier_nights(ten, reader, worlds):
    awake, states = ten.Awake(reader.params), []
    for night in range(2):
        awake, _ = ten.night_of(reader, awake, worlds[night], night, 0.1, 0.0, SHORT)
        states.append(experts_of(awake.state))
    first, second = states
    in_use = [np.asarray(one.active).any((0, 1, 2)).tolist() for one in states]
    assert in_use == [[True, False, False], [True, True, False]]
    for old, new in zip(first[:3], second[:3], strict=True):
        np.testing.assert_array_equal(old[:, :, :, 0], new[:, :, :, 0])
    assert np.asarray(second.up)[:, :, :, 1].any()
    assert awake.params is reader.params


def test_a_slower_level_sleeps_half_as_often_and_hands_on_what_it_was_handed(
    ten, scripts, tokenizer, worlds, monkeypatch
):
    reader, awake, heard, asked = reader_with(scripts, tokenizer, 2), [], [], []
    told = ten.sleep

    def sleep(*args, prompts, **more):
        asked.append(" ".join(map(tokenizer.decode, prompts)))
        return told(*args, prompts=prompts, **more)

    monkeypatch.setattr(ten, "sleep", sleep)
    awake.append(ten.Awake(reader.params))

    def own(reader, known, seed):
        heard.append(known.met)
        return ten.own_answers(reader, known, seed)

    for night in range(4):
        given = reader, awake[-1], worlds[night], night, 0.1, 0.0, SHORT, own, True
        then, found = ten.night_of(*given)
        awake.append(then)
        assert len(found["divergence"]) == 1 + night % 2
    in_use = [np.asarray(experts_of(one.state).active)[0, 0].sum(-1).tolist() for one in awake[1:]]
    assert in_use == [[1, 0], [0, 1], [1, 1], [0, 2]]
    # Of the days that a level has not slept upon it is to learn, and is not held to what it says of them.
    met = awake[-1].met
    assert heard == [met[:days] for days in (1, 2, 3, 2)]
    # Level 0 in all four nights, level 1 in the second and fourth.
    named = [[day for day, some in enumerate(met) if some[0] in texts] for texts in asked]
    assert named == [[], [], [0, 1], [], [], [2, 3]]


def test_there_is_room_for_the_experts_of_all_nights(ten):
    assert [ten.night_with(levels)["experts"] for levels in (1, 2, 3, 4)] == [10, 5, 2, 2]


def test_further_levels_say_nothing_when_their_training_begins(ten, scripts, tokenizer, reader):
    deeper = reader_with(scripts, tokenizer, 3)
    given = jax.tree.map(lambda leaf: leaf, reader.params) | {"log_step": jnp.full((1, 1), 0.5)}
    params = scripts["facts_pretrain"].deepened(deeper.params, given)
    tokens = np.random.default_rng(0).integers(tokenizer.vocab_size, size=(2, 20))
    theirs, _ = jax.jit(reader.model.apply)({"params": reader.params}, tokens)
    ours, _ = jax.jit(deeper.model.apply)({"params": params}, tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert params["log_step"].tolist() == [[0.5, 0.0, 0.0]]
    assert params["blocks"]["continuum"]["level_2"]["up"]["kernel"].any()


@pytest.mark.parametrize("how", ["own_words", "own_answers"])
def test_half_of_what_is_rehearsed_is_one_s_own(ten, reader, worlds, monkeypatch, how):
    own, given, told = getattr(ten, how), [], ten.sleep

    def sleep(*args, rehearsed, **more):
        given.append(rehearsed)
        return told(*args, rehearsed=rehearsed, **more)

    monkeypatch.setattr(ten, "sleep", sleep)
    awake = ten.Awake(reader.params)
    for night in range(2):
        if night:
            said = own(reader, awake, night)
        awake, _ = ten.night_of(reader, awake, worlds[night], night, 0.1, 0.0, SHORT, own)
    documents = [
        ten.other_documents(reader.tokenizer, night, ten.TEXTS, ten.PART) for night in range(2)
    ]
    np.testing.assert_array_equal(given[0], documents[0])
    np.testing.assert_array_equal(given[1][::2], documents[1][::2])
    np.testing.assert_array_equal(given[1][1::2], said)
    # It is who has slept that speaks.
    loud = jax.tree.map(
        lambda leaf: leaf * 100 if leaf.dtype != bool else leaf, experts_of(awake.state)
    )
    changed = awake._replace(state=with_experts(awake.state, loud))
    assert (own(reader, changed, 1) != own(reader, awake, 1)).any()


def test_one_s_own_words_begin_to_ask_and_one_s_own_questions_are_about_those_one_has_met(
    ten, reader
):
    decode, awake = (
        reader.tokenizer.decode,
        ten.Awake(reader.params, met=(("TAVOMI",), ("BEGANE",))),
    )
    begun = {decode(opening) for opening in ten.questions_begun(reader.tokenizer)}
    assert {decode(row[:1]) for row in ten.own_words(reader, awake, 0)} <= begun
    lines = ten.own_answers(reader, awake, 0).reshape(-1, 8)
    for question in (decode(line[:5]) for line in lines):
        assert question[-1] == "?" and any(name in question for name in ("TAVOMI", "BEGANE"))


def test_elastic_weights_hold_what_mattered_on_earlier_days(ten, reader, worlds):
    settings = SleepConfig(steps=6, samples=4, lam=0.0, a=1.0)
    first, _ = ten.tuned(reader, ten.Awake(reader.params), worlds[0], 0, 1e-2, 1e3, settings)
    moved = []
    for strength in (0.0, 1e3):
        second, _ = ten.tuned(reader, first, worlds[1], 1, 1e-2, strength, settings)
        gone = jax.tree.map(
            lambda new, old, mattered: np.sum(mattered * (new - old) ** 2),
            *jax.tree.map(np.asarray, (second.params, first.params, first.held.fisher)),
        )
        moved.append(float(sum(jax.tree.leaves(gone))))
    assert 0 < moved[1] < 0.5 * moved[0]
    for new, old in zip(
        jax.tree.leaves(second.held.fisher), jax.tree.leaves(first.held.fisher), strict=True
    ):
        assert (new >= old).all()  # of all days so far


def row_of(ten, arm, seed, score=0.5):
    """A trial whose days are right after their own nights, and by a score afterwards."""
    won = [[0.25] * ten.DAYS]
    for night in range(ten.DAYS):
        won.append(
            [score if day < night else 1.0 if day == night else 0.25 for day in range(ten.DAYS)]
        )
    asked = [{"won": some, "log_likelihood": [-1.0] * ten.DAYS} for some in won]
    key = {"arm": arm, "seed": seed, "rate": 0.1, "strength": 0.0, "days": ten.DAYS}
    key |= {"levels": 1, "night": ten.night_with(1)}
    return key | {"read": [{"won": 1.0}], "asked": asked, "other": [2.0, 2.1], "seconds": 3.0}


def test_a_table_tells_what_is_left_and_what_is_forgotten(ten, tmp_path):
    path = tmp_path / "trials.jsonl"
    for seed in (0, 1, 2, 1000):
        ten.add_json_line(path, row_of(ten, "sleep", seed))
    ten.add_json_line(path, row_of(ten, "sleep", 0, 1.0) | {"rate": 0.3})  # of fewer worlds
    ten.add_json_line(path, row_of(ten, "fine-tuning", 1))
    groups = ten.reported(path)
    assert {name: [row["seed"] for row in rows] for name, rows in groups.items()} == {
        ("sleep", 1): [0, 1, 2],
        ("fine-tuning", 1): [1],
    }
    *_, line, _ = ten.table(groups).splitlines()
    cells = "100 ± 0 | 100 ± 0 | 55 ± 0 | 50 ± 0 | 50 ± 0 | -1 ± 0 | 5 ± 0 | 0.1 | 0 | 3"
    assert line == f"| sleep | {cells} |"
    ten.draw(groups, tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 1000


def test_strengths_are_chosen_at_the_rate_of_fine_tuning_with_other_documents(
    ten, reader, monkeypatch, tmp_path
):
    tried = []

    def trial(self, name, seed, rate, strength, days):
        tried.append((name, rate, strength))
        assert (seed, days) == (1000, ten.CHOOSING)
        likely = -abs(math.log(rate / 3e-3)) - abs(math.log((strength or 1.0) / 100))
        # Only what is left after the last night counts.
        nights = [{"log_likelihood": [0.0, 9.0 * rate]}, {"log_likelihood": [likely, likely]}]
        return {"asked": nights}

    monkeypatch.setattr(ten.Experiment, "trial", trial)
    experiment = ten.Experiment(reader, tmp_path / "trials.jsonl")
    assert experiment.chosen("elastic weight consolidation") == (3e-3, 100.0)
    assert {name for name, _, strength in tried if not strength} == {ten.TUNING}
    assert experiment.chosen("fine-tuning") == (3e-3, 0.0)
