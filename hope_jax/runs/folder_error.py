"""What is said when a run's folder can no longer be written or read."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

# What the system says when it refuses a file; TensorStore passes it on within a ValueError.
_REFUSALS = tuple(
    os.strerror(getattr(errno, name))
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "EMFILE", "ESTALE")
)


class RunFolderError(RuntimeError):
    """Raised when the machine refuses a run's folder: a full disk, no permission, no folder."""


@contextlib.contextmanager
def explained(folder: str | Path, doing: str) -> Iterator[None]:
    """Turns what the system says of a folder into one line that names folder and mend.

    Args:
      folder: of the run.
      doing: what is done within, such as `writing metrics`.

    Raises:
      RunFolderError: for what the system refuses within.

    Example:
      >>> with explained("/tmp", "writing metrics"):
      ...     raise OSError(28, "No space left on device")
      Traceback (most recent call last):
      ...
      hope_jax.runs.folder_error.RunFolderError: /tmp: writing metrics failed (No space left on \
device); free some space, then run the same command again: it goes on from the last checkpoint
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if not (
            refused_by_system(error) or isinstance(error, OSError) or not os.path.isdir(folder)
        ):
            raise
        said = str(error)
        reason = next((known for known in _REFUSALS if known in said), None)
        reason = reason or getattr(error, "strerror", None) or " ".join(said.split())
        path = f" at {place}" if (place := getattr(error, "filename", None)) else ""
        raise RunFolderError(
            f"{folder}: {doing} failed ({reason}{path}); {_mend(folder, reason)}, then run the same "
            f"command again: it goes on from the last checkpoint"
        ) from error


def refused_by_system(error: Exception) -> bool:
    """Whether an error says something of the machine, not of what is in a file."""
    return any(known in str(error) for known in _REFUSALS)


def _mend(folder: str | Path, reason: str) -> str:
    if not os.path.isdir(folder):
        return "the folder is gone: bring it back"
    if reason in map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
        return "free some space"
    if reason in map(os.strerror, (errno.EROFS, errno.EACCES, errno.EPERM)):
        return "make the folder and its files readable and writable again"
    return "see to the disk"
