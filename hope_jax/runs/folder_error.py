"""What is said when a run's folder can no longer be written or read."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class RunFolderError(RuntimeError):
    """Raised when the machine refuses a run's folder: a full disk, no permission, no folder."""


@contextlib.contextmanager
def explained(folder: str | Path, doing: str) -> Iterator[None]:
    """Turns what the system says of a folder into one line that names folder and mend.

    Args:
      folder: of the run.
      doing: what is done within, such as `writing metrics`.

    Raises:
      RunFolderError: for any `OSError` within.

    Example:
      >>> with explained("runs/a", "writing metrics"):
      ...     raise OSError(28, "No space left on device")
      Traceback (most recent call last):
      ...
      hope_jax.runs.folder_error.RunFolderError: runs/a: writing metrics failed (No space left on \
device); free some space, then run the same command again: it goes on from the last checkpoint
    """
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error).splitlines()[0] if str(error) else type(error).__name__
        path = f" at {error.filename}" if error.filename else ""
        raise RunFolderError(
            f"{folder}: {doing} failed ({said}{path}); {_mend(folder, str(error))}, then run the same "
            f"command again: it goes on from the last checkpoint"
        ) from error


def _mend(folder: str | Path, said: str) -> str:
    if "No space left" in said or "quota" in said.lower() or "too large" in said:
        return "free some space"
    if not os.path.isdir(folder):
        return "the folder is gone, bring it back"
    if "Read-only" in said or "ermission" in said or "EACCES" in said:
        return "make the folder and its files readable and writable again"
    return "see to the disk"
