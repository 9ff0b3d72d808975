"""A lock on a run's folder, so that one training at a time writes to it."""

import fcntl
import json
import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from hope_jax.runs.folder_error import RunFolderError


class FolderLock:
    """Holds a folder until it is released, or the process ends in whatever way.

    The file `lock` says who holds it. The lock itself is the system's (`flock`), which a process that
    dies gives back at once: the file that is left means nothing. On NFS it holds between hosts. On
    a file system without such locks (some of Lustre, FUSE) there is a warning instead, and nobody but
    the user sees to it that one training at a time runs there.

    Args:
      folder: that is there.

    Raises:
      ValueError: if another process holds it; it is named.
    """

    def __init__(self, folder: Path):
        self.path = folder / "lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        self._file = os.fdopen(os.open(self.path, flags, 0o666), "r+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(self._file.read())
            self._file.close()
            raise ValueError(
                f"{folder} is being written by {holder}; wait for it or stop it, or give another "
                f"--workdir"
            ) from error
        except OSError as error:
            logging.warning(
                "%s lies on a file system without locks (%s); start no second training in it",
                folder,
                error.strerror,
            )
        self._file.truncate()
        self._file.write(json.dumps(about_this_process()) + "\n")
        self._file.flush()

    def check(self) -> None:
        """Raises a RunFolderError if the folder is no longer the one that was locked."""
        mine = os.fstat(self._file.fileno())
        try:
            there = self.path.stat()
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise RunFolderError(
                f"{self.path.parent} was removed, moved or replaced while the run was writing to it; "
                f"bring it back and run the same command again, or give another --workdir"
            )

    def release(self) -> None:
        """Lets others have the folder."""
        self._file.close()


def about_this_process() -> dict[str, Any]:
    """What a lock says of its holder."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def named_holder(about: Any) -> str:
    """A lock's holder in words."""
    try:
        command = " ".join(about["command"])
        return (
            f"process {about['pid']} on {about['host']}, started at {about['started']} ({command})"
        )
    except (ValueError, TypeError, KeyError):
        return "another process"


def _holder(text: str) -> str:
    try:
        return named_holder(json.loads(text))
    except ValueError:
        return named_holder(None)
