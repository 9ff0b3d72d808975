"""Training until nothing is wrong: when it ends, and which parameters are kept."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.training.fit import fit
from hope_jax.training.report import DivergedError
from hope_jax.training.step import Metrics, TrainState


@functools.partial(jax.jit, donate_argnums=0)
def count(state, batch):
    """A step whose parameters are the number of steps, and whose losses are given."""
    step = state.step + 1
    moved = TrainState(step, state.params + 1, ())
    return moved, Metrics(batch["loss"], jnp.ones(()), jnp.ones(()))


def run(shares, steps=100, every=2, losses=None):
    """Fits with the shares that each evaluation finds, one after the other."""
    given = iter(shares)
    seen = []

    def evaluate(params):
        seen.append(float(params))
        one = next(given)
        return {"near": one, "far": one} if isinstance(one, float) else dict(one)

    batches = ({"loss": np.float32(loss)} for loss in losses or itertools.count(1))
    state = TrainState(jnp.zeros((), jnp.int32), jnp.zeros(()), ())
    told = []
    fitted = fit(state, count, batches, evaluate, steps=steps, every=every, report=told.append)
    assert told == fitted.evaluations
    assert seen == [one.step for one in told]
    return float(fitted.params), fitted.evaluations


def test_it_ends_when_two_evaluations_in_a_row_are_all_right():
    shares = [0.5, 1.0, 0.9, {"near": 1.0, "far": 0.99}, 1.0, 1.0, 0.0]
    params, evaluations = run(shares)
    assert [one.step for one in evaluations] == [2, 4, 6, 8, 10, 12]
    assert params == 12  # the last of equals
    assert [one.loss for one in evaluations[:2]] == [1.5, 3.5]


def test_it_keeps_what_did_best_and_looks_after_the_last_step():
    params, evaluations = run([0.2, 0.6, 0.4, 0.5], steps=7)
    assert [one.step for one in evaluations] == [2, 4, 6, 7]
    assert params == 4
    assert evaluations[-1].loss == 7
    params, evaluations = run([{"near": 0.4, "far": 0.4}, {"near": 0.9, "far": 0.0}], steps=4)
    assert params == 4  # by the mean


def test_a_loss_that_is_no_number_ends_it():
    with pytest.raises(DivergedError, match="of steps 3 to 4 is no number; lower"):
        run([0.5] * 9, losses=[1, 1, np.nan, 1])
