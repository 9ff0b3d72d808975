"""What of a batch goes to the devices, and the mean loss over batches of validation."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hope_jax.models import LanguageModel
from hope_jax.training.sharding import own_share
from hope_jax.training.step import Batch, make_eval_step, put_batch

Feed = Callable[[Mapping[str, np.ndarray]], Batch]


def make_feed(config: ConfigDict, mesh: Mesh) -> Feed:
    """Makes `feed(batch)`: sends this process's rows to its devices.

    Without the resets, where the config wants documents to run into each other.

    Args:
      config: whole, of the run.
      mesh: the devices.
    """

    def feed(batch: Mapping[str, np.ndarray]) -> Batch:
        if not config.data.reset_documents:
            batch = {name: value for name, value in batch.items() if name != "reset"}
        return put_batch(batch, mesh)

    return feed


def make_evaluation(
    config: ConfigDict,
    model: LanguageModel,
    mesh: Mesh,
    validation: Sequence[Mapping[str, np.ndarray]],
    feed: Feed,
) -> Callable[..., float]:
    """Makes `evaluate(params, batches, before_each)`: mean validation loss in nats per token.

    It is over so many batches, evenly spread; 0 is all. Where no token of them has a weight, it is no
    number. `before_each`, if given, is called before each batch.

    Args:
      config: whole, of the run.
      model: that is measured.
      mesh: the devices.
      validation: its batches, of all processes.
      feed: of `make_feed`.
    """
    eval_step = make_eval_step(model, mesh)
    share, shares = own_share(mesh)
    rows = config.data.batch_size // shares
    own = slice(share * rows, (share + 1) * rows)

    def evaluate(
        params: Any, batches: int, before_each: Callable[[], object] = lambda: None
    ) -> float:
        total = weight = 0.0
        count = min(batches or len(validation), len(validation))
        for number in range(count):
            before_each()
            batch = validation[number * len(validation) // count]
            loss, tokens = eval_step(params, feed({key: rows[own] for key, rows in batch.items()}))
            total, weight = total + float(loss), weight + float(tokens)
        return total / weight if weight else math.nan

    return evaluate
