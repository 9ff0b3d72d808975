"""Streams: classes and languages by an independent reading of them, what is asked when, and a command."""

import csv
import json
import re

import jax
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.commands import evaluate_suite
from hope_jax.data.json_lines import read_json_lines
from hope_jax.data.tokenizers import ByteTokenizer
from hope_jax.evaluation import stream as streams
from hope_jax.evaluation.labelled import read_labelled
from hope_jax.evaluation.stream import (
    Asking,
    Place,
    Question,
    Stage,
    ask_stream,
    candidates,
    nothing_read,
    place_of,
    places_of,
    scores_of,
    stream_table,
)
from hope_jax.evaluation.streams import (
    STREAMS,
    ClassSettings,
    LanguageSettings,
    documents,
    make_classes,
    make_language_stages,
)
from hope_jax.inference.batch_of_one import as_batch
from hope_jax.inference.sampling import read
from hope_jax.models import LanguageModel, LanguageModelConfig
from tests.commands.in_process import hope

CLASSES = ClassSettings(groups=3, classes=3, shots=6, questions=2)
LANGUAGES = LanguageSettings(pairs=40, questions=10)


def texts_of(stage):
    """The labelled texts of a stage of classes."""
    found = [re.fullmatch(r"Text: (.*)\nLabel: (.*)\n", text) for text in stage.documents]
    return [(one[1], one[2]) for one in found]


def words_of(text):
    """What a request is about: its words but for those of how and when it is asked."""
    text = re.sub(
        r"^(I want to|I would like to|Please help me to|How do I|Can you|We need to|My aunt wishes to"
        r"|Is it possible to) ",
        "",
        text,
    )
    way, thing = re.fullmatch(
        r"(.*?) an? (bicycle|bike|coat|jacket|sofa|couch|lamp|light|boat|ship|ring|jewel|stove|oven|phone"
        r"|telephone|book|novel|carpet|rug|clock|watch|tent|camp bed|violin|fiddle|ladder|set of steps"
        r"|kettle|teapot|suitcase|travelling bag|mirror|looking glass|piano|organ|saw|hammer|umbrella"
        r"|parasol) .*[.?]",
        text,
    ).groups()
    return way, thing


def test_a_label_goes_with_one_act_and_one_thing():
    stages = make_classes(ClassSettings(groups=10, classes=5, shots=20, questions=3))
    ways, things = {}, {}
    for stage in stages:
        asked = [
            (one.prompt[len("Text: ") : -len("\nLabel:")], one.answer) for one in stage.questions
        ]
        for text, label in texts_of(stage) + asked:
            way, thing = words_of(text)
            ways.setdefault(label, set()).add(way)
            things.setdefault(label, set()).add(thing)
    assert len(ways) == 50
    # All ways and names of a class are seen in 23 texts of it, and no others; two classes differ.
    assert {len(some) for some in ways.values()} == {3}
    assert {len(some) for some in things.values()} == {2}
    kinds = {(frozenset(ways[label]), frozenset(things[label])) for label in ways}
    assert len(kinds) == 50


def test_classes_come_in_turn_and_none_that_is_asked_is_read():
    stages = make_classes(CLASSES)
    assert [stage.name for stage in stages] == ["group 1", "group 2", "group 3"]
    labels = [label for stage in stages for label in stage.labels]
    assert len(set(labels)) == 9
    read = [text for stage in stages for text, _ in texts_of(stage)]
    assert len(set(read)) == 3 * 3 * 6
    for stage in stages:
        told = [label for _, label in texts_of(stage)]
        assert sorted(told) == sorted(6 * list(stage.labels)) and told != sorted(told)
        assert [one.answer for one in stage.questions] == [
            x for x in stage.labels for _ in range(2)
        ]
        for one in stage.questions:
            assert one.prompt[len("Text: ") : -len("\nLabel:")] not in read
            assert not any(one.prompt in text for text in stage.documents)


@pytest.mark.parametrize("name", STREAMS)
def test_seeds_say_all_and_documents_are_others(name):
    kind = STREAMS[name]
    one, same, other = (kind.make(kind.settings(seed=seed)) for seed in (0, 0, 1))
    assert one == same and one != other
    trained = list(documents(name, count=3, seed=0))
    assert len(set(trained)) == 3
    read = "".join(text for stage in one for text in stage.documents)
    assert read not in trained
    with pytest.raises(ValueError, match="stream='tongues' is none; there are classes, languages"):
        next(documents("tongues"))


def translate(sheet, english):
    """A sentence by a sheet, read as a person would."""
    words = dict(re.findall(r"^(\w+) = (\w+)$", sheet, re.MULTILINE))
    order = re.search(r"First comes the (\w+), then the (\w+), then the (\w+)\.", sheet).groups()
    before = "An adjective stands before" in sheet
    plural, past, ending = re.findall(r"ends in -(\w+)", sheet)
    singular = {"children": "child", "fishes": "fish"}
    verbs = {"saw": "see", "heard": "hear", "found": "find", "loved": "love", "left": "leave"}
    verbs |= {"brought": "bring", "fed": "feed"}

    def part(text, last):
        *adjective, noun = text.split()
        if noun not in words or noun == "fishes":
            noun, last = singular.get(noun, noun.removesuffix("s")), plural + last
        made = words[noun] + last
        both = [words[adjective[0]], made] if adjective else [made]
        return " ".join(both if before else both[::-1])

    subject, rest = english.removesuffix(".").lower().removeprefix("the ").split(" the ", 1)
    *subject, verb = subject.split()
    subject = " ".join(subject)
    several = subject.split()[-1] not in words
    if verb in verbs:
        action = words[verbs[verb]] + past
    elif verb == "hit":  # of the past, unless there are several
        action = {words["hit"] + past, words["hit"]} if several else words["hit"] + past
    else:
        action = words[verb if verb in words else verb.removesuffix("s")]
    actions = action if isinstance(action, set) else {action}
    parts = {"subject": part(subject, ""), "object": part(rest, ending)}
    return {" ".join({**parts, "verb": one}[name] for name in order) for one in actions}


def test_translations_follow_from_the_sheet():
    stages = make_language_stages(LANGUAGES)
    assert len(stages) == 2 and not any(stage.labels for stage in stages)
    lexicons, sentences = [], set()
    for stage in stages:
        sheet, *pairs = stage.documents
        assert sheet.startswith(f"A dictionary of {stage.name}.\n") and sheet.endswith("\n\n")
        pattern = rf"English: (.*)\n{stage.name}: (.*)\n"
        read = [re.fullmatch(pattern, text).groups() for text in pairs]
        asked = [
            (*re.fullmatch(rf"English: (.*)\n{stage.name}:", one.prompt).groups(), one.answer)
            for one in stage.questions
        ]
        assert len(read) == 40 and len(asked) == 10
        for english, other in read + asked:
            assert other in translate(sheet, english), english
        lexicons.append(set(re.findall(r"= (\w+)", sheet)))
        sentences |= {other for _, other in read} | {other for _, other in asked}
    assert len(lexicons[0]) == 26 and not lexicons[0] & lexicons[1]
    english = [re.match("English: .*", one)[0] for stage in stages for one in stage.documents[1:]]
    english += [
        re.match("English: .*", one.prompt)[0] for stage in stages for one in stage.questions
    ]
    assert len(set(english)) == len(sentences) == 100


def test_files_of_texts_and_of_sentences_are_read(tmp_path):
    rows = [(f"text {n}  of\n{n % 4}", f"class {n % 4}") for n in range(24)] + [("alone", "rare")]
    with (tmp_path / "bank.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("label", "text"), *((label, text) for text, label in rows)])
    lines = [json.dumps({"text": text, "label": label, "more": 1}) for text, label in rows]
    (tmp_path / "bank.jsonl").write_text("\n".join([*lines, "", lines[0]]))
    found = read_labelled(tmp_path / "bank.csv")
    assert found == read_labelled(tmp_path / "bank.jsonl") and len(found) == 25
    assert found[1] == ("text 1 of 1", "class 1")
    sizes = dict(groups=2, classes=2, shots=4, questions=2)
    stages = make_classes(ClassSettings(file=str(tmp_path / "bank.csv"), **sizes))
    assert {label for stage in stages for label in stage.labels} == {f"class {n}" for n in range(4)}
    assert all(label == f"class {text[-1]}" for stage in stages for text, label in texts_of(stage))
    asked = {one.prompt for stage in stages for one in stage.questions}
    assert len(asked) == 8
    with pytest.raises(ValueError, match="bank.csv has 4 classes of 7 texts or more|has 0 classes"):
        make_classes(ClassSettings(file=str(tmp_path / "bank.csv"), **{**sizes, "shots": 5}))
    (tmp_path / "sheet.txt").write_text("A grammar.\n")
    kala = LanguageSettings(
        files=(str(tmp_path / "bank.csv"), str(tmp_path / "bank.jsonl")),
        sheets=(str(tmp_path / "sheet.txt"),) * 2,
        pairs=20,
        questions=5,
    )
    stages = make_language_stages(kala)
    assert stages[0].documents[0] == "A grammar.\n\n" and len(stages[0].documents) == 21
    assert re.fullmatch(r"English: .*\nBank: .*\n", stages[0].documents[1])
    with pytest.raises(ValueError, match="has 25 sentences, and pairs and questions are 26"):
        make_language_stages(LanguageSettings(files=kala.files, pairs=20, questions=6))
    with pytest.raises(ValueError, match="sheets has 1 and files 2"):
        LanguageSettings(files=kala.files, sheets=("a",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ('{"text": "a"}\n', "line 1: there is no text and label"),
        ('{"text": "a", "label": "b"}\n{"te', "line 2 is no JSON"),
        ('["text", "label"]\n', "line 1: there is no text and label"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, content, said):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ValueError, match=said):
        read_labelled(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="cannot be read"):
        read_labelled(tmp_path / "none.jsonl")


def test_what_may_be_said_is_what_came_so_far_and_the_question_s_own():
    stages = [Stage(name, (), (), (name, name + name)) for name in "abc"]
    assert candidates(stages, Place(2, 0, 0)) == ["a", "aa", "b", "bb"]
    assert candidates(stages, Place(0, 2, 0)) == ["a", "aa", "b", "bb", "c", "cc"]
    assert candidates(stages, Place(1, 1, 0)) == candidates(stages, Place(0, 1, 0))


@pytest.fixture
def read_so_far(monkeypatch):
    """The texts that a model has read are its context, in the place of a model."""
    monkeypatch.setattr(streams, "nothing_read", lambda *given: "")
    reading = lambda model, params, ids, segment, context: context + ByteTokenizer().decode(ids[0])
    monkeypatch.setattr(streams, "read_in_segments", reading)


def scored_by(monkeypatch, guess):
    """`guess(context, prompt, answers)` is the answer a model holds for likeliest."""

    def choose(stages, asking, model, params, tokenizer, places, context, length):
        questions = [stages[place.stage].questions[place.number] for place in places]
        return [
            guess(context, question, candidates(stages, place))
            for place, question in zip(places, questions, strict=True)
        ]

    monkeypatch.setattr(streams, "_choose", choose)


def lines_of(stages, places=None):
    asking = Asking(4, 64, 8)
    places = places_of(stages) if places is None else places
    return list(ask_stream(stages, asking, None, None, ByteTokenizer(), places))


def test_an_oracle_scores_all_and_a_guess_its_chance(read_so_far, monkeypatch):
    stages = make_classes(CLASSES)
    scored_by(monkeypatch, lambda context, question, labels: question.answer)
    lines = lines_of(stages)
    assert [place_of(line) for line in lines] == places_of(stages)
    scores = scores_of(stages, lines, "share")
    assert np.nanmin(scores) == 1 and np.isnan(scores[1, 2]) and not np.isnan(scores[0]).any()
    table = stream_table(stages, lines, "Classes")
    assert "| 2 | 100.0 | 100.0 | 100.0 | 100.0 |" in table
    assert "| 1 | 100.0 | 100.0 |  | 100.0 |" in table
    assert "Average at the end 100.0; forgetting 0.0; forward transfer 0.0." in table
    # Always the first label: right for a third of the first group, and for no other.
    scored_by(monkeypatch, lambda context, question, labels: labels[0])
    scores = scores_of(stages, lines_of(stages), "share")
    np.testing.assert_allclose(scores[:, 0], 1 / 3)
    assert np.nansum(scores[:, 1:]) == 0


def test_a_reader_with_a_short_memory_forgets_and_knows_nothing_beforehand(
    read_so_far, monkeypatch
):
    stages = make_classes(CLASSES)

    def guess(context, question, labels):
        """By the words of the last stage alone."""
        last = context[-len("".join(stages[0].documents)) :]
        way, thing = words_of(question.prompt[len("Text: ") : -len("\nLabel:")])
        alike = re.findall(rf"{thing} .*\nLabel: (\w+)\n", last)
        return alike[0] if alike else "none"

    monkeypatch.setattr(
        streams, "read_in_segments", lambda m, p, ids, s, context: ByteTokenizer().decode(ids[0])
    )
    scored_by(monkeypatch, guess)
    scores = scores_of(stages, lines_of(stages), "share")
    assert scores[0].max() == 0 and scores[1, 0] > 0.5 > scores[2, 0]


def test_only_what_is_left_is_asked_after_all_that_came_before(read_so_far, monkeypatch):
    stages = make_classes(CLASSES)
    seen = []
    scored_by(monkeypatch, lambda context, *given: seen.append(context) or "")
    left = [place for place in places_of(stages) if place.read == 2 and place.stage == 1]
    lines = lines_of(stages, left)
    assert [place_of(line) for line in lines] == left
    assert set(seen) == {"".join(text for stage in stages[:2] for text in stage.documents)}
    assert lines_of(stages, []) == []


CONFIG = LanguageModelConfig(
    vocab_size=256,
    width=8,
    num_layers=1,
    num_heads=1,
    mlp_width=8,
    sequence_layer="attention",
    in_context={"chunks": (8,), "blocks": 1},
)


@pytest.fixture(scope="module")
def trained():
    """A model with a level that learns, of random parameters."""
    model = LanguageModel(CONFIG)
    params = jax.jit(model.init)(jax.random.key(1), np.zeros((1, 4), np.int32))["params"]
    return model, dict(nn.unbox(params))


def test_a_model_speaks_from_what_it_has_read_whatever_is_asked_beside(trained):
    model, params = trained
    tokenizer = ByteTokenizer()
    prompts = ["Hello: ", "What, then, is this? "]
    ids = lambda text: np.asarray(tokenizer.encode(text), np.int32)[None]
    context = read(model, params, ids("Something was said before."))
    apply = jax.jit(model.apply)
    said = streams.speak(model, params, tokenizer, prompts, context, Asking(3, 64, 6), 30)
    for prompt, words in zip(prompts, said, strict=True):
        told = ids("Something was said before." + prompt)
        for _ in range(6):
            logits = apply({"params": params}, np.pad(told, ((0, 0), (0, 60 - told.shape[1]))))[0]
            token = np.asarray(logits)[0, told.shape[1] - 1].argmax()
            told = np.append(told, [[token]], axis=1).astype(np.int32)
        wanted = tokenizer.decode(told[0, -6:]).strip(" ").split("\n")[0].strip()
        assert words == wanted
    batch = as_batch(model, context, 3)
    assert batch.logits.shape[0] == 3
    assert nothing_read(model, params, tokenizer).logits.shape == (1, 256)


def test_a_model_chooses_by_likelihood_from_what_it_has_read(trained):
    model, params = trained
    tokenizer = ByteTokenizer()
    stages = [
        Stage("one", ("Text: ab\nLabel: x\n",), (Question("Text: ba\nLabel:", "x"),), ("x", "xy")),
        Stage("two", ("Text: cd\nLabel: z\n",), (Question("Text: dc\nLabel:", "z"),), ("z",)),
    ]
    places = [place for place in places_of(stages) if place.read == 1]
    apply = jax.jit(model.apply)
    lines = list(ask_stream(stages, Asking(4, 64, 0), model, params, tokenizer, places))
    for line in lines:
        stage = stages[line["stage"]]
        told = stages[0].documents[0] + stage.questions[0].prompt
        likelihoods = {}
        for label in ["x", "xy"] + ["z"] * (line["stage"] == 1):
            ids = np.asarray(tokenizer.encode(f"{told} {label}\n"), np.int32)
            padded = np.pad(ids, (0, 64 - len(ids)))[None]
            logits = apply({"params": params}, padded)[0]
            known = np.asarray(jax.nn.log_softmax(logits))[0]
            likelihoods[label] = sum(known[at - 1, ids[at]] for at in range(len(told), len(ids)))
        assert line["said"] == max(likelihoods, key=likelihoods.get)
        assert line["share"] == (line["said"] == stage.questions[0].answer)


def test_a_command_goes_on_and_asks_another_stream_anew(read_so_far, monkeypatch, tmp_path, capsys):
    scored_by(monkeypatch, lambda context, question, labels: question.answer)
    load = lambda workdir: ((None, None, ByteTokenizer()), 7)
    monkeypatch.setattr(evaluate_suite, "load_model_and_step", load)
    given = [f"--workdir={tmp_path}", "--suite=classes", "--set=groups=2", "--set=classes=2"]
    assert hope("evaluate", *given) == 0
    printed = capsys.readouterr().out
    assert "Classes in turn: 48 questions, 0 answered before" in printed
    assert "| 2 | 100.0 | 100.0 | 100.0 |" in printed
    path = tmp_path / "classes" / "answers.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:10]) + whole[10][:20])
    assert hope("evaluate", *given) == 0
    assert "48 questions, 10 answered before" in capsys.readouterr().out
    assert len(list(read_json_lines(path))) == 48
    assert hope("evaluate", *given, "--set=seed=1") == 0
    assert "48 questions, 0 answered before" in capsys.readouterr().out
    assert (tmp_path / "classes" / "stages.png").stat().st_size > 1000
    assert "Step 7 of" in (tmp_path / "classes" / "results.md").read_text()
    text = tmp_path / "prose.txt"
    text.write_text("Once.")
    assert hope("evaluate", *given, f"--text={text}") == 2
    assert "a stream's files are settings" in capsys.readouterr().err
    speak = lambda model, params, tokenizer, prompts, *given: ["tavo"] * len(prompts)
    monkeypatch.setattr(streams, "speak", speak)
    sizes = ["--set=questions=2", "--set=pairs=3"]
    assert hope("evaluate", given[0], "--suite=languages", *sizes) == 0
    printed = capsys.readouterr().out
    assert "chrF in per cent" in printed and "exact translations in per cent" in printed
    assert (tmp_path / "languages" / "stages.png").stat().st_size > 1000
