"""A comparison of two tiny variants, and the rows that ship."""

import json
import math
import pathlib

import pytest

from hope_jax.commands import compare
from hope_jax.comparison import trial
from hope_jax.comparison.plan import Plan
from hope_jax.models.parameter_count import parameter_count
from hope_jax.runs.config_file import load_config_file
from hope_jax.training.loop import DivergedError
from tests.commands.in_process import hope
from tests.training.runs import QUICKSTART, tiny_config


def ablations():
    return load_config_file(QUICKSTART.with_name("ablations.py"))


def test_rows_have_the_same_number_of_parameters():
    module = ablations()
    counts = {row: parameter_count(module.model_config(row)) for row in module.ROWS}
    for row, count in counts.items():
        assert abs(count / counts["hope"] - 1) <= 0.02, (row, count, counts["hope"])
    assert len(counts) == 47
    config = module.get_config("no_decay")
    assert config.model.titans.retention == "none"
    with pytest.raises(ValueError, match="unknown row 'nothing'"):
        module.get_config("nothing")


def test_rows_are_trained_once_and_tabled(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    config = tiny_config(tmp_path, steps=3)
    config.evaluate.ngram_orders = ()
    (tmp_path / "c.py").write_text(
        f"import ml_collections\ndef get_config(variant):\n"
        f"    config = ml_collections.ConfigDict({config.to_dict()!r})\n"
        f"    config.model.mlp_width = dict(small=16, large=32)[variant]\n    return config\n"
    )
    ask = [
        "compare", "--config=c.py:small,large", "--workdir=runs",
        "--tune=optimizer.learning_rate=1e-2,1e-3", "--seeds=2",
    ]  # fmt: skip
    real, trained = trial.train, []

    def train_the_first(config, workdir, may_change):
        """The others are made up."""
        trained.append(workdir)
        if len(trained) == 1:
            return real(config, workdir, may_change=may_change)
        pathlib.Path(workdir).mkdir(parents=True)
        large, rate = config.model.mlp_width == 32, config.optimizer.learning_rate
        return {"validation_loss": 9 - large - 10 * rate + config.seed / (7 + large)}

    monkeypatch.setattr(trial, "train", train_the_first)
    assert hope(*ask) == 0
    said = capfd.readouterr().out
    assert said.startswith(
        "2 rows x 2 settings x 1 selection seed, then 2 rows x 2 seeds: 8 runs\n"
    )
    losses = {}
    for path in tmp_path.glob("runs/*/*/*/result.json"):
        row, rate, seed = path.parts[-4:-1]
        losses[row, float(rate.partition("=")[2]), seed] = json.loads(path.read_text())["loss"]
    assert len(trained) == len(set(losses.values())) == 8 and all(
        map(math.isfinite, losses.values())
    )
    table = (tmp_path / "runs" / "table.md").read_text()
    assert table in said and " ".join(ask) in table.replace("'", "")
    means = []
    for row in ("small", "large"):
        rate = min((1e-2, 1e-3), key=lambda rate: losses[row, rate, "seed_0"])
        means.append([losses[row, rate, f"seed_{seed}"] for seed in (1, 2)])
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {row} |")]
        assert f"| {rate:g} (edge) | {sum(means[-1]) / 2:.4f} ± " in line
    assert f"| {(sum(means[1]) - sum(means[0])) / 2:.4f} ± " in line
    assert (tmp_path / "runs" / "rows.png").stat().st_size > 5_000

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(trial, "train", never)
    assert hope(*ask) == 0 and table in capfd.readouterr().out
    assert hope(*ask, "--set=steps=4") == 2
    assert "runs/small/optimizer.learning_rate=0.01/seed_0 holds a run with other settings" in (
        capfd.readouterr().err
    )


def test_a_run_that_diverges_is_a_row_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def diverges(config, workdir, may_change):
        raise DivergedError("step 1: loss nan")

    monkeypatch.setattr(trial, "train", diverges)
    plan = Plan({"one": tiny_config(tmp_path)}, {}, 1, 1, "one", tmp_path / "runs")
    (tmp_path / "runs" / "one" / "seed_0").mkdir(parents=True)
    (line,) = compare.compare(plan, 1, "hope compare")
    assert [result.loss for result in line.results] == [math.inf] and line.diverged == 1
    assert "| diverged |  | 0 | 1 of 1 |" in (tmp_path / "runs" / "table.md").read_text()


def test_rows_of_several_values():
    rows = compare.read_rows(
        f"{QUICKSTART}:hope,transformer", ["steps=9"], ["seed=1,2", "data.batch_size=4,8"]
    )
    assert list(rows)[:2] == ["hope,seed=1,data.batch_size=4", "hope,seed=1,data.batch_size=8"]
    assert len(rows) == 8 and {config.steps for config in rows.values()} == {9}
    last = rows["transformer,seed=2,data.batch_size=8"]
    assert (last.seed, last.data.batch_size, last.model.sequence_layer) == (2, 8, "attention")
    (name,) = compare.read_rows(str(QUICKSTART))
    assert name == "quickstart"


def test_tuned_values_are_as_the_config_has_them():
    rows = compare.read_rows(str(QUICKSTART))
    tuned = compare.read_tuned(["optimizer.learning_rate=1e-2,1", "optimizer.name=m3,adamw"], rows)
    assert tuned == {"optimizer.learning_rate": (0.01, 1.0), "optimizer.name": ("m3", "adamw")}
