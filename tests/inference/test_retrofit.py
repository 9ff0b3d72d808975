"""`experiments/retrofit/`: what is read, chosen, kept and told of a pre-trained model."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.data.tokenizers import ByteTokenizer
from hope_jax.models import LanguageModel, LanguageModelConfig

FOLDER = Path(__file__).parents[2] / "experiments" / "retrofit"
SCRIPTS = ("documents", "measure", "needle", "report", "continued")
MODEL = LanguageModelConfig(
    vocab_size=256,
    width=8,
    num_layers=2,
    num_heads=2,
    mlp_width=8,
    sequence_layer="attention",
    attention_window=8,
)
LEARNING = "8 blocks, 64"


@pytest.fixture
def scripts(monkeypatch):
    """The scripts as modules, with short documents and a small setting."""
    monkeypatch.syspath_prepend(str(FOLDER))
    modules = {name: importlib.import_module(name) for name in SCRIPTS}
    measure = modules["measure"]
    monkeypatch.setattr(measure, "WINDOW", 8)
    monkeypatch.setattr(measure, "SEGMENT", 16)
    monkeypatch.setattr(measure, "BIN", 8)
    monkeypatch.setattr(modules["report"], "BIN", 8)
    small = {"in_context": {"blocks": 1, "chunks": (4,)}}
    monkeypatch.setitem(measure.SETTINGS, LEARNING, small)
    monkeypatch.setattr(measure, "LARGEST_CHANGE", 0.02)
    monkeypatch.setattr(measure, "text_of", lambda name: name * 50)
    parts = {"tuning": ("one ", "two "), "reporting": ("three ", "four ", "short"[:0])}
    monkeypatch.setattr(measure, "PARTS", parts)
    yield type("Scripts", (), modules)
    for name in SCRIPTS:
        sys.modules.pop(name)


@pytest.fixture
def trained(scripts):
    model = LanguageModel(MODEL)
    tokens = np.zeros((1, 2), np.int32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    return scripts.measure.Trained("tiny", model, params, ByteTokenizer())


def test_a_reading_in_segments_is_the_model_s_with_that_step(scripts, trained):
    ids = np.frombuffer(b"what is read in segments, and in", np.uint8).astype(np.int32)
    ids = np.append(ids, 33)
    losses = scripts.measure.read_losses(*scripts.measure.set_up(trained, LEARNING, 0.3, 32), ids)
    learning = {"blocks": 1, "chunks": (4,), "step_size": 0.3, "learned_step": False}
    learning["largest_change"] = scripts.measure.LARGEST_CHANGE
    model = LanguageModel(dataclasses.replace(MODEL, in_context=learning))
    whole = jax.jit(lambda *inputs: model.apply(*inputs, method="token_losses"))
    variables = {"params": trained.params}
    expected = whole(variables, ids[None, :-1], ids[None, 1:])[0]
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    plain = scripts.measure.read_losses(*scripts.measure.set_up(trained, "window", None, 32), ids)
    np.testing.assert_allclose(plain[:4], losses[:4], rtol=1e-5)
    assert np.abs(plain - losses).max() > 1e-3


def test_windows_are_of_the_setting_or_of_the_whole(scripts, trained):
    window = lambda setting: (
        scripts.measure.set_up(trained, setting, 1.0, 40)[0].config.attention_window
    )
    assert [window(name) for name in ("window", "window 512", "full", LEARNING)] == [8, 512, 40, 8]
    assert scripts.measure.set_up(trained, "as trained", None, 40) == (
        trained.model,
        trained.params,
    )


@pytest.fixture
def quick(scripts, monkeypatch):
    """Readings that take no time: their loss is least at step 0.1. Those that were made are noted."""
    noted = []

    def read(setting, step, ids):
        noted.append((setting, step))
        level = 3.0 if step is None else 2.0 + abs(np.log10(step / 0.1))
        return np.repeat(level + 0.1 * ids[0] % 7, len(ids) - 1) + np.arange(len(ids) - 1) / 100

    monkeypatch.setattr(scripts.measure, "set_up", lambda trained, *rest: rest[:2])
    monkeypatch.setattr(scripts.measure, "read_losses", read)
    return noted


def test_the_step_is_followed_until_both_neighbours_are_worse(scripts, trained, quick, tmp_path):
    rows = scripts.measure.Rows(tmp_path / "rows.jsonl")
    assert scripts.measure.choose_step(trained, rows, LEARNING, 32) == 0.1
    assert {step for _, step in quick} == {0.01, 0.03, 0.1, 0.3}
    assert {row["part"] for row in rows.found} == {"tuning"}


def test_what_was_read_is_not_read_again_and_a_line_that_was_cut_is(
    scripts, trained, quick, tmp_path, capsys
):
    path = tmp_path / "rows.jsonl"
    measure = lambda: scripts.measure.measure(
        trained, scripts.measure.Rows(path), ["window", LEARNING], 32, 32
    )
    measure()
    assert "left out" not in capsys.readouterr().out
    whole, count = path.read_text(), len(quick)
    assert count == 2 + 4 * 2 + 2
    measure()
    assert path.read_text() == whole and len(quick) == count
    path.write_text(whole[:-30])
    measure()
    assert len(quick) == count + 1 and "left out a line" in capsys.readouterr().out
    lines = path.read_text().splitlines()
    assert [json.loads(lines[-1])] == [json.loads(whole.splitlines()[-1])]


def test_the_table_pairs_by_document(scripts, trained, quick, tmp_path):
    rows = scripts.measure.Rows(tmp_path / "rows.jsonl")
    scripts.measure.measure(trained, rows, ["window", LEARNING], 32, 32)
    last = rows.found[-1]
    last["losses"] = [loss - 0.5 for loss in last["losses"]]
    groups = scripts.report.chosen(rows, 32)
    assert {name: group[0]["step"] for name, group in groups.items()} == {
        ("tiny", "window"): None,
        ("tiny", LEARNING): 0.1,
    }
    mean, error = scripts.report.paired(groups["tiny", LEARNING], groups["tiny", "window"], 4)
    np.testing.assert_allclose(mean, -1.25)  # -1 and -1.5
    np.testing.assert_allclose(error, 0.25)
    table = scripts.report.table(groups, ("tiny", "window"))
    assert len(table) == 4 and "-1.250 ± 0.250" in table[3]
    rows.found.pop()  # a setting whose run was stopped
    assert list(scripts.report.chosen(rows, 32)) == [("tiny", "window")]
    scripts.report.draw(groups, ("tiny", "window"), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_needles_lie_where_they_are_said_to(scripts, monkeypatch):
    monkeypatch.setattr(scripts.needle, "text_of", lambda name: "." * 1000)
    distances = [300, 120, 40]
    ids, questions = scripts.needle.make_text(ByteTokenizer(), "any", 400, distances)
    text = bytes(ids.tolist()).decode()
    assert len(text) == 401 and text.count("The secret number") == 3
    for distance, (right, wrong) in zip(distances, questions, strict=True):
        right, wrong = (bytes(question.tolist()).decode() for question in (right, wrong))
        assert right[:-4] == wrong[:-4] and right[-4:].isdigit() and right[-4:] != wrong[-4:]
        end = text.index(f"{right}.\n") + len(right) + 2
        assert len(text) - end == distance
        assert wrong not in text
    with pytest.raises(ValueError, match="do not fit"):
        scripts.needle.make_text(ByteTokenizer(), "any", 200, distances)


def test_parts_share_no_file_and_the_two_trainings_differ_in_the_levels_alone(scripts):
    documents = scripts.documents
    names = " ".join(documents.TUNING + documents.REPORTING).split()
    assert len(names) == len(set(names))
    held_out = {documents._part(name) for name in names}
    trained_on = [text.decode("utf-8", "replace") for text in documents.training()]
    assert len(trained_on) > 100 and not held_out.intersection(trained_on)
    plain, levels = (scripts.continued.get_config(name) for name in ("plain", "levels"))
    assert plain.model.in_context is None and levels.model.in_context.blocks == 8
    levels.model.in_context = None
    assert plain == levels
    with pytest.raises(ValueError, match="unknown variant 'other'"):
        scripts.continued.get_config("other")
