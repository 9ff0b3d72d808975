"""Runs that are extended, go on at other rates, are moved, or begin another one."""

import contextlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.commands.trained_model import load_model
from hope_jax.data.tokenizers import copy_tokenizer, load_tokenizer
from hope_jax.runs.checkpoint_reader import read_other
from hope_jax.runs.metrics import SPEEDS, read_metrics
from hope_jax.runs.run_config import load_config
from hope_jax.training import assembly, feed, loop, usage
from hope_jax.training.optimizer import make_schedule
from hope_jax.training.step import Metrics
from tests.commands.in_process import hope
from tests.runs.folders import files_in
from tests.training.runs import losses, tiny_config

CONFIG = """
import pathlib
from tests.training.runs import tiny_config

def get_config():
    return tiny_config(pathlib.Path(__file__).parent, **{"evaluate.sample_tokens": 0})
"""


@jax.jit
def one_more(state):
    return jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state)


@contextlib.contextmanager
def without_mathematics(folder):
    """A step adds one to every number of the state; runs lie in a folder, which holds a config."""
    values = Metrics(*[jnp.ones(())] * 3)
    with pytest.MonkeyPatch.context() as patch:
        step = lambda state, batch: (one_more(state), values)
        patch.setattr(assembly, "make_train_step", lambda *_: step)
        patch.setattr(feed, "make_eval_step", lambda *_: lambda *_: (jnp.ones(()), jnp.ones(())))
        patch.chdir(folder)
        (folder / "config.py").write_text(CONFIG)
        yield


@pytest.fixture(autouse=True)
def no_mathematics(tmp_path):
    with without_mathematics(tmp_path):
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with without_mathematics(folder):
        assert train("--config=config.py", "--workdir=run") == 0
    return folder


@pytest.fixture
def run(trained, tmp_path, no_mathematics):
    """A run of the config that has come to its end lies in the folder `run`."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)


def train(*arguments):
    return hope("train", *arguments)


def embedding(run):
    return np.asarray(load_model(run)[1]["embedding"])


def test_a_run_is_extended_and_says_what_that_does_to_its_rate(run, capsys):
    assert (
        train("--config=config.py", "--workdir=run", "--config.steps=9", "--config.log.every=3")
        == 0
    )
    said = capsys.readouterr().out
    assert "continuing run from step 6\n" in said
    assert "with other settings: log.every 3 in place of 1, steps 9 in place of 6\n" in said
    config = load_config("run")
    was, now = make_schedule(config.optimizer, 6)(5), make_schedule(config.optimizer, 9)(6)
    assert f"learning rate: {was:.3g} at step 6 as it was, {now:.3g} at step 7\n" in said
    assert [step for step, _ in losses("run")] == [1, 2, 3, 4, 5, 6, 9]
    assert config.steps == 9
    # Fewer than it has taken.
    assert train("--workdir=run", "--config.steps=7") == 2
    assert "steps=7, but the run in" in capsys.readouterr().err
    assert load_config("run").steps == 9


def test_what_is_recomputed_and_in_how_many_parts_a_batch_is_taken_may_change(capsys):
    train("--config=config.py", "--workdir=run", "--config.data.batch_size=16")
    capsys.readouterr()
    assert train("--workdir=run", "--config.model.remat=block", "--config.steps=7") == 0
    assert "model.remat 'block' in place of 'none'" in capsys.readouterr().out
    assert train("--workdir=run", "--config.accumulate=2", "--config.steps=8") == 0
    assert "accumulate 2 in place of 1" in capsys.readouterr().out


def test_other_rates_are_taken_where_they_can_only_be_meant(run, capsys):
    rate = "--config.optimizer.learning_rate=0.003"
    assert train("--config=config.py", "--workdir=run", "--config.steps=8", rate) == 2
    said = capsys.readouterr().err
    assert "optimizer.learning_rate: 0.01 there, 0.003 here" in said and said.count("\n") == 1
    mend = said.partition("hope train ")[2].partition(";")[0].split()
    assert "--config.steps=8" in mend and rate in mend
    assert train(*mend) == 0
    assert "at step 7" in capsys.readouterr().out
    assert load_config("run").optimizer.learning_rate == 0.003


@pytest.mark.parametrize(
    "change",
    [
        "model.width=32",
        "data.batch_size=16",
        "seed=1",
        "optimizer.name=sgd",
        "optimizer.arguments.b1=0.8",
    ],
)
def test_what_would_change_the_mathematics_names_the_way_out(run, change, capsys):
    before = load_config("run")
    assert train("--workdir=run", f"--config.{change}", "--config.optimizer.weight_decay=0") == 2
    said = capsys.readouterr().err
    assert f"{change.partition('=')[0]}: " in said and "--workdir=NEW --from_run=" in said
    assert load_config("run") == before


def test_a_rate_that_changes_the_optimisers_state_is_refused_and_nothing_is_written(run, capsys):
    assert train("--workdir=run", "--config.optimizer.clip_norm=0", "--config.steps=8") == 2
    said = capsys.readouterr().err
    assert "another model or optimiser: optimizer/" in said and "with --from_run=" in said
    assert load_config("run").steps == 6


def test_a_run_begins_from_anothers_weights(run, tmp_path, capsys):
    shutil.move("run", "old")
    files = files_in(tmp_path / "old")
    new = ("--workdir=new", "--from_run=old", "--config.steps=2")
    assert train(*new) == 0
    assert f"beginning from the weights of {tmp_path}/old at step 6\n" in capsys.readouterr().out
    np.testing.assert_array_equal(embedding("new"), embedding("old") + 2)
    assert json.loads((tmp_path / "new/from_run.json").read_text()) == {
        "run": str(tmp_path / "old"),
        "optimizer": False,
        "step": 6,
    }
    # Once more, and without the other run: no second start.
    shutil.move("old", "gone")
    assert train("--workdir=new", "--from_run=old", "--config.steps=3") == 0
    np.testing.assert_array_equal(embedding("new"), embedding("gone") + 3)
    assert {name: value[0] for name, value in files_in(tmp_path / "gone").items()} == {
        name: value[0] for name, value in files.items()
    }
    assert train("--workdir=gone", "--from_run=new") == 2
    assert "holds a run that was begun by itself" in capsys.readouterr().err


def counts_steps(node):
    return "count" in getattr(node, "_fields", ())


@pytest.mark.parametrize("with_optimizer", [False, True])
def test_the_optimisers_state_comes_along_if_asked_for(run, tmp_path, with_optimizer, monkeypatch):
    config = tiny_config(tmp_path, **{"evaluate.sample_tokens": 0})
    targets = []
    real = assembly.abstract_state
    monkeypatch.setattr(
        assembly, "abstract_state", lambda *a: targets.append(real(*a)) or targets[-1]
    )
    config.steps = 1
    loop.train(config, "new", from_run="run", with_optimizer=with_optimizer)
    _, old = read_other("run", targets[0], whole=True)
    _, new = read_other("new", targets[0], whole=True)
    assert int(new.step) == 1
    counts = {"adam": [], "schedule": []}
    for state in (old, new):
        for node in jax.tree.leaves(state.optimizer, is_leaf=counts_steps):
            if counts_steps(node):
                counts["adam" if hasattr(node, "mu") else "schedule"].append(int(node.count))
    # The schedule begins anew; Adam's correction of its moments does only where they do.
    assert counts == {"adam": [6, 7 if with_optimizer else 1], "schedule": [6, 1]}


def test_shapes_that_do_not_fit_are_named_and_leave_no_run(run, tmp_path, capsys):
    assert train("--workdir=new", "--from_run=run", "--config.model.mlp_width=32") == 2
    said = capsys.readouterr().err
    assert "level_0/down/kernel is float32[1, 16, 16] there and float32[1, 32, 16] here" in said
    assert said.count("\n") == 1 and not (tmp_path / "new").exists()
    assert train("--workdir=new", "--from_run=nowhere") == 2
    assert "--from_run=nowhere holds no run" in capsys.readouterr().err
    assert train("--config=config.py", "--workdir=new", "--with_optimizer") == 2
    assert "--with_optimizer needs --from_run" in capsys.readouterr().err


def test_a_run_holds_its_tokenizer(tmp_path, capsys):
    (tmp_path / "its").mkdir()
    copy_tokenizer("bytes", tmp_path / "its")
    named = "--config.data.tokenizer=its/tokenizer.json"
    assert train("--config=config.py", "--workdir=run", named) == 0
    digest = load_tokenizer("its/tokenizer.json").digest
    shutil.move("its", "elsewhere")
    shutil.move("run", "moved")
    assert load_model("moved")[2].digest == digest
    assert train("--workdir=moved", "--config.steps=7") == 0
    assert train("--config=config.py", "--workdir=moved", named, "--config.steps=8") == 0
    # Another one under the old name.
    (tmp_path / "its").mkdir()
    text = (tmp_path / "elsewhere/tokenizer.json").read_text()
    (tmp_path / "its/tokenizer.json").write_text(text + " ")
    capsys.readouterr()
    for given in (named, "--config.data.tokenizer=bytes"):
        assert train("--config=config.py", "--workdir=moved", given, "--config.steps=9") == 2
        assert "is not the tokenizer that the run" in capsys.readouterr().err
    assert train("--workdir=next", "--from_run=moved", named) == 2
    assert "has learnt with another tokenizer" in capsys.readouterr().err
    # A run of before, without a copy, and one that was made of a checkpoint.
    shutil.rmtree("moved/tokenizer")
    config = json.loads((tmp_path / "moved/config.json").read_text())
    for name in ("elsewhere/tokenizer.json", "/nowhere/llama/tokenizer.json"):
        config["data"]["tokenizer"] = name
        (tmp_path / "moved/config.json").write_text(json.dumps(config))
        assert load_model("moved")[2].digest == digest
        shutil.copytree("elsewhere", "moved/llama", dirs_exist_ok=True)
        shutil.rmtree("moved/llama") if "nowhere" in name else None


def test_quiet_is_one_line(capfd):
    assert (
        train("--config=config.py", "--workdir=run", "--quiet", "--config.optimizer.warmup_steps=9")
        == 0
    )
    said = capfd.readouterr()
    assert said.out.startswith("validation: ") and said.out.count("\n") == 1
    assert not said.err


def test_use_of_the_chip_is_told_where_its_peak_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(usage, "peak_flops", lambda kind: 1e9)
    # Steps that follow each other: a time of one alone tells no speed.
    changes = {"evaluate.sample_tokens": 0, "evaluate.every": 50, "checkpoint.every": 50}
    loop.train(tiny_config(tmp_path, **changes), "run")
    lines = [line for line in read_metrics("run") if "mfu" in line]
    assert lines and set(SPEEDS) <= lines[-1].keys()
    shares = [line["mfu"] / line["tokens_per_second"] * 1e9 * jax.device_count() for line in lines]
    # Six for each parameter that is multiplied with, and attention's 16 tokens.
    assert shares == pytest.approx([shares[0]] * len(shares))
    assert 6 * 4096 < shares[0] < 12 * 6000
    assert lines[-1]["inner_mfu"] == 0  # a Transformer
