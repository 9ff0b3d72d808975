"""Runs that hang."""

import threading
import time

import jax.numpy as jnp
import pytest

from hope_jax.exit_codes import HUNG
from hope_jax.training import assembly, feed, loop, watchdog
from hope_jax.training.activity import Activity
from hope_jax.training.step import Metrics
from hope_jax.training.watchdog import Watchdog
from tests.training.runs import change_batch, tiny_config


@pytest.fixture
def ended(monkeypatch):
    """Notes the codes with which the process would have ended, once for each watchdog."""
    codes = []
    monkeypatch.setattr(watchdog.os, "_exit", codes.append)
    return codes


def test_a_run_that_hangs_ends_and_says_where(tmp_path, monkeypatch, ended, capfd):
    """Its fourth batch does not come."""

    def step(state, batch):
        return state._replace(step=state.step + 1), Metrics(*[jnp.ones(())] * 3)

    def hang_here(batch):
        deadline = time.monotonic() + 20
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)

    monkeypatch.setattr(assembly, "make_train_step", lambda *_: step)
    monkeypatch.setattr(feed, "make_eval_step", lambda *_: lambda *_: (jnp.ones(()),) * 2)
    monkeypatch.chdir(tmp_path)
    change_batch(monkeypatch, 3, hang_here)
    changes = {"log.hang_after": 1.0, "evaluate.sample_tokens": 0, "evaluate.every": 100}
    loop.train(tiny_config(tmp_path, **changes), "run")
    assert ended == [HUNG] == [77]
    said = capfd.readouterr().err
    written = (tmp_path / "run" / "stacks_of_process_0.txt").read_text()
    assert "hope: the run hangs: for 1 seconds step 4 is under way, and nothing else" in said
    assert "step 4 is under way" in written
    for text in (said, written):
        assert "in hang_here" in text and "in _take_steps" in text and "Current thread" in text


def test_what_goes_on_and_what_may_take_long_does_not_hang(tmp_path, ended):
    told = threading.Event()
    activity = Activity()
    with Watchdog(str(tmp_path), 3, activity, 0.2, told.set):
        for number in range(8):
            activity.begin("stepping", number)
            time.sleep(0.05)
        activity.begin("compiling", 9)
        time.sleep(0.4)
        assert not ended and not told.is_set()
        activity.begin("saving", 10)
        time.sleep(0.6)
    assert ended == [HUNG] and told.is_set()
    assert (
        "the checkpoint of step 10 is written" in (tmp_path / "stacks_of_process_3.txt").read_text()
    )
    assert 0.3 < activity.seconds["stepping"] < activity.seconds["compiling"] + 0.4
    with Watchdog(str(tmp_path), 3, activity, 0, told.set):
        time.sleep(0.2)
    assert len(ended) == 1
    shares = [activity.share(kind) for kind in activity.seconds]
    assert sum(shares) == pytest.approx(1, abs=0.05) and min(shares) >= 0
