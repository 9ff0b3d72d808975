"""The experiment on dreams: what is read and asked, how dreams are tried, what is told of them."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.data.tokenizers import load_tokenizer
from hope_jax.inference.sampling import sample
from hope_jax.models.language_model import init_state
from hope_jax.sleep.cycle import begin_lesson
from hope_jax.sleep.expansion import make_room
from hope_jax.sleep.samples import Samples, in_rows
from tests.sleep.conftest import reader_with


@pytest.fixture(scope="module")
def tokenizers(scripts, tmp_path_factory):
    """Without friends, and with them."""
    found = []
    for friends in (False, True):
        path = str(tmp_path_factory.mktemp("words") / "words.json")
        scripts["words"].make_tokenizer(friends).save(path)
        found.append(load_tokenizer(path))
    return found


@pytest.fixture(scope="module")
def reader(scripts, tokenizers):
    return reader_with(scripts, tokenizers[1], 1)


def facts_in(scripts, text):
    """Each fact that a text tells, by who is told of and its kind."""
    found = {}
    for line in text.split("\n"):
        for name, kind in scripts["dreaming"].KINDS.items():
            for way in kind.told:
                pattern = re.escape(way).replace(r"\{name\}", "([A-Z]+)")
                if match := re.fullmatch(pattern.replace(r"\{value\}", r"(\w+)"), line):
                    found[match[1], name] = match[2]
    return found


def test_documents_with_friends_answer_what_joins_two_of_their_facts(scripts, tokenizers):
    pretrain, (bare, tokenizer) = scripts["facts_pretrain"], tokenizers
    assert bare.vocab_size < tokenizer.vocab_size
    for ids in range(bare.vocab_size):
        assert bare.decode([ids]) == tokenizer.decode([ids])
    joined = 0
    for world in range(12):
        assert "friend" not in bare.decode(pretrain.document(bare, world, 150)[0])
        ids, known = pretrain.document(tokenizer, world, 400)
        text = tokenizer.decode(ids)
        assert 0 not in ids and tokenizer.encode(text).tolist() == ids.tolist()
        told = facts_in(scripts, text)
        for kind, name in itertools.product(pretrain.USED, {name for name, _ in told}):
            for way in scripts["dreaming"].KINDS[kind].asked:
                asked = way.format(name=f"the friend of {name}")
                for said in re.findall(re.escape(asked) + r" (\w+)\.", text):
                    joined += 1
                    if known.any():  # else nobody may have told it
                        assert said == told[told[name, "friend"], kind]
    assert joined > 50


def test_nobody_is_asked_for_the_friend_of_a_friend(scripts):
    pretrain = scripts["facts_pretrain"]
    facts = pretrain.facts_of(3, 4, 3, friends=True)
    joined = pretrain.joined_of(facts, facts, np.random.default_rng(0))
    assert joined and all(question.facts[-1].kind in pretrain.USED for question in joined)


def test_parameters_grow_with_the_vocabulary_alone(scripts):
    old = {"embedding": np.ones((2, 3)), "other": np.ones(4), "gone": np.ones(1)}
    new = {"embedding": jnp.zeros((3, 3)), "other": jnp.zeros(4), "more": jnp.zeros(2)}
    begun = scripts["facts_pretrain"].deepened(new, old)
    assert begun["embedding"].tolist() == [[1] * 3, [1] * 3, [0] * 3]
    assert begun["other"].tolist() == [1] * 4 and begun["more"].tolist() == [0, 0]
    assert set(begun) == set(new)


def test_questions_join_facts_of_two_days_and_those_reported_are_of_others(scripts, tokenizers):
    life = scripts["dreaming"].life_of(tokenizers[1], 0)
    told = [facts_in(scripts, "\n".join(day.lines)) for day in life.days]
    people = []
    for questions in (life.tried + life.reworded, life.asked):
        assert len(questions) == 2 * 4 * 3 == len({question.prompt for question in questions})
        for question in questions:
            link, fact = question.facts
            earlier, later = told
            assert later[link.name, "friend"] == fact.name == link.value
            assert question.answer == f" {earlier[fact.name, fact.kind]}."
            assert link.name not in {name for name, _ in earlier}
            assert link.name in question.prompt and fact.name not in question.prompt
        people.append({question.facts[0].name for question in questions})
    assert len(people[0]) == len(people[1]) == 2 and not people[0] & people[1]
    assert len(life.tried) == 2 * 4 and len(life.recalled) == 4 * 4 * 9
    for question in life.days[1].questions:  # for friends
        parts = (question.prompt, question.answer)
        ids = np.concatenate([tokenizers[1].encode(part) for part in parts])
        assert ids.tolist() == tokenizers[1].encode("".join(parts)).tolist() and 0 not in ids
    values = {question.answer.strip(" .") for day in life.days for question in day.questions}
    for first, then in life.recalled:
        (about,) = [name for name in people[0] | people[1] if name in first]
        assert "{friend}" in then and not [value for value in values if value in first + then]


def test_lines_end_where_the_reader_ends_them_and_two_are_recalled_each_by_itself(
    scripts, reader, monkeypatch
):
    dreaming = scripts["dreaming"]
    monkeypatch.setattr(dreaming, "TEMPERATURE", 0.0)
    life = dreaming.life_of(reader.tokenizer, 0)
    state = make_room(reader.model, init_state(reader.model, reader.params, 1), 1, 2)
    woken = dreaming.Context(state, jnp.zeros((1, reader.tokenizer.vocab_size)))
    texts = [first for first, _ in life.recalled[:20:5]]
    for text, whole in zip(
        texts, dreaming.finished(reader, woken, texts, jax.random.key(0)), strict=True
    ):
        ids = reader.tokenizer.encode(text)[None]
        context = dreaming.read(reader.model, reader.params, ids)
        said, _ = sample(
            reader.model,
            reader.params,
            context,
            jax.random.key(0),
            num_tokens=dreaming.LINE,
            temperature=0.0,
        )
        line = reader.tokenizer.decode(np.asarray(said[0])).split("\n")[0]
        assert whole == f"{text}{line}\n"
    given = []

    def finished(_, __, texts, ___):
        given.append(texts)
        return [f"{text}{'RULEBO' if len(given) == 1 else ' Oslo'}.\n" for text in texts]

    monkeypatch.setattr(dreaming, "finished", finished)
    monkeypatch.setattr(dreaming, "finished", finished)
    told = dreaming.recall(reader, woken, life, jax.random.split(jax.random.key(0)))
    for (link, fact), text in zip(life.recalled, told, strict=True):
        two = f"{link}RULEBO.\n{fact.format(friend='RULEBO')} Oslo.\n"
        assert text == f"{two}\n{two}"
    assert given[1] == [fact.format(friend="RULEBO") for _, fact in life.recalled]


def test_answers_in_dreams_are_told_right_from_wrong(scripts, tokenizers):
    dreaming = scripts["dreaming"]
    life = dreaming.life_of(tokenizers[1], 0)
    first, second = life.tried[0], life.asked[0]
    (fact, *_) = life.days[0].questions
    lines = [
        life.days[0].lines[0],
        f"{first.prompt}{first.answer}",
        f"{fact.prompt}{fact.answer}",
        f"{second.prompt}{second.wrong[0]}",
        f"{second.prompt}{second.answer}"[:-1],  # where the dream ends
    ]
    assert dreaming.joined_said(life, "\n".join(lines)) == [True, False]


def test_trials_are_told_by_who_is_dreamt_of_and_whether_the_answer_is_right(scripts, tokenizers):
    dreaming, tokenizer = scripts["dreaming"], tokenizers[1]
    life = dreaming.life_of(tokenizer, 0)
    known, other = life.tried[0], life.asked[0]
    texts = [
        f"{one.prompt}{said}\n" for one in (known, other) for said in (one.answer, one.wrong[0])
    ]
    texts += ["LULULU eats rice.\n", texts[0], texts[3]]
    rows, ends = in_rows([tokenizer.encode(text) for text in texts])
    tried = np.array([5, 1, 2, 3, 4])  # without the first and the last
    found = dreaming.told_of(
        tokenizer,
        life,
        dreaming.Dreams(
            samples=Samples(rows[None], 0 * ends[None], ends[None]),
            norms=None,
            tried=tried[None],
            scores=np.array([[5.0, 4, 3, 2, 1]]),
            reward=np.array([[1.0, 0, 0, 1, 1]]),
            losses=np.zeros((1, 2)),
            before=np.zeros(1),
            after=np.ones(1),
        ),
    )
    assert found["trials"] == {"tried": [[1, 1], [0, 1]], "others": [[0, 1], [1, 1]]}
    assert found["said"] == {"all": [3, 6], "tried": [2, 4], "helped": [1, 2]}
    assert found["helped"] == 0.6 and found["examples"][texts[0]] == 5


def test_dreams_are_tried_by_the_choice_among_four_answers(scripts, reader):
    dreaming = scripts["dreaming"]
    questions = dreaming.life_of(reader.tokenizer, 0).tried[:5]
    state = dreaming.read(reader.model, reader.params, jnp.zeros((1, 3), jnp.int32)).state
    found = dreaming.log_likelihoods(
        reader.model,
        reader.params,
        reader.tokenizer,
        [question.prompt for question in questions],
        [(question.answer, *question.wrong) for question in questions],
        state,
    )
    chances = np.exp(found) / np.exp(found).sum(1, keepdims=True)
    score = dreaming.score_by(reader.tokenizer, questions)
    got = score(reader.model, reader.params, state)
    np.testing.assert_allclose(got, np.log(chances[:, 0]).mean(), rtol=1e-4)


@pytest.fixture
def experiment(scripts, reader, monkeypatch, tmp_path):
    """Small nights and few dreams."""
    dreaming = scripts["dreaming"]
    monkeypatch.setattr(scripts["facts"], "DOCUMENTS", 6)
    monkeypatch.setattr(scripts["facts"], "PART", 12)
    small = dict(steps=1, samples=2, kept_samples=4, tokens=4, expert_width=2)
    monkeypatch.setattr(dreaming, "NIGHT", dataclasses.replace(dreaming.NIGHT, **small))
    small = dict(dreams=129, dream_tokens=6, trial_steps=1, dream_steps=2)
    monkeypatch.setattr(dreaming, "DREAMING", dataclasses.replace(dreaming.DREAMING, **small))
    return dreaming.Experiment(reader, tmp_path / "nights", tmp_path / "trials.jsonl")


def test_nights_are_two_and_kept_in_a_file(scripts, reader, experiment):
    dreaming = scripts["dreaming"]
    life = dreaming.life_of(reader.tokenizer, 0)
    woken = dreaming.kept_nights(reader, life, 0, experiment.nights)
    assert dreaming.experts_of(woken.state).active.all()
    again = dreaming.kept_nights(reader, None, 0, experiment.nights)  # not slept anew
    for one, other in zip(jax.tree.leaves(woken), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_half_of_what_is_rehearsed_is_remembered_and_dreams_rehearse_it_but_for_an_arm(
    scripts, reader, experiment, monkeypatch
):
    dreaming = scripts["dreaming"]
    life = dreaming.life_of(reader.tokenizer, 0)
    state = make_room(reader.model, init_state(reader.model, reader.params, 1), 1, 2)
    woken = dreaming.Context(state, jnp.zeros((1, reader.tokenizer.vocab_size)))
    monkeypatch.setattr(
        dreaming, "finished", lambda _, __, texts, ___: [f"{text}MOMO.\n" for text in texts]
    )
    bare = dreaming.other_documents(reader.tokenizer, 0)[:, : dreaming.PART]
    np.testing.assert_array_equal(dreaming.rehearsed_by(reader, None, [], 0), bare)
    rows = dreaming.rehearsed_by(reader, woken, life.days, 0)
    np.testing.assert_array_equal(rows[1::2], bare[1::2])
    # As they were remembered, cut anywhere in the last line.
    own = [line for row in rows[::2] for line in reader.tokenizer.decode(row).split("\n")[:-1]]
    assert own and all(line.endswith("MOMO.") for line in own)
    given = []
    monkeypatch.setattr(dreaming, "dream", lambda *lesson: given.append(lesson[2]))
    for rehearse in (True, False):
        experiment.dreamt(life, woken, 0, dreaming.DREAMING, None, rehearse)
    assert given[0].rehearsed.samples.tokens[0].tolist() == rows.tolist()
    assert given[1].rehearsed is None


def test_without_trials_all_that_are_tried_are_trained_on(scripts, reader, experiment, monkeypatch):
    dreaming = scripts["dreaming"]
    life = dreaming.life_of(reader.tokenizer, 0)

    def nights(*given):
        """One night, in which nothing is learned."""
        context = dreaming.read(reader.model, reader.params, life.days[-1].ids[None])
        keys = jax.random.key(0)[None]
        lesson = begin_lesson(reader.model, reader.params, context, keys, dreaming.NIGHT)
        return dreaming.Context(lesson.student, context.logits)

    monkeypatch.setattr(dreaming, "nights", nights)
    alone = experiment.trial(dreaming.ALONE, 0, 0.0)
    row = experiment.trial("without trials", 0, 0.1)
    assert row["helped"] == 1 and row["said"]["helped"] == row["said"]["tried"]
    assert all(helped == whole for kind in row["trials"].values() for helped, whole in kind)
    assert row["asked"]["log_likelihood"] != alone["asked"]["log_likelihood"]
    monkeypatch.delattr(dreaming, "dream")
    again = experiment.trial("without trials", 0, 0.1)
    assert again == row and len(experiment.path.read_text().splitlines()) == 2


def test_rates_cost_little_and_the_table_tells_arms_with_all_seeds(scripts, monkeypatch, tmp_path):
    dreaming, path = scripts["dreaming"], tmp_path / "trials.jsonl"
    experiment = dreaming.Experiment(None, tmp_path, path)

    def trial(self, name, seed, rate):
        loss = 1.0 if rate < 1e-2 else 1.2
        found = {"single": {"won": 0.5}, "tried": {"won": 0.5}, "unrelated": {"loss": loss}}
        found["asked"] = found["reworded"] = {"won": seed / 10, "log_likelihood": rate - 1}
        row = {"arm": name, "seed": seed, "night": dreaming.asleep(), "dreaming": None, **found}
        if name == dreaming.ALONE:
            row |= {"unread": found, "told both": 1.0, "in front": 0.25}
        else:
            said = {which: [1, 4] for which in ("all", "tried", "helped")}
            trials = {"tried": [[3, 4], [0, 1]], "others": [[1, 2], [2, 2]]}
            row |= {"dreaming": {"dream_rate": rate}, "helped": 0.5, "said": said, "seconds": 1.0}
            row |= {"trials": trials}
        return row

    monkeypatch.setattr(dreaming.Experiment, "trial", trial)
    assert experiment.chosen(dreaming.ALONE) == 0 and experiment.chosen("dreams") == 3e-3
    for name, seeds in (
        (dreaming.ALONE, (0, 1, 2)),
        ("dreams", (0, 1, 2, 1000)),
        ("without trials", (0,)),
    ):
        for seed in seeds:
            dreaming.add_json_line(path, experiment.trial(name, seed, 3e-3))
    other = experiment.trial("without trials", 1, 3e-3) | {"night": {}}
    for seed in (0, 1, 2):
        dreaming.add_json_line(path, other | {"seed": seed})
    groups = dreaming.reported(path)
    assert list(groups) == [dreaming.ALONE, "dreams"]
    lines = dreaming.table(groups).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[-2].startswith("| both days in front, all joined | 25 ± 0 |")
    assert lines[-3].startswith(
        "| dreams | 10 ± 10 | 10 ± 10 | -0.997 ± 0 | 50 ± 0 | 50 ± 0 | 0 ± 0 | 50 ± 0 | 25 ± 0 |"
    )
    assert "| 9 of 12 | 0 of 3 | 3 of 6 | 6 of 6 |" in lines[-3]
    dreaming.draw(groups, tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 1000
