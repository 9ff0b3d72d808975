"""Training on what is in memory until nothing is wrong: for suites that train their own models."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.training.report import DivergedError
from hope_jax.training.step import Metrics, TrainState

ENOUGH = 2  # evaluations in a row without a mistake


class Evaluation(NamedTuple):
    """What is seen of a model in between.

    Attributes:
      step: steps taken.
      loss: mean of those since the last evaluation.
      right: shares, by name.
    """

    step: int
    loss: float
    right: Mapping[str, float]


class Fitted(NamedTuple):
    """What came of it.

    Attributes:
      params: those of the evaluation with the highest mean share, the last of equals.
      validation: that share.
      evaluations: all of them.
    """

    params: Any
    validation: float
    evaluations: list[Evaluation]


def fit(
    state: TrainState,
    train_step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    batches: Iterator[Mapping[str, np.ndarray]],
    evaluate: Callable[[Any], Mapping[str, float]],
    *,
    steps: int,
    every: int,
    report: Callable[[Evaluation], None] = lambda evaluation: None,
) -> Fitted:
    """Trains until two evaluations in a row find nothing wrong, or for so many steps.

    Args:
      state: to begin with; it is donated.
      train_step: of `hope_jax.training.step.make_train_step`.
      batches: of `tokens`, `targets` and `weights`.
      evaluate: gives shares of what is right, by name, from parameters; all 1 is nothing wrong.
      steps: to take at most.
      every: steps from one evaluation to the next; there is one after the last step, too.
      report: is told each evaluation.

    Raises:
      DivergedError: if a loss or gradient is no number, when the next evaluation is due.
    """
    kept: Any = state.params
    evaluations: list[Evaluation] = []
    losses: list[Metrics] = []
    for step in range(1, steps + 1):
        state, metrics = train_step(state, next(batches))
        losses.append(metrics)
        if step % every and step < steps:
            continue
        seen = np.array([(one.loss, one.gradient_norm) for one in jax.device_get(losses)])
        if not np.isfinite(seen).all():
            raise DivergedError(
                f"a loss or gradient of steps {step - len(losses) + 1} to {step} is no number; "
                f"lower optimizer.learning_rate"
            )
        losses = []
        evaluation = Evaluation(step, float(seen[:, 0].mean()), evaluate(state.params))
        report(evaluation)
        if all(_mean(evaluation) >= _mean(other) for other in evaluations):
            kept = jax.tree.map(jnp.copy, state.params)  # the next step takes the others' place
        evaluations.append(evaluation)
        last = evaluations[-ENOUGH:]
        if len(last) == ENOUGH and all(min(one.right.values()) == 1 for one in last):
            break
    return Fitted(kept, max(map(_mean, evaluations), default=0.0), evaluations)


def _mean(evaluation: Evaluation) -> float:
    return math.fsum(evaluation.right.values()) / len(evaluation.right)
