"""One run of a suite: a model is trained on examples, and its answers to others are scored."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

from hope_jax.data.examples import Examples, shuffled_batches
from hope_jax.evaluation.answers import Predict, likeliest_classes
from hope_jax.models import LanguageModel
from hope_jax.settings import as_values
from hope_jax.training.fit import Evaluation, fit
from hope_jax.training.optimizer import make_optimizer
from hope_jax.training.report import DivergedError
from hope_jax.training.sharding import check_batch, make_mesh
from hope_jax.training.step import init_state, make_train_step

Score = Callable[[Predict, Examples], float]


def make_fitter(settings: Any, model: LanguageModel, score: Score) -> Callable[..., Any]:
    """A function that trains and tests a model, compiled once for all seeds.

    Args:
      settings: `steps`, `batch_size`, `evaluate_every` and `optimizer` are read.
      model: what is trained, a class at each position.
      score: the share of a part that is right, from what the model answers.

    Returns:
      `run(train, validation, test, seed, report)`, of examples and of those of each part by name. It
      gives a dict: the shares that are `right` of the parts of the test, by the parameters that did best
      in validation; `validation`, their mean share there; `steps`, None if the run diverged; the last
      `loss`, and `seconds`.
    """
    mesh = make_mesh()
    check_batch(mesh, settings.batch_size, 1)
    optimizer = make_optimizer(as_values(settings.optimizer), settings.steps)
    step, classes = make_train_step(model, optimizer, mesh), likeliest_classes(model)

    def run(
        train: Examples,
        validation: Mapping[str, Examples],
        test: Mapping[str, Examples],
        seed: int,
        report: Callable[[Evaluation], None],
    ) -> dict[str, Any]:
        def shares(parts: Mapping[str, Examples], params: Any) -> dict[str, float]:
            predict = functools.partial(classes, params)
            return {name: score(predict, part) for name, part in parts.items()}

        begun = time.monotonic()
        try:
            fitted = fit(
                init_state(model, optimizer, mesh, seed),
                step,
                shuffled_batches(train, settings.batch_size, seed),
                functools.partial(shares, validation),
                steps=settings.steps,
                every=settings.evaluate_every,
                report=report,
            )
        except DivergedError as error:
            print(error, flush=True)
            return {"right": dict.fromkeys(test, 0.0), "validation": 0.0, "steps": None}
        return {
            "right": shares(test, fitted.params),
            "validation": fitted.validation,
            "steps": fitted.evaluations[-1].step,
            "loss": fitted.evaluations[-1].loss,
            "seconds": round(time.monotonic() - begun, 1),
        }

    return run
