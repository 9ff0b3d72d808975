"""A run at step 0 of parameters that were made elsewhere."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from hope_jax.data.bucket import refuse_address
from hope_jax.runs.checkpoint_writer import CheckpointWriter
from hope_jax.runs.keep import keep_of
from hope_jax.training.optimizer import make_optimizer
from hope_jax.training.step import TrainState


def check_no_run(workdir: str, flag: str = "--workdir") -> None:
    """Refuses a folder that holds a run, or lies in a bucket.

    Args:
      workdir: folder.
      flag: that gave it, for the error.

    Raises:
      ValueError: if it does.
    """
    refuse_address(workdir, flag)
    if (Path(workdir) / "config.json").exists():
        raise _holds_a_run(workdir, flag)


def _holds_a_run(workdir: str, flag: str = "--workdir") -> ValueError:
    return ValueError(f"{flag}={workdir} holds a run already; give another folder")


def write_first_checkpoint(workdir: str, config: ConfigDict, params: Any) -> None:
    """Makes a run in which nothing has been trained yet.

    Args:
      workdir: folder of the run.
      config: of the run, whole.
      params: of its model.

    Raises:
      ValueError: if the folder holds checkpoints.
    """
    optimizer = make_optimizer(config.optimizer, config.steps)
    checkpoints = CheckpointWriter(workdir, config, keep_of(config.checkpoint))
    try:
        if checkpoints.latest() is not None:
            raise _holds_a_run(workdir)
        state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
        checkpoints.save(0, state, {})
    finally:
        checkpoints.close()
