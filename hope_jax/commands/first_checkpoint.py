"""A run at step 0 of parameters that were made elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from hope_jax.data.bucket import Bucket, is_address
from hope_jax.data.whole_folder import check_writable
from hope_jax.runs.checkpoint_writer import CheckpointWriter
from hope_jax.runs.fetch import CHECKPOINTS, whole_steps
from hope_jax.runs.keep import keep_of
from hope_jax.runs.place import place_of
from hope_jax.training.optimizer import make_optimizer
from hope_jax.training.step import TrainState


def check_no_run(workdir: str, flag: str = "--workdir") -> None:
    """Refuses a folder that holds a run, or cannot be written.

    Args:
      workdir: folder, or its address in a bucket.
      flag: that gave it, for the error.

    Raises:
      ValueError: if it is one.
      BucketError: if the bucket cannot be read.
    """
    if is_address(workdir):
        held = bool(whole_steps(Bucket(workdir).files(CHECKPOINTS)))
    else:
        there = Path(workdir) / "config.json"
        check_writable(there, flag)
        held = there.exists()
    if held:
        raise _holds_a_run(workdir, flag)


def _holds_a_run(workdir: str, flag: str = "--workdir") -> ValueError:
    return ValueError(f"{flag}={workdir} holds a run already; give another folder")


def write_first_checkpoint(
    workdir: str,
    config: ConfigDict,
    params: Any,
    add_files: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Makes a run in which nothing has been trained yet.

    Args:
      workdir: folder of the run, or its address in a bucket.
      config: of the run, whole.
      params: of its model.
      add_files: is given the folder, to put into it what else the run is to hold.

    Raises:
      ValueError: if the folder holds checkpoints.
      BucketError: if the bucket cannot be written.
      UnsentError: if it does not get all; the same call on this machine then sends it.
    """
    optimizer, keep = make_optimizer(config.optimizer, config.steps), keep_of(config.checkpoint)
    with place_of(workdir) as place:
        checkpoints = CheckpointWriter(place.folder, config, keep)
        try:
            latest = checkpoints.latest()
            # What an address did not get the last time is still here, and is sent.
            if latest is not None and not (is_address(workdir) and latest == 0):
                raise _holds_a_run(workdir)
            if latest is None:
                add_files(Path(place.folder))
                state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
                checkpoints.save(0, state, {})
        finally:
            checkpoints.close()
        place.begin(keep)
        place.finish()
