"""The experiment on two languages: its texts and questions, who learns what, and its trials."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.data.tokenizers import load_tokenizer
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.expansion import experts_of
from tests.sleep.conftest import reader_with


@pytest.fixture(scope="module")
def tokenizer(scripts, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("words") / "words.json")
    scripts["languages_pretrain"].make_tokenizer().save(path)
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def reader(scripts, tokenizer):
    made = reader_with(scripts, tokenizer, 1)
    # So that what is said depends on more.
    return made._replace(params=jax.tree.map(lambda leaf: 2 * leaf, made.params))


def translations(text):
    """Of each English word or phrase in a text, all that it is said to be in each language."""
    found = {}
    for line in text.split("\n")[:-1]:
        if " = " in line:
            (name, *english), foreign = (part.split(" ") for part in line.split(" = "))
            found.setdefault((name, " ".join(english)), set()).add(" ".join(foreign))
    return found


def test_every_document_translates_one_way_alone_and_as_its_dictionary_says(scripts, tokenizer):
    pretrain, counts, seen = scripts["languages_pretrain"], set(), set()
    for number in range(40):
        last = number % 2 == 0
        ids, weights = pretrain.document(tokenizer, number, 352, last=last)
        assert len(ids) == len(weights) == 352 and 0 not in ids
        text = tokenizer.decode(ids)
        assert not (last and "first" in text)
        seen.update({"first", "last"} & set(text.replace(".", " ").split()))
        assert tokenizer.encode(text).tolist() == ids.tolist()
        found = translations(text)
        assert all(len(some) == 1 for some in found.values())
        for (name, english), (foreign,) in found.items():
            words = [found.get((name, word), {None}) for word in english.split()]
            if len(words) == 2 and all(some != {None} for some in words):
                first = f"{name} adjectives first." in text
                told = f"{name} adjectives" in text
                parts = [part for (part,) in words]
                assert foreign.split() in (
                    [parts[:: 1 if first else -1]] if told else [parts, parts[::-1]]
                )
        counts.add(sum(line.endswith(("first.", "last.")) for line in text.split("\n")))
        answers = np.flatnonzero(weights == 1)
        assert (len(answers) > 0) == ("adjectives" in text)
    assert counts == {0, 1, 2} and seen == {"first", "last"}


def test_training_sees_no_language_that_is_asked_or_held_out(scripts, tokenizer, monkeypatch):
    pretrain, seen = scripts["languages_pretrain"], set()
    monkeypatch.setattr(
        pretrain,
        "document",
        lambda tokenizer, number, *rest, old=pretrain.document: (
            seen.add(number) or old(tokenizer, number, *rest)
        ),
    )
    source = pretrain.batches(tokenizer, 0, 3, 4, 60)
    first, second = next(source), next(source)
    assert seen == {0, 1, 2} and pretrain.TRAINED < pretrain.FIRST_NEW
    assert (first["tokens"][0] != second["tokens"][2]).any()  # another text of the same number


def test_what_is_asked_is_not_told_and_follows_from_the_text(scripts, tokenizer):
    two = scripts["two_languages"]
    subjects = two.subjects_of(tokenizer, 0)
    words = []
    for subject in subjects:
        text = "".join(subject.lines)
        assert len(subject.ids) == 128 and tokenizer.decode(subject.ids) == text
        told = {english: foreign for (_, english), (foreign,) in translations(text).items()}
        words.append({foreign for english, foreign in told.items() if " " not in english})
        assert len(words[-1]) == 12 and len(subject.questions) == 28
        for prompt, answer in subject.questions:
            assert f"{prompt}{answer}" not in text and prompt.startswith(
                tokenizer.decode(subject.name)
            )
            given = prompt.removesuffix(" =").split(" ")[1:]
            by_word = [told[english] for english in given]
            assert answer.split() == by_word[::-1] and "adjectives last." in text
    assert not words[0] & words[1]
    assert {two.subjects_of(tokenizer, 1)[0].lines[0]} != {subjects[0].lines[0]}


def test_samples_begin_as_lines_do_and_half_of_them_with_the_name_alone(scripts, tokenizer):
    subject = scripts["two_languages"].subjects_of(tokenizer, 0)[1]
    rows, lengths = scripts["two_languages"].openings_from(tokenizer, subject)
    texts = [tokenizer.decode(row[:size]) for row, size in zip(rows, lengths, strict=True)]
    name = tokenizer.decode(subject.name)
    alone = [text for text in texts if text == name]
    assert len(texts) / 2 < len(alone) < 0.7 * len(texts)
    for text in texts:
        assert any(line.startswith(text) and line != text for line in subject.lines)
    assert f"{subject.lines[1].split(' =')[0]} =" in texts


def test_answers_are_what_is_likeliest_token_by_token(scripts, reader):
    two = scripts["two_languages"]
    subject = two.subjects_of(reader.tokenizer, 0)[0]
    prompts = [prompt for prompt, _ in subject.questions[::5]]
    text = two.read(reader.model, reader.params, subject.ids[None, :100])  # within a chunk
    fresh = two.init_state(reader.model, reader.params, 1)
    likeliest = jax.jit(
        lambda ids, state: reader.model.apply({"params": reader.params}, ids, state)[0].argmax(-1)
    )
    for state in (None, text.state):
        said = two.answers_of(reader, scripts["facts"].Learnt(reader.params, state), prompts)
        assert len({*said}) > 1
        for prompt, mine in zip(prompts, said, strict=True):
            asked = reader.tokenizer.encode(prompt)
            ids = np.pad(asked, (0, 10 - len(asked)))[None]
            for place in range(len(asked), 10):
                ids[0, place] = likeliest(ids, fresh if state is None else state)[0, place - 1]
            answer = reader.tokenizer.decode(ids[0, len(asked) :]).split("\n")[0] + "\n"
            assert mine == answer


@pytest.fixture
def few(scripts, monkeypatch):
    """Few and short documents, and small nights."""
    two = scripts["two_languages"]
    monkeypatch.setattr(two, "DOCUMENTS", 6)
    monkeypatch.setattr(two, "PART", 24)
    monkeypatch.setattr(two, "SAID", 5)
    small = dict(steps=3, samples=4, kept_samples=8, tokens=4, expert_width=4)
    monkeypatch.setattr(two, "NIGHT", {**two.NIGHT, **small})
    return two


def test_the_second_night_adds_an_expert_and_rehearses_what_is_said_of_the_first_language(
    few, reader, monkeypatch
):
    given, old = [], few.sleep
    monkeypatch.setattr(
        few, "sleep", lambda *args, **more: given.append(more) or old(*args, **more)
    )
    subjects = few.subjects_of(reader.tokenizer, 0)
    stages = few.nights(
        reader,
        subjects,
        seed=0,
        rate=0.1,
        settings=SleepConfig(**few.NIGHT),
        others=True,
        recalls=True,
    )
    first, second = (experts_of(next(stages)[0].state) for _ in subjects)
    assert first.active[..., 0].all() and not first.active[..., 1].any() and second.active.all()
    for before, after in zip(first[:3], second[:3], strict=True):
        assert (before[:, :, :, 0] == after[:, :, :, 0]).all()
    assert (second.up[:, :, :, 1] != 0).any()
    documents, more = (one["rehearsed"] for one in given)
    assert documents.shape == (6, 24) and (more[:6] == documents).all() and len(more) == 6 + 5
    assert (more[6:, :2] == subjects[0].name).all()
    assert len({tuple(row) for row in more[6:].tolist()}) == 5


def test_elastic_weights_hold_what_mattered_and_begin_each_text_with_a_new_optimiser(few, reader):
    subjects = few.subjects_of(reader.tokenizer, 0)
    settings = SleepConfig(**few.NIGHT)

    def moved(strength):
        stages = few.tuned(
            reader, subjects, seed=0, rate=1e-3, strength=strength, settings=settings, others=False
        )
        first, second = (next(stages)[0].params for _ in subjects)
        return [
            sum(
                float(jnp.abs(new - old).sum())
                for new, old in zip(*map(jax.tree.leaves, pair), strict=True)
            )
            for pair in ((first, reader.params), (second, first))
        ]

    free, held = moved(0.0), moved(1e8)
    assert held[0] < 0.9 * free[0] and held[1] < 0.9 * free[1]
    optimizer = few.elastic_adam(few.STEPS)
    state = optimizer.init(reader.params)
    ones = jax.tree.map(jnp.ones_like, reader.params)
    _, after = optimizer.update(ones, state, reader.params)
    after = few.consolidate(after, ones, ones)
    new = few.anew(state, after)
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(new.inner_state[0]))
    zip_rest = zip(*map(jax.tree.leaves, (new.inner_state[1:], state.inner_state[1:])), strict=True)
    assert all((mine == old).all() for mine, old in zip_rest)


def row_of(two, arm, seed, rate=1e-3, strength=None, exact=0.5):
    """A trial in which the first language is right at first and then to half."""
    one = {"exact": 0.0, "chrf": 0.1, "log_likelihood": -2.0}
    right = one | {"exact": 1.0}
    scores = [[one, one], [right, one], [one | {"exact": exact}, right]]
    return {
        "arm": arm,
        "seed": seed,
        "rate": rate,
        "strength": strength,
        "night": two.NIGHT,
        "seconds": 1.0,
        "scores": scores,
        "unrelated": [1.0, 1.5],
    }


def test_rate_and_strength_are_those_at_which_both_languages_are_likeliest(scripts, monkeypatch):
    two = scripts["two_languages"]

    def trial(self, name, seed, rate, strength):
        assert seed == two.SELECTION
        far = abs(math.log(rate / 1e-2)) + (
            0 if strength is None else abs(math.log(strength / 1e3))
        )
        at_end = [{"log_likelihood": -2 * far}, {"log_likelihood": 0.0}]
        return {"scores": [[], [{"log_likelihood": far}] * 2, at_end]}

    monkeypatch.setattr(two.Experiment, "trial", trial)
    experiment = two.Experiment(None, None)
    assert experiment.chosen("nights") == (1e-2, None)
    assert experiment.chosen("elastic weights") == (1e-2, 1e3)
    assert experiment.chosen("both texts in front")[1] is None


def test_a_table_is_made_of_ways_to_learn_that_have_all_seeds(scripts, tmp_path):
    two, path = scripts["two_languages"], tmp_path / "trials.jsonl"
    for arm, seeds in (("nights", (0, 1, 2, 1000)), ("fine-tuning", (0, 1, 1000))):
        for seed in seeds:
            two.add_json_line(path, row_of(two, arm, seed))
    groups = two.reported(path)
    assert list(groups) == ["nights"] and [row["seed"] for row in groups["nights"]] == [0, 1, 2]
    lines = two.table(groups).splitlines()
    assert lines[-1].startswith(
        "| nights | 100 ± 0 | 50 ± 0 | 100 ± 0 | 50 ± 0 | -2 ± 0 | 0.1 ± 0 | 50 ± 0 | 1 ± 0 | 0.001 |"
    )
    assert lines[-2].startswith("| nothing read | 0 ± 0 | 0 ± 0 | 0 ± 0 | 0 ± 0 |")
    assert len({line.count("|") for line in lines}) == 1
    two.draw(groups, tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 1000


def test_no_trial_is_begun_when_time_is_over_and_what_is_there_is_read(scripts, tmp_path):
    two, path = scripts["two_languages"], tmp_path / "trials.jsonl"
    two.add_json_line(path, row_of(two, "nights", 0))
    experiment = two.Experiment(None, path, until=0.0)
    assert experiment.trial("nights", 0, 1e-3, None)["scores"][1][0]["exact"] == 1
    with pytest.raises(two.Enough):
        experiment.trial("nights", 1, 1e-3, None)
