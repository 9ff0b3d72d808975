"""The experiment on facts: its layer, its documents, what its rivals train, and which rate is chosen."""

import math

import jax
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.sleep.config import SleepConfig


def test_the_layer_reads_in_pieces_what_it_reads_at_once_and_begins_documents_anew(scripts):
    layer = scripts["convolved_attention"].ConvolvedAttention(num_heads=2, window=5, taps=3)
    x = np.random.default_rng(0).normal(size=(2, 9, 8)).astype(np.float32)
    reset = np.zeros((2, 9), bool)
    reset[0, 4] = True
    params, call = nn.unbox(jax.jit(layer.init)(jax.random.key(0), x)), jax.jit(layer.apply)
    whole = np.asarray(call(params, x, None, reset)[0])
    for cuts in ((0, 1, 2, 7, 7, 9), range(10)):
        state, parts = None, []
        for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
            part, state = call(params, x[:, begin:end], state, reset[:, begin:end])
            parts.append(part)
        np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-5)
    alone, _ = call(params, x[:1, 4:])
    np.testing.assert_allclose(whole[:1, 4:], alone, atol=1e-5)
    assert not np.allclose(whole[1:, 4:], call(params, x[1:, 4:])[0], atol=1e-3)


def test_words_hold_all_that_is_said_and_values_are_single_tokens(scripts, tokenizer):
    pretrain = scripts["facts_pretrain"]
    for world in range(20):
        ids, known = pretrain.document(tokenizer, world, 100)
        assert len(ids) == len(known) == 100 and 0 not in ids
        assert tokenizer.encode(tokenizer.decode(ids)).tolist() == ids.tolist()
    assert len(tokenizer.encode(" apples.")) == 2


def test_training_sees_no_world_that_is_asked_or_held_out(scripts, tokenizer, monkeypatch):
    pretrain, seen = scripts["facts_pretrain"], set()
    monkeypatch.setattr(
        pretrain,
        "facts_of",
        lambda world, *sizes, old=pretrain.facts_of: seen.add(world) or old(world, *sizes),
    )
    source = pretrain.batches(tokenizer, pretrain.TRAINED - 20, 20, size=20, length=60)
    next(source)
    assert len(seen) > 20 and max(seen) < pretrain.TRAINED < pretrain.FIRST_NEW


def test_answers_are_those_of_facts_told_before(scripts, tokenizer):
    batch = next(scripts["facts_pretrain"].batches(tokenizer, 0, 5, size=8, length=120))
    assert batch["answers"].any()
    for tokens, targets, answers in zip(
        batch["tokens"], batch["targets"], batch["answers"], strict=True
    ):
        for place in np.flatnonzero(answers):
            assert targets[place] in tokens[:place]


def test_what_is_asked_is_not_what_was_told(scripts, tokenizer):
    world = scripts["facts"].world_of(tokenizer, 0)
    text = tokenizer.decode(world.ids)
    assert len(world.ids) % scripts["facts_pretrain"].CHUNK == 0 and len(world.questions) == 32
    for question in world.questions:
        (fact,) = question.facts
        kind = scripts["facts"].KINDS[fact.kind]
        (way,) = [
            number
            for number, told in enumerate(kind.told)
            if told.format(name=fact.name, value=fact.value) in text
        ]
        assert question.prompt != kind.asked[way].format(name=fact.name)
        assert question.prompt in [asked.format(name=fact.name) for asked in kind.asked]
        assert question.answer == f" {fact.value}." and question.answer not in question.wrong


def test_samples_begin_as_lines_or_as_questions_that_do_not_say_whom_they_are_about(
    scripts, tokenizer
):
    world = scripts["facts"].world_of(tokenizer, 0)
    rows, lengths = scripts["facts"].openings_from(tokenizer, world)
    texts = [tokenizer.decode(row[:size]) for row, size in zip(rows, lengths, strict=True)]
    asked = [text for text in texts if not any(line.startswith(text) for line in world.lines)]
    assert len(texts) - len(asked) == sum(len(tokenizer.encode(x)) - 1 for x in world.lines)
    assert not {line for line in world.lines} & set(texts) and len(asked) == 48
    names = {question.facts[0].name for question in world.questions}
    assert not [text for text in asked if any(name in text for name in names)]
    for question in world.questions:
        assert any(question.prompt.startswith(text) for text in asked)
    pieces, counted = scripts["facts"].openings_within(tokenizer, world)
    assert pieces.shape[1] == rows.shape[1] and (counted == rows.shape[1]).all()
    assert len(pieces) == len(world.ids) - world.begin - rows.shape[1] + 1
    np.testing.assert_array_equal(pieces[3], world.ids[world.begin + 3 :][: rows.shape[1]])


def test_a_night_without_expansion_comes_nearer_and_changes_the_receiver_alone(few, reader):
    # The last step takes the samples of the first.
    settings = SleepConfig(steps=9, samples=4, kept_samples=8, tokens=4, lam=0.5, a=0.9)
    world = few.world_of(reader.tokenizer, 0)
    learnt, found = few.dense_night_of(reader, world, 0, 3e-3, settings, True)
    last, first = found["divergence"][-1], found["divergence"][0]
    assert 0 < last < first
    for path, (new, old) in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda *pair: pair, learnt.params, reader.params),
        is_leaf=lambda x: isinstance(x, tuple),
    ):
        if "'level_0'" in jax.tree_util.keystr(path):
            assert (new[0] == old[0]).all() and (new[1] != old[1]).any()
        else:
            assert (new == old).all()


def test_nights_with_and_without_expansion_begin_with_who_has_not_read_the_text(few, reader):
    settings = SleepConfig(steps=1, samples=4, kept_samples=4, tokens=4, lam=0.0, a=1.0)
    world = few.world_of(reader.tokenizer, 0)
    begins = [
        learn(reader, world, 0, 0.0, settings, True)[1]["divergence"][0]
        for learn in (few.night_of, few.dense_night_of)
    ]
    assert begins[0] == pytest.approx(begins[1], abs=2e-4) and begins[0] > 0.01


def test_what_is_rehearsed_keeps_other_documents_as_they_were_with_expansion_and_without(
    few, reader
):
    world = few.world_of(reader.tokenizer, 0)
    texts = few.other_documents(reader.tokenizer, 0)
    assert texts.shape == (6, 12)
    pair = texts[:, :-1], texts[:, 1:]
    before = few.row_losses(
        reader.model, reader.params, *pair, few.init_state(reader.model, reader.params, 1)
    )
    for learn, rate in ((few.night_of, 0.03), (few.dense_night_of, 0.01)):
        moved = []
        for weight in (1e-6, 100.0):
            settings = SleepConfig(
                steps=16, samples=6, kept_samples=6, tokens=4, lam=0.0, a=1.0, rehearsal=weight
            )
            learnt, _ = learn(reader, world, 0, rate, settings, True)
            state = learnt.state or few.init_state(reader.model, learnt.params, 1)
            after = few.row_losses(reader.model, learnt.params, *pair, state)
            moved.append(np.abs(np.asarray(after) - before).mean())
        assert moved[1] < 0.7 * moved[0], moved


def test_rates_are_followed_until_both_neighbours_are_worse(scripts, monkeypatch, tmp_path):
    facts = scripts["facts"]

    def trial(self, name, seed, rate):
        likely = -abs(math.log(rate / 1e-1))  # where too much is lost
        losses = {"before": {"loss": 2.0}, "after": {"loss": 2.0 if rate < 2e-2 else 2.1 + rate}}
        return {"after": {"log_likelihood": likely}, "unrelated": losses}

    monkeypatch.setattr(facts.Experiment, "trial", trial)
    experiment = facts.Experiment(None, tmp_path / "trials.jsonl")
    assert experiment.chosen("sleep") == 1e-2
    monkeypatch.setattr(facts, "MOST_LOST", -1)  # as much as all of them
    assert experiment.chosen("sleep") < 2e-2


def test_a_table_is_made_of_ways_to_learn_that_have_all_seeds(scripts, tmp_path):
    facts, path = scripts["facts"], tmp_path / "trials.jsonl"
    for arm, seeds in (("sleep", (0, 1, 2, 1000)), ("fine-tuning", (0, 1, 1000))):
        for seed in seeds:
            losses = {"loss": 1.0, "told": 2.0, "said": 1.0, "answers": 0.5}
            found = {"won": 0.25, "log_likelihood": -2.0}
            night = {**facts.NIGHT, **facts.ARMS[arm].changes}
            row = {"arm": arm, "seed": seed, "rate": 1e-3, "night": night, "seconds": 1.0}
            row |= {"before": found, "read": found | {"won": 1.0}, "after": found | {"won": 0.5}}
            row["unrelated"] = {
                "before": losses,
                "read": losses | {"told": 3.0},
                "after": losses | {"loss": 1.5},
            }
            facts.add_json_line(path, row)
    groups = facts.reported(path)
    assert list(groups) == ["sleep"] and [row["seed"] for row in groups["sleep"]] == [0, 1, 2]
    lines = facts.table(groups).splitlines()
    assert lines[-1].startswith("| sleep | 50 ± 0 | 50 ± 0 | -2 ± 0 | 50 ± 0 | 0 ± 0 |")
    assert lines[-2].startswith(
        "| before, with the text | 100 ± 0 | 100 ± 0 | -2 ± 0 | 0 ± 0 | 1 ± 0 |"
    )
    assert len({line.count("|") for line in lines}) == 1
    facts.draw(groups, tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 1000
