"""A probe: what is asked, what counts as found, and a command that goes on."""

import json

import jax
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.commands import evaluate_suite
from hope_jax.data.json_lines import read_json_lines
from hope_jax.data.tokenizers import ByteTokenizer
from hope_jax.evaluation import probe as probes
from hope_jax.evaluation.heat_map import draw_heat_map
from hope_jax.evaluation.probe import (
    ProbeSettings,
    Question,
    answers_table,
    ask,
    questions_of,
)
from hope_jax.evaluation.probes import PROBES
from hope_jax.evaluation.questions import answer, share_found
from hope_jax.inference.sampling import generate, read
from hope_jax.models import LanguageModel, LanguageModelConfig
from tests.commands.in_process import hope

NEEDLES = PROBES["needles"]
CONFIG = LanguageModelConfig(
    vocab_size=260,  # more than the tokenizer has
    width=8,
    num_layers=1,
    num_heads=1,
    mlp_width=8,
    titans=dict(memory_chunk=8, generator_chunk=8),
)


def test_questions_are_all_kinds_lengths_and_depths_the_short_ones_first():
    settings = ProbeSettings(kinds=("S-1", "MQ"), lengths=(900, 600), depths=3, items=2)
    asked = questions_of(NEEDLES, settings)
    assert len(asked) == len(set(asked)) == 2 * 2 * 3 * 2
    assert asked[0] == Question("S-1", 600, 0.0, 0) and asked[-1] == Question("MQ", 900, 1.0, 1)
    assert ProbeSettings(depths=1).places == (0.5,)
    assert len(questions_of(NEEDLES, ProbeSettings())) == 8 * 3 * 5 * 4


@pytest.fixture
def said(monkeypatch):
    """What is asked of the model, which answers with the first answer alone."""
    seen = []

    def answer(model, params, tokenizer, ids, *, segment, num_tokens):
        texts = [tokenizer.decode(row) for row in ids]
        seen.append(ids.shape)
        found = []
        for text in texts:
            key = text.rsplit("for ", 1)[1].split(" mentioned")[0].split(",")[0]
            found.append(text.split(f"for {key} is: ")[1].split(".")[0])
        return found

    monkeypatch.setattr(probes, "answer", answer)
    return seen


def test_batches_are_of_one_shape_and_answers_are_scored(said):
    settings = ProbeSettings(kinds=("S-2", "MQ"), lengths=(900,), depths=3, items=1, batch_size=2)
    asked = questions_of(NEEDLES, settings)
    lines = list(ask(NEEDLES, settings, None, None, ByteTokenizer(), asked))
    assert said == [(2, 900)] * 4
    assert [line["share"] for line in lines] == [1, 1, 1, 0.25, 0.25, 0.25]
    assert [Question(*(line[name] for name in Question._fields)) for line in lines] == asked
    table = answers_table(NEEDLES, settings, lines)
    assert "| S-2 | 100.0 ± 0.0 |" in table and "| MQ | 25.0 ± 0.0 |" in table
    again = list(ask(NEEDLES, settings, None, None, ByteTokenizer(), asked[4:5]))
    assert again[0]["answers"] == lines[4]["answers"]
    other = ProbeSettings(**{**vars(settings), "seed": 1})
    others = list(ask(NEEDLES, other, None, None, ByteTokenizer(), asked[4:5]))
    assert others[0]["answers"] != lines[4]["answers"]


def test_an_answer_counts_if_it_is_said_whatever_else_is():
    assert share_found("it is ABC-1, I think", ["abc-1"]) == 1
    assert share_found("12 3", ["123", "12"]) == 0.5
    assert share_found("", ["1"]) == 0


def test_texts_are_read_in_segments_as_in_one_call():
    model = LanguageModel(CONFIG)
    ids = np.asarray(jax.random.randint(jax.random.key(0), (2, 40), 0, 256), np.int32)
    params = jax.jit(model.init)(jax.random.key(1), ids)["params"]
    params = dict(nn.unbox(params))
    said = lambda vocab_size: generate(
        model,
        params,
        read(model, params, ids),
        jax.random.key(0),
        num_tokens=5,
        temperature=0,
        vocab_size=vocab_size,
    )[0]
    # An id that the tokenizer has not is likelier than all it has.
    row = params["embedding"][said(256)[0, 0]]
    params["embedding"] = params["embedding"].at[258].set(3 * row)
    assert said(None)[0, 0] == 258
    made = said(256)
    tokenizer = ByteTokenizer()
    wanted = [tokenizer.decode(row) for row in made]
    assert answer(model, params, tokenizer, ids, segment=16, num_tokens=5) == wanted

    class Ending(ByteTokenizer):
        end_ids = (int(made[0][2]),)

    cut = answer(model, params, Ending(), ids, segment=40, num_tokens=5)
    assert cut[0] == tokenizer.decode(made[0][: made[0].tolist().index(made[0][2])])


def test_a_command_goes_on_and_asks_a_new_checkpoint_anew(said, tmp_path, monkeypatch, capsys):
    steps = [7]
    load = lambda workdir: ((None, None, ByteTokenizer()), steps[-1])
    monkeypatch.setattr(evaluate_suite, "load_model_and_step", load)
    given = [f"--workdir={tmp_path}", "--suite=needles", "--set=lengths=900", "--set=items=1"]
    assert hope("evaluate", *given, "--set=kinds=S-1") == 0
    assert len(said) == 2
    printed = capsys.readouterr().out
    assert "5 questions, 0 answered before" in printed and "| S-1 | 100.0 ± 0.0 |" in printed
    path = tmp_path / "needles" / "answers.jsonl"
    with path.open("a") as file:
        file.write('{"kind": "S-1", "le')
    assert hope("evaluate", *given, "--set=kinds=S-1,S-2") == 0
    assert "10 questions, 5 answered before" in capsys.readouterr().out
    assert len(list(read_json_lines(path))) == 10 and len(said) == 4
    steps.append(9)
    assert hope("evaluate", *given, "--set=kinds=S-2") == 0
    assert "5 questions, 0 answered before" in capsys.readouterr().out
    (tmp_path / "prose.txt").write_text("Once upon a time. There was nothing more to tell.")
    assert hope("evaluate", *given, "--set=kinds=S-2", f"--text={tmp_path / 'prose.txt'}") == 0
    assert "5 questions, 0 answered before" in capsys.readouterr().out
    lines = [json.loads(text) for text in path.read_text().splitlines() if text.endswith("}")]
    assert [line["step"] for line in lines] == [7] * 10 + [9] * 10
    assert "Step 9 of" in (tmp_path / "needles" / "results.md").read_text()
    assert (tmp_path / "needles" / "heat_map.png").stat().st_size > 1000
    # Of one checkpoint of the run: beside the others' answers, and nothing in its own folder.
    given[0] = f"--workdir={tmp_path / 'checkpoints' / '7'}"
    steps.append(7)
    assert hope("evaluate", *given, "--set=kinds=S-2") == 0
    assert "5 questions, 5 answered before" in capsys.readouterr().out
    assert not (tmp_path / "checkpoints").exists()


def test_a_field_without_a_question_stays_empty(tmp_path):
    lines = [
        {"kind": "S-1", "length": 1024, "depth": 0.0, "share": 1.0},
        {"kind": "S-2", "length": 2048, "depth": 1.0, "share": 0.0},
    ]
    draw_heat_map(lines, "Needles", tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000
