"""One run of a comparison: trained if it has not been, and what came out."""

import json
import math
import statistics
from pathlib import Path
from typing import NamedTuple

import jax

from hope_jax.comparison.plan import Trial
from hope_jax.data.whole_file import write_whole
from hope_jax.runs.metrics import read_metrics
from hope_jax.runs.run_config import find_changes
from hope_jax.training.config import whole_config
from hope_jax.training.loop import DivergedError, train


class Result(NamedTuple):
    """What came out of a run.

    Attributes:
      trial: what was run.
      loss: on the validation part, in nats per token; infinite if training diverged.
      curve: steps and training losses.
      tokens_per_second: median over the run.
    """

    trial: Trial
    loss: float
    curve: list[tuple[int, float]]
    tokens_per_second: float


def read_result(trial: Trial) -> Result | None:
    """What came out of a run; None if it has not ended.

    Raises:
      ValueError: if the folder holds a run with other settings.
    """
    path = trial.folder / "result.json"
    if not path.is_file():
        return None
    kept = json.loads(path.read_text())
    if whole_config(kept["config"]) != whole_config(trial.config):
        raise ValueError(
            f"{trial.folder} holds a run with other settings; give the same to go on, or another "
            f"--workdir"
        )
    # What a run of before does not say is as it was then, not as it is now.
    find_changes(trial.folder, whole_config(trial.config), whole_config)
    lines = [line for line in read_metrics(str(trial.folder)) if "loss" in line]
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    curve = [(int(line["step"]), line["loss"]) for line in lines]
    speed = statistics.median(speeds) if speeds else math.nan
    return Result(trial, kept["loss"], curve, speed)


def keep_programs(folder: Path) -> None:
    """Keeps compiled programs there, if JAX is given no other folder."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(folder))


def run_trial(trial: Trial, programs: Path) -> bool:
    """Trains, or goes on with, a run and writes down what came out.

    Args:
      trial: what to run.
      programs: folder of compiled programs, if JAX is given no other: those of a row's seeds are the
        same.

    Returns:
      Whether it has come to its end; it has not if the process was asked to stop.
    """
    keep_programs(programs)
    try:
        done = train(whole_config(trial.config), str(trial.folder), may_change=())
        if done is None:
            return False
        loss = done["validation_loss"]
    except DivergedError:
        loss = math.inf
    write_whole(
        trial.folder / "result.json", json.dumps({"loss": loss, "config": trial.config}) + "\n"
    )
    jax.clear_caches()  # type: ignore[no-untyped-call]
    return True
