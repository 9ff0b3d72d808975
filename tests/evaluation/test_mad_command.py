"""`experiments/mad.py`: its rows are alike where it says so, and a tiny one runs."""

import json

import pytest

from hope_jax.commands.suite import main, row_settings
from hope_jax.models import LanguageModel
from hope_jax.models.auto_encoder import AutoEncoder
from hope_jax.models.parameter_count import parameter_count, state_bytes
from tests.evaluation.scripts import suite_script


@pytest.fixture
def command(monkeypatch):
    """The script as a module, on one device."""
    yield from suite_script("mad", monkeypatch)


def test_rows_have_hope_s_parameters_and_states_of_its_size(command):
    models = {row: row_settings(command.SUITE, row).model for row in command.ROWS}
    parameters = {row: parameter_count(model) for row, model in models.items()}
    states = {row: state_bytes(model) for row, model in models.items()}
    for row in models:
        assert abs(parameters[row] / parameters["hope"] - 1) <= 0.02, row
        if row != "transformer":
            assert abs(states[row] / states["hope"] - 1) <= 1 / 3, row


def test_a_tiny_model_is_trained_with_each_point_s_vocabulary_and_decoder(
    command, tmp_path, capsys
):
    tiny = ["model.width=8", "model.num_layers=1", "model.mlp_width=4", "steps=2", "batch_size=4"]
    tiny += ["evaluate_every=1", "validation=3", "test=5"]
    tasks = "compression,compression/vocabulary=32"
    given = [f"--workdir={tmp_path}", "--rows=delta_net", "--seeds=1", f"--tasks={tasks}"]
    main(command.SUITE, command.__file__, "", [*given, *(f"--set={text}" for text in tiny)])
    lines = [json.loads(text) for text in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [line["task"] for line in lines] == tasks.split(",")
    assert all(line["steps"] == 2 and 0 <= line["right"]["right"] < 0.2 for line in lines)
    mean = 50 * sum(line["right"]["right"] for line in lines)
    assert f"| {mean:.4g} |" in (tmp_path / "results.md").read_text()
    assert "state bytes | compression |" in capsys.readouterr().out


def test_compression_alone_has_the_decoder(command, monkeypatch):
    made = {}

    def make_fitter(settings, model, score):
        made[model.config.vocab_size] = type(model)
        return lambda *given: {}

    monkeypatch.setattr(command, "make_fitter", make_fitter)
    run = command.make_run(command.Settings())
    for task in ("memorisation", "compression", "noisy"):
        run(task, command.Sets(None, None, None), 0, None)
    assert made == {16: AutoEncoder, 32: LanguageModel, 256: LanguageModel}
