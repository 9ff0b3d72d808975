"""Runs that stop, go on, fail, and are given the wrong settings."""

import contextlib
import io
import math
import os
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.runs.checkpoint_reader import find_damage
from hope_jax.runs.metrics import SPEEDS, read_metrics
from hope_jax.training import assembly, feed, loop
from hope_jax.training.step import Metrics
from tests.runs.folders import read_board
from tests.training.runs import change_batch, losses, tiny_config


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    """Runs each test from within its folder, where the text lies."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said):
        result = loop.train(tiny_config(folder), str(folder / "run"))
    (folder / "said.txt").write_text(said.getvalue())
    return folder / "run", result


def test_a_run_leaves_metrics_a_picture_and_bits_per_byte(whole):
    workdir, result = whole
    assert [step for step, _ in losses(workdir)] == [1, 2, 3, 4, 5, 6]
    assert (workdir / "loss.png").stat().st_size > 1000
    np.testing.assert_allclose(
        result["bits_per_byte"], result["validation_loss"] / np.log(2), rtol=0.1
    )
    assert 0 < result["3_gram_bits_per_byte"] < 8
    rates = [line["learning_rate"] for line in read_metrics(workdir) if "learning_rate" in line]
    # A warm-up of one step, then a cosine to a twentieth at the sixth.
    np.testing.assert_allclose([rates[0], rates[-1]], [0.01, 0.0005], rtol=1e-5)
    assert len(rates) == 6 and sorted(rates, reverse=True) == rates
    assert all("update_norm" in line for line in read_metrics(workdir) if "loss" in line)
    assert not any("mfu" in line for line in read_metrics(workdir))  # a CPU's peak is not known


def test_a_run_says_what_it_does(whole):
    said = (whole[0].parent / "said.txt").read_text()
    corpus = re.search(
        r"corpus +([\d,]+) tokens to learn from \(8 documents, [\d,]+ bytes\), (\S+) times over; "
        r"[\d,]+ tokens to validate on \(2 documents",
        said,
    )
    tokens = int(corpus[1].replace(",", ""))
    assert float(corpus[2]) == pytest.approx(6 * 8 * 16 / tokens, rel=0.1)
    assert re.search(
        r"compiling the training step ...\ncompiled, and the first step taken, in \d", said
    )
    # An evaluation or a checkpoint after each step leaves no two that say how fast steps are.
    for step in (1, 2, 6):
        assert re.search(rf"\nstep {step}/6  loss \d\.\d{{4}}  rate 0.0\d+  memory \S+ .B\n", said)
    assert re.search(r"\nfolder +\S+/run \(a checkpoint every 2 steps, the newest 2 kept\)\n", said)
    assert "nan" not in said
    assert f"  hope generate --workdir={whole[0]} --prompt='def '\n" in said
    assert "hope inspect" not in said  # nothing learns in context


def test_sigterm_saves_and_the_next_run_continues_to_the_bit(tmp_path, monkeypatch, whole):
    config = tiny_config(tmp_path)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        change_batch(patch, 2, lambda batch: os.kill(os.getpid(), signal.SIGTERM))
        assert loop.train(config, str(run)) is None
    # The step under way is finished; 3 is no multiple of checkpoint.every.
    assert losses(run)[-1][0] == 3
    assert saved_steps(run)[-1] == 3
    result = loop.train(config, str(run))
    assert losses(run) == losses(whole[0])
    assert result == whole[1]


class Killed(BaseException):
    """The end of a process."""


def test_a_run_that_is_cut_off_goes_on_from_a_checkpoint_to_the_bit(tmp_path, monkeypatch, whole):
    config = tiny_config(tmp_path)
    run = tmp_path / "run"

    def kill(batch):
        raise Killed

    with monkeypatch.context() as patch:
        # Batches of steps 1 to 3, of the evaluation there, and of step 4 come before.
        change_batch(patch, 5, kill)
        with pytest.raises(Killed):
            loop.train(config, str(run))
    assert saved_steps(run) == [2, 4]
    assert loop.train(config, str(run)) == whole[1]
    assert losses(run) == losses(whole[0])
    shown, wanted = (
        {key for key in read_board(folder) if key[0] not in SPEEDS} for folder in (run, whole[0])
    )
    assert shown == wanted
    assert all(len(values) == 1 for values in read_board(run).values())


def test_sigterm_in_the_last_evaluation_finds_the_last_checkpoint_whole(
    tmp_path, monkeypatch, whole
):
    config = tiny_config(tmp_path)
    run = tmp_path / "run"

    def terminate(batch):
        assert find_damage(run, 6) is None
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        change_batch(patch, 7, terminate)
        assert loop.train(config, str(run)) is None
    assert read_metrics(str(run))[-1].keys() >= {"step", "loss"}
    for _ in range(2):  # the second is a run that has finished
        assert loop.train(config, str(run)) == whole[1]
        without_speed = [
            [{**line, **dict.fromkeys(SPEEDS, 0)} for line in read_metrics(str(folder))]
            for folder in (run, whole[0])
        ]
        assert without_speed[0] == without_speed[1]
        assert all(len(values) == 1 for values in read_board(run).values())


def test_another_corpus_is_refused(tmp_path, whole):
    config = tiny_config(tmp_path)
    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "text" / "new.txt").write_text("ten green bottles, hanging on the wall")
    with pytest.raises(
        ValueError, match=r"data.files='text/\*.txt', data.tokenizer='bytes' is not the corpus"
    ):
        loop.train(config, str(tmp_path / "run"))


def test_bad_batches_are_skipped_until_they_are_too_many_in_a_row(tmp_path, monkeypatch, capsys):
    """Those of steps 3, 5 and 6, where one in a row is let go by; the evaluations have none."""
    run, calls, real = tmp_path / "run", [], feed.put_batch

    def put(batch, mesh):
        calls.append(None)
        if len(calls) in (3, 6, 7):
            batch = {**batch, "weights": np.full_like(batch["weights"], np.nan)}
        return real(batch, mesh)

    monkeypatch.setattr(feed, "put_batch", put)
    config = tiny_config(tmp_path, **{"optimizer.skips": 1})
    with pytest.raises(loop.DivergedError, match="step 6: loss nan.*, after 1 skipped batch; the"):
        loop.train(config, str(run))
    assert saved_steps(run) == [2, 4]
    said = capsys.readouterr().out
    assert "\nstep 3  batch skipped: loss nan, gradient norm nan, " in said
    assert "update norm nan (2 skipped in all)\n" in said
    lines = [line for line in read_metrics(str(run)) if "skipped" in line]
    assert [line["skipped"] for line in lines] == [0, 0, 1, 1, 2]
    assert ["loss" in line for line in lines] == [True, True, False, True, False]
    rates = [line["learning_rate"] for line in lines]
    assert rates[2] == rates[3] and len(set(rates)) == 4  # the schedule has stood still
    # At 0, the first is one too many, and nothing of it is saved.
    calls.clear()
    config.optimizer.skips = 0
    with pytest.raises(loop.DivergedError, match="step 3: loss nan, .*update norm nan; the last"):
        loop.train(config, str(tmp_path / "other"))
    assert saved_steps(tmp_path / "other") == [2]


@pytest.mark.parametrize("apart", [True, False])
def test_documents_are_kept_apart_as_the_config_says(tmp_path, monkeypatch, apart):
    """Also: an evaluation in which no token has a weight is no number, and ends no run."""
    resets = {"train": [], "evaluate": []}

    def train_step(state, batch):
        resets["train"].append(batch.get("reset"))
        return state._replace(step=state.step + 1), Metrics(*[jnp.zeros(())] * 3)

    def eval_step(params, batch):
        resets["evaluate"].append(batch.get("reset"))
        return jnp.zeros(()), jnp.zeros(())

    monkeypatch.setattr(assembly, "make_train_step", lambda *_: train_step)
    monkeypatch.setattr(feed, "make_eval_step", lambda *_: eval_step)
    changes = {"data.reset_documents": apart, "evaluate.sample_tokens": 0}
    result = loop.train(tiny_config(tmp_path, **changes), str(tmp_path / "run"))
    assert math.isnan(result["validation_loss"])
    for kind, seen in resets.items():
        assert len(seen) > 1, kind
        assert any(flags is not None and np.any(flags) for flags in seen) == apart, kind


def test_chosen_steps_are_profiled_and_good_time_is_told(tmp_path, monkeypatch):
    """Steps 2 and 3 as one profile, and 5."""

    @jax.jit
    def step(state, batch):
        return state._replace(step=state.step + 1), Metrics(*[jnp.ones(())] * 3)

    monkeypatch.setattr(assembly, "make_train_step", lambda *_: step)
    monkeypatch.setattr(feed, "make_eval_step", lambda *_: lambda *_: (jnp.ones(()),) * 2)
    changes = {"log.profile_steps": (2, 3, 5), "evaluate.sample_tokens": 0}
    run = tmp_path / "run"
    monkeypatch.setattr(jax.profiler, "start_trace", traced := [].append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: traced("end"))
    numbers = []
    monkeypatch.setattr(
        jax.profiler,
        "StepTraceAnnotation",
        lambda name, step_num: numbers.append(step_num) or contextlib.nullcontext(),
    )
    loop.train(tiny_config(tmp_path, **changes), str(run))
    assert numbers == [2, 3, 5]
    assert traced.__self__ == [run / "profile", "end"] * 2
    shares = [line["goodput"] for line in read_metrics(run) if "goodput" in line]
    assert len(shares) == 6 and shares[-1] > 0
    assert all(0 <= share < 1 for share in shares)


def test_settings_that_do_not_fit_are_refused_before_compilation(tmp_path, monkeypatch):
    def compiled(*_):
        raise AssertionError("reached compilation")

    monkeypatch.setattr(loop, "init_state", compiled)
    monkeypatch.setattr(assembly, "make_train_step", lambda *_: compiled)
    cases = {
        "vocab_size": {"model.vocab_size": 100},
        "does not divide": {"data.batch_size": 12},
        "micro-batches": {"accumulate": 3},
        "does not fit": {"mesh.data": 3},
        "expect_devices": {"mesh.expect_devices": 16},
        "adamw": {"optimizer.name": "adamv"},
    }
    for number, (message, changes) in enumerate(cases.items()):
        with pytest.raises(ValueError, match=message):
            loop.train(tiny_config(tmp_path, **changes), str(tmp_path / f"run{number}"))
    assert jax.device_count() == 8
