"""Batches that are not learnt from."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.exit_codes import DIVERGED
from hope_jax.runs.metrics import read_metrics
from hope_jax.training import assembly, feed, loop
from hope_jax.training.bad_batches import judge, no_batches
from hope_jax.training.step import Metrics
from tests.commands.in_process import hope
from tests.training.runs import change_batch, tiny_config

ABOVE = 1.5


def test_what_is_skipped_is_what_a_list_of_norms_says():
    """By hand, over more norms than are kept; a spike is no part of what is usual."""
    generator = np.random.default_rng(0)
    norms = generator.lognormal(0.0, 0.4, 260).astype(np.float32)
    norms[5] = 1e3  # too early to tell
    norms[[30, 140, 141]] = np.inf, np.nan, 1e3
    kept, skipped, in_a_row = [], [], 0
    rows = []
    for number, norm in enumerate(norms):
        usual = np.median(kept[-100:]) if len(kept) >= 20 else np.inf
        bad = bool(not np.isfinite(norm) or norm > ABOVE * usual)
        in_a_row = in_a_row + 1 if bad else 0
        skipped += [number] * bad
        kept += [] if bad else [norm]
        rows.append((bad, len(kept), len(skipped), in_a_row))

    def read(seen, norm):
        bad, seen = judge(seen, norm * 0, norm, norm, ABOVE)
        return seen, (bad, seen.learnt, seen.skipped, seen.in_a_row)

    seen, found = jax.jit(lambda norms: jax.lax.scan(read, no_batches(), norms))(norms)
    np.testing.assert_array_equal(np.stack(found, 1), np.array(rows))
    assert len(skipped) > 20 and max(row[3] for row in rows) >= 2
    np.testing.assert_array_equal(np.sort(seen.norms), np.sort(kept[-100:]))
    # Off, as it is by default, only what is no number is skipped.
    assert not judge(seen, 0.0, 1e30, 1.0)[0]
    for values in ((np.nan, 1.0, 1.0), (1.0, np.inf, 1.0), (1.0, 1.0, np.nan)):
        assert judge(seen, *values)[0]


@pytest.fixture
def norms_of_tokens(tmp_path, monkeypatch):
    """A step that learns nothing, and whose gradient is as large as its batch says."""

    def step(state, batch):
        norm = jnp.exp(jnp.std(batch["tokens"].astype(jnp.float32)[0]))
        bad, seen = judge(state.seen, norm, norm, norm, ABOVE)
        state = state._replace(step=state.step + 1, seen=seen)
        return state, Metrics(norm, norm, norm, seen.skipped, seen.in_a_row)

    compiled = jax.jit(step)
    monkeypatch.setattr(assembly, "make_train_step", lambda *_: compiled)
    monkeypatch.setattr(feed, "make_eval_step", lambda *_: lambda *_: (jnp.ones(()),) * 2)
    monkeypatch.chdir(tmp_path)
    changes = {"steps": 60, "evaluate.every": 100, "evaluate.sample_tokens": 0}
    return tiny_config(tmp_path, **changes, **{"checkpoint.every": 30, "log.every": 100})


class Killed(BaseException):
    """The end of a process."""


def test_a_run_that_was_killed_skips_the_same_batches(norms_of_tokens, monkeypatch):
    def kill(batch):
        raise Killed

    def skipped(run):
        return [
            (line["step"], line["gradient_norm"], line["skipped"])
            for line in read_metrics(run)
            if "skipped" in line
        ]

    loop.train(norms_of_tokens, "whole")
    with monkeypatch.context() as patch:
        change_batch(patch, 45, kill)
        with pytest.raises(Killed):
            loop.train(norms_of_tokens, "killed")
    loop.train(norms_of_tokens, "killed")
    wanted = skipped("whole")
    assert skipped("killed") == wanted
    steps = [step for step, *_ in wanted]
    assert steps[0] < 30 < steps[-1] and len(steps) > 5


def test_a_checkpoint_of_before_goes_on(norms_of_tokens, monkeypatch):
    """It holds nothing of the batches that were seen."""
    real = loop.CheckpointWriter.save
    norms_of_tokens.steps = 5
    with monkeypatch.context() as patch:
        patch.setattr(
            loop.CheckpointWriter,
            "save",
            lambda self, step, state, data: real(self, step, state._replace(seen=()), data),
        )
        loop.train(norms_of_tokens, "run")
    norms_of_tokens.steps = 7
    loop.train(norms_of_tokens, "run")
    assert read_metrics("run")[-2]["step"] == 7


def test_a_run_that_diverges_has_a_code_of_its_own(norms_of_tokens, monkeypatch, capsys):
    def step(state, batch):
        return state._replace(step=state.step + 1), Metrics(*[jnp.full((), jnp.nan)] * 3, 11, 11)

    monkeypatch.setattr(assembly, "make_train_step", lambda *_: step)
    text = "from tests.training.test_bad_batches import *\n\n\ndef get_config():\n    return "
    changes = '**{"steps": 80, "evaluate.sample_tokens": 0}'
    pathlib.Path("config.py").write_text(f"{text}tiny_config(pathlib.Path(), {changes})")
    assert hope("train", "--config=config.py", "--workdir=run") == DIVERGED == 3
    said = capsys.readouterr().err
    assert said.startswith("hope train: step 1: loss nan, ") and said.count("\n") == 1
