"""The comparison of streams: which rate is chosen, what is run again, and who is asked after what."""

import importlib
import math
import sys

import numpy as np
import pytest

from hope_jax.data.tokenizers import ByteTokenizer
from hope_jax.evaluation.stream import Place, places_of
from hope_jax.evaluation.streams import STREAMS, ClassSettings
from hope_jax.training.stages import Training
from tests.evaluation.scripts import FOLDER

SETTINGS = ClassSettings(groups=2, classes=2, shots=2, questions=1)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "continual"))
    yield importlib.import_module("streams")
    sys.modules.pop("streams")


def experiment_of(script, folder):
    reader = script.Reader(None, 0, ByteTokenizer())
    return script.Experiment(
        STREAMS["classes"],
        SETTINGS,
        dict.fromkeys(script.ROWS, reader),
        dict.fromkeys(script.ROWS, "run"),
        script.Trials(folder / "trials.jsonl", {"stream": 1}),
        Training(0.0, memory=4),
        range(1000, 1002),
        range(3),
    )


def test_rates_are_followed_until_both_neighbours_are_worse(script, monkeypatch, tmp_path):
    asked = []

    def at_end(self, row, readings, strength, rate):
        asked.append(rate)
        return -abs(math.log(rate / 1e-2)) - (strength != 10)

    monkeypatch.setattr(script.Experiment, "at_end", at_end)
    experiment = experiment_of(script, tmp_path)
    assert experiment.chosen("elastic weights", 1) == (1e-2, 10.0)
    assert set(asked) == {3e-4, 1e-3, 3e-3, 1e-2, 3e-2}
    assert experiment.chosen("levels", 1) == (0.0, 0.0)


def test_trials_are_run_once_and_ask_what_their_row_has_learnt(script, monkeypatch, tmp_path):
    """Parameters are the number of stages trained on, and a context is what was read."""
    seen, how = [], []

    def train(model, params, stages, training, seed):
        how.append((training, seed))
        yield from range(1, len(stages) + 1)

    def ask(stages, asking, model, params, tokenizer, places, context):
        seen.append((params, context))
        for place in places:
            yield {**place._asdict(), "share": float(place.stage < params)}

    monkeypatch.setattr(script, "train_in_stages", train)
    monkeypatch.setattr(script, "ask_after", ask)
    monkeypatch.setattr(script, "have_read", lambda reader, stages, segment: len(stages))
    experiment = experiment_of(script, tmp_path)
    trial = experiment.trial("replay", 0, 4, 0.1, 0.0)
    assert how == [(Training(0.1, readings=4, memory=4), 0)]
    assert seen == [(0, 0), (1, 0), (2, 0)]
    scores = script.scores_in(trial, "share")
    np.testing.assert_array_equal(scores, [[0, 0], [1, 0], [1, 1]])
    assert experiment.trial("replay", 0, 4, 0.1, 0.0) == trial and len(how) == 1
    experiment.trial("fine-tuning, then read", 1000, 1, 0.1, 0.0)
    assert how[1] == (Training(0.1), 1000) and seen[3:] == [(2, 2)]  # at the end alone
    stages = STREAMS["classes"].make(SETTINGS)
    assert Place(2, 1, 1) in places_of(stages)
    # A row without all seeds is not in the table.
    assert script.reported(experiment.trials, experiment.runs, range(3)) == {}
    for seed in (1, 2):
        experiment.trial("replay", seed, 4, 0.1, 0.0)
    groups = script.reported(experiment.trials, experiment.runs, range(3))
    assert list(groups) == ["replay, 4 readings"]
    table = script.table(groups, stages)
    assert "| replay, 4 readings | 100.0 ± 0.0 | 0.0 ± 0.0 | 0.0 ± 0.0 | 0.1 |  | " in table
    script.draw(groups, stages, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
