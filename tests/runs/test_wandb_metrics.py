"""Metrics that are sent to Weights & Biases, by a stand-in for its library."""

import sys
import types

import pytest

from hope_jax.runs.metrics import MetricsWriter, read_metrics
from hope_jax.runs.wandb_metrics import WandbMetrics, find_wandb
from hope_jax.training.config import default_config


class Library(types.ModuleType):
    """Keeps runs by their ids; a run's `step` is the last that was logged, as there."""

    def __init__(self):
        super().__init__("wandb")
        self.runs = {}

    def init(self, *, project, id, name, dir, config, resume):
        assert project == "hope" and resume == "allow" and config["log"]["wandb"] == "hope"
        run = self.runs.setdefault(id, types.SimpleNamespace(step=0, lines=[], ended=0, name=name))

        def log(values, step):
            run.step = step
            run.lines.append((step, values))

        def finish():
            run.ended += 1

        run.log, run.finish = log, finish
        return run


def test_what_is_written_is_sent_once_to_one_run(tmp_path, monkeypatch):
    library = Library()
    monkeypatch.setitem(sys.modules, "wandb", library)
    config = default_config(vocab_size=8, width=8, num_layers=1, num_heads=1, mlp_width=8)
    config.log.wandb = "hope"
    folder = tmp_path / "a run"
    folder.mkdir()

    def begin(step):
        return WandbMetrics(MetricsWriter(str(folder), step), find_wandb("hope"), config)

    metrics = begin(0)
    for step in (1, 2, 3):
        metrics.write(step, loss=float(step))
    metrics.close()
    metrics = begin(1)  # killed after step 3, and begun from a checkpoint of step 1
    for step in (2, 3, 4):
        metrics.write(step, loss=float(step))
    metrics.write_final(4, validation_loss=5.0)
    metrics.close()
    (run,) = library.runs.values()
    assert run.name == "a run" and run.ended == 2
    values = [(step, *line.items()) for step, line in run.lines]
    assert sorted(set(values)) == [(n, ("loss", float(n))) for n in (1, 2, 3, 4)] + [
        (4, ("validation_loss", 5.0))
    ]
    assert [step for step, *_ in values] == sorted(step for step, *_ in values)
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3, 4, 4]


def test_without_the_library_it_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="log.wandb='hope' needs .*: pip install wandb"):
        find_wandb("hope")
