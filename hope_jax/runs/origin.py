"""Of which other run's weights a run was begun."""

import json
import os
from pathlib import Path
from typing import NamedTuple

from hope_jax.data.bucket import is_address
from hope_jax.data.whole_file import write_whole
from hope_jax.runs.checkpoint_reader import checkpoint_steps


class Origin(NamedTuple):
    """Where a run's first weights come from.

    Attributes:
      run: folder of the other run, absolute, or its address in a bucket.
      optimizer: whether the optimiser's state came along.
      step: of the other run's checkpoint; None until it has been read.
    """

    run: str
    optimizer: bool
    step: int | None = None


def keep_origin(workdir: str | Path, origin: Origin) -> None:
    """Notes in a run's folder what it was begun from."""
    write_whole(_path(workdir), json.dumps(origin._asdict(), indent=1) + "\n")


def read_origin(workdir: str | Path) -> Origin | None:
    """What the run in a folder was begun from; None if it began by itself."""
    path = _path(workdir)
    if not path.is_file():
        return None
    try:
        return Origin(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); mend or delete it") from error


def find_origin(workdir: str | Path, from_run: str | None, optimizer: bool) -> Origin | None:
    """What a run is to be begun from, or was.

    Args:
      workdir: folder of the run.
      from_run: folder of another run that was asked for, if one was.
      optimizer: whether its optimiser's state was.

    Raises:
      ValueError: if a run is there that was begun otherwise.
    """
    noted = read_origin(workdir)
    if from_run is None:
        return noted
    other = from_run if is_address(from_run) else os.path.realpath(from_run)
    asked = Origin(other, optimizer)
    if asked.run == os.path.realpath(workdir):
        raise ValueError(f"--from_run={from_run} is the --workdir itself; give a new --workdir")
    if noted is None and not checkpoint_steps(workdir):
        return asked
    if noted is None or noted._replace(step=None) != asked:
        how = "by itself" if noted is None else f"from {noted.run}"
        how += ", with its optimiser" if noted is not None and noted.optimizer else ""
        raise ValueError(
            f"--workdir={workdir} holds a run that was begun {how}; leave out --from_run and "
            f"--with_optimizer to go on with it, or give another --workdir"
        )
    return noted


def said_of(origin: Origin) -> str:
    """An origin in words."""
    what = "weights and the optimiser's state" if origin.optimizer else "weights"
    return f"the {what} of {origin.run} at step {origin.step}"


def _path(workdir: str | Path) -> Path:
    return Path(workdir) / "from_run.json"
