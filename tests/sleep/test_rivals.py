"""`experiments/sleep/`: what a night is measured against, and what is asked of a real model."""

import dataclasses
import functools
import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax.inference.sampling import read
from hope_jax.sleep.cycle import begin_lesson, sleep
from hope_jax.sleep.expansion import experts_of
from hope_jax.sleep.seeding import keep_samples
from tests.sleep.reader import OPTIMIZER, SETTINGS, TEXT, made

FOLDER = Path(__file__).parents[2] / "experiments" / "sleep"
SCRIPTS = ("passages", "rivals", "real_model")
NIGHT = dataclasses.replace(
    SETTINGS, lam=0.0, a=1.0, steps=3, kept_samples=5, temperature=1.0, samples=2
)
KEYS = jax.random.split(jax.random.key(5), 1)


@pytest.fixture
def scripts(monkeypatch):
    """The scripts as modules."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield {name: importlib.import_module(name) for name in SCRIPTS}
    for name in SCRIPTS:
        sys.modules.pop(name)


@functools.cache
def lesson():
    """Of a reader with samples kept, as a night begins with it."""
    model, params, _ = made()
    context = read(model, params, TEXT[1:])
    bare = begin_lesson(model, params, context, KEYS, NIGHT)
    return context, keep_samples(model, params, bare, NIGHT)


def test_an_expert_trained_on_what_the_teacher_said_is_that_of_the_night(scripts):
    model, params, _ = made()
    context, whole = lesson()
    rivals = scripts["rivals"]
    training = rivals.Training(OPTIMIZER, NIGHT.steps, NIGHT.samples)
    sequences = rivals.from_teacher(whole)
    state = rivals.train_expert(model, params, whole, sequences, training)
    night, _ = sleep(model, params, context, KEYS, NIGHT, OPTIMIZER)
    for ours, theirs in zip(experts_of(state), experts_of(night), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    assert experts_of(state).up.any()


def test_mlps_are_trained_where_levels_learn_and_nowhere_else(scripts):
    model, params, _ = made()
    _, whole = lesson()
    rivals = scripts["rivals"]
    parts = rivals.from_text(TEXT[0], 4, seed=0)
    assert parts.tokens.shape == (4, 3) and parts.counted.all()
    np.testing.assert_array_equal(parts.tokens[:, 1:], parts.wanted[:, :-1])
    training = rivals.Training(optax.sgd(0.5), 1, 4)
    new = rivals.train_mlps(model, params, whole, parts, training)
    before, new = jax.tree.map(np.asarray, (params, new))
    changed = jax.tree_util.tree_map_with_path(
        lambda path, old, new: (jax.tree_util.keystr(path), (old != new).any()), before, new
    )
    names = [
        name
        for name, moved in jax.tree.leaves(changed, is_leaf=lambda x: type(x) is tuple)
        if moved
    ]
    assert names and all("continuum" in name and "kernel" in name for name in names)
    for old, moved in zip(
        jax.tree.leaves(before["blocks"]), jax.tree.leaves(new["blocks"]), strict=True
    ):
        np.testing.assert_array_equal(old[0], moved[0])

    # A step of plain descent of the loss of these parts, by every parameter there is.
    def loss(params):
        still = dataclasses.replace(model.config, in_context=None)
        losses = type(model)(still).apply(
            {"params": params}, parts.tokens, parts.wanted, method="token_losses"
        )
        return jnp.mean(losses)

    plain = {name: leaf for name, leaf in before.items() if "step" not in name}
    slope = jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(plain)["blocks"]["continuum"])
    for old, moved, down in zip(
        *(
            jax.tree.leaves(tree)
            for tree in (plain["blocks"]["continuum"], new["blocks"]["continuum"], slope)
        ),
        strict=True,
    ):
        if (old != moved).any():
            np.testing.assert_allclose(moved[1] - old[1], -0.5 * down[1], rtol=1e-3, atol=1e-6)


def test_distilled_mlps_come_nearer_to_the_teacher(scripts):
    model, params, _ = made()
    _, whole = lesson()
    rivals = scripts["rivals"]
    sequences = rivals.from_teacher(whole)

    @jax.jit
    def divergence(params):
        hidden = model.apply({"params": params}, sequences.tokens, method="hidden")[0]
        mine, theirs = (
            jax.nn.log_softmax(model.apply({"params": params}, h, method="logits"))
            for h in (hidden, sequences.wanted)
        )
        lost = jnp.sum(jnp.exp(theirs) * (theirs - mine), -1)
        return jnp.sum(lost * sequences.counted) / jnp.sum(sequences.counted)

    training = rivals.Training(optax.adam(0.03), 20, 5)
    new = rivals.train_mlps(model, params, whole, sequences, training)
    assert divergence(new) < 0.9 * divergence(params)


def test_passages_tell_what_is_asked_and_differ_by_seed(scripts):
    make = scripts["passages"].make_passages
    (text, questions), (other, _) = make(0), make(1)
    assert text != other and len(questions) == 16
    assert all(question.answers[0] in text for question in questions)
    assert len({len(question.answers) for question in questions}) == 1


def test_the_table_takes_each_row_at_the_rate_its_selection_chose(scripts, tmp_path, monkeypatch):
    script = scripts["real_model"]
    asked = []

    def run_trial(trained, row, settings, seed, rate):
        asked.append((row, seed, rate))
        near = -abs(np.log(rate / 1e-3)) if rate else -8.0
        # Fine-tuning costs too much elsewhere from 3e-4 on.
        lost = rate if row == "sleep" else 300 * rate
        found = {"won": 0.5, "log_likelihood": near - seed / 1e4, "unrelated": 3.0 + lost}
        return {"tokens": 1, "seconds": 1.0, "cpu_seconds": 2.0} | found

    monkeypatch.setattr(script, "run_trial", run_trial)
    monkeypatch.setattr(script, "load", lambda run: run)
    path = tmp_path / "rows.jsonl"
    arguments = ["real_model.py", "--run=none", f"--path={path}", "--rows", "sleep", "fine-tuning"]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    rates = {
        row: {rate for at, seed, rate in asked if at == row and seed >= 1000} for row in script.ROWS
    }
    assert rates["sleep"] == {3e-2, 1e-2, 3e-3, 1e-3, 3e-4}
    assert rates["fine-tuning"] == {3e-5, 1e-4, 3e-4, 1e-3}
    told = path.with_suffix(".md").read_text()
    assert "| 3.001 ± 0.000 | 2 | 0.001 |" in told and "nothing read" in told
    assert "| 3.030 ± 0.000 | 2 | 0.0001 |" in told
    assert path.with_suffix(".png").stat().st_size > 1000
    count = len(asked)
    script.main()
    assert len(asked) == count == len(path.read_text().splitlines())
    assert {json.loads(line)["night"]["lam"] for line in path.read_text().splitlines()} == {0.0}
