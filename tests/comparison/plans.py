"""Plans of comparisons whose runs are written down, not trained."""

import json
import math
from pathlib import Path

from ml_collections import ConfigDict

from hope_jax.comparison.plan import Plan, Trial
from hope_jax.comparison.trial import Result
from hope_jax.data.whole_file import write_whole
from hope_jax.training.config import default_config


def config_of(**model) -> ConfigDict:
    """A whole config of a tiny model."""
    sizes = {"vocab_size": 8, "width": 4, "num_layers": 1, "num_heads": 1, "mlp_width": 4}
    config = default_config(**{**sizes, "sequence_layer": "attention", **model})
    config.data.sequence_length = 8
    return config


def plan_of(
    folder: Path, rates=(0.1, 0.2, 0.3), selection_seeds: int = 2, seeds: int = 3, **rows
) -> Plan:
    """A plan that tunes the learning rate of two rows."""
    rows = rows or {"narrow": config_of(), "wide": config_of(mlp_width=8)}
    tuned = {"optimizer.learning_rate": tuple(rates)}
    return Plan(rows, tuned, selection_seeds, seeds, "narrow", folder)


def loss_of(trial: Trial) -> float:
    """A loss that differs by everything; the wide row's best rate is 0.2, the narrow one's 0.3.

    The wide row at rate 0.1 is best of all with the first seed, and diverges with the second.
    """
    rate = trial.config["optimizer"]["learning_rate"]
    wide = trial.config["model"]["mlp_width"] == 8
    if wide and rate == 0.1:
        return 0.0 if trial.seed == 0 else math.inf
    best = 0.2 if wide else 0.3
    return 2 + abs(rate - best) + 0.1 * trial.seed - (0.5 + 0.01 * trial.seed) * wide


def result_of(trial: Trial) -> Result:
    """What would have come out of a run."""
    return Result(trial, loss_of(trial), [(1, 3.0), (2, loss_of(trial))], 100.0)


def write_result(trial: Trial) -> bool:
    """Ends a run without training."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    kept = {"loss": loss_of(trial), "config": trial.config}
    write_whole(trial.folder / "result.json", json.dumps(kept))
    return True
