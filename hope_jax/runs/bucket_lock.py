"""A lock on a run in a bucket, which knows no locks: a file that its holder writes again and again."""

import contextlib
import json
import logging
import secrets
import threading
import time
from typing import Any

from hope_jax.data.bucket import Bucket, BucketError
from hope_jax.runs.folder_error import RunFolderError
from hope_jax.runs.lock import about_this_process, named_holder

LOCK = "lock"


class BucketLock:
    """Holds a run in a bucket until it is released, or this process has ended for some while.

    The file `lock` is made as one that must be new. Its holder writes it again every `beat` seconds, and
    whoever finds one looks on for `silence` seconds: if it changes its holder lives, and if it does not
    the lock is taken over. A holder that finds another's name in it, since it was cut off for so long,
    has lost it, and `check` says so. No two clocks are compared.

    It is left there when it is released, since it also says which folder was the last to be written from.

    Args:
      bucket: the run's.
      folder: name of the folder on this machine that is to be written from. A lock that was taken for the
        same folder is taken over at once, so only one at a time may try.
      beat: seconds.
      silence: seconds, several beats.

    Attributes:
      head: name of the folder that was written from last, wherever it lies; None if there is none.

    Raises:
      ValueError: if another process holds it; it is named.
      BucketError: if the bucket cannot be written.
    """

    def __init__(self, bucket: Bucket, folder: str, beat: float = 15.0, silence: float = 60.0):
        self._bucket, self._beat = bucket, beat
        self._mine = {"folder": folder, "start": secrets.token_hex(8), **about_this_process()}
        self.head: str | None = None
        self._lost: str | None = None
        self._ending = threading.Event()
        self._take(silence)
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def _take(self, silence: float) -> None:
        found = self._bucket.read(LOCK)
        if found is None:
            try:
                self._bucket.write(LOCK, self._content(), new=True)
            except FileExistsError:
                found = self._bucket.read(LOCK)
        if found is not None:
            self._take_over(found, silence)
        # Of two that take it at once the last one has it, and both look.
        time.sleep(min(self._beat, 1.0))
        now = _decoded(self._bucket.read(LOCK))
        if now.get("start") != self._mine["start"]:
            raise self._held_by(now)

    def _take_over(self, found: bytes, silence: float) -> None:
        theirs = _decoded(found)
        if not (theirs.get("released") or theirs.get("folder") == self._mine["folder"]):
            logging.warning(
                "%s was being written by %s; looking for %d seconds whether it still is",
                self._bucket.address,
                named_holder(theirs),
                silence,
            )
            end = time.monotonic() + silence
            while time.monotonic() < end:
                time.sleep(min(self._beat, silence / 4))
                if self._bucket.read(LOCK) != found:
                    raise self._held_by(theirs)
        self.head = theirs.get("head")
        self._bucket.write(LOCK, self._content())

    def _held_by(self, theirs: dict[str, Any]) -> ValueError:
        return ValueError(
            f"{self._bucket.address} is being written by {named_holder(theirs)}; wait for it or stop it, "
            f"or give another --workdir"
        )

    def _content(self, **more: Any) -> bytes:
        return (
            json.dumps(
                {**self._mine, "head": self.head, "beat": secrets.token_hex(4), **more}
            ).encode()
            + b"\n"
        )

    def lead(self) -> None:
        """Notes that this folder now holds what the bucket does, and is written from."""
        self.head = self._mine["folder"]
        self._bucket.write(LOCK, self._content())

    def _live(self) -> None:
        while self._lost is None and not self._ending.wait(self._beat):
            # A bucket that is out of reach changes nothing; who writes to it says so.
            with contextlib.suppress(BucketError, RunFolderError):
                self.confirm()
                self._bucket.write(LOCK, self._content())

    def confirm(self) -> None:
        """Looks into the bucket, and then does as `check`.

        Raises:
          BucketError: if it cannot be read.
        """
        now = self._bucket.read(LOCK)
        theirs = _decoded(now)
        if now is not None and theirs.get("start") != self._mine["start"]:
            self._lost = named_holder(theirs)
        self.check()

    def check(self) -> None:
        """Raises a RunFolderError if another process is known to have taken it over."""
        if self._lost is not None:
            raise RunFolderError(
                f"{self._bucket.address} is now written by {self._lost}, since this process was cut off "
                f"from it; let that one go on, or stop it and run the same command again"
            )

    def release(self) -> None:
        """Lets others have it."""
        self._ending.set()
        self._thread.join()
        if self._lost is None:
            with contextlib.suppress(BucketError):
                self._bucket.write(LOCK, self._content(released=True))


def _decoded(content: bytes | None) -> dict[str, Any]:
    try:
        about = json.loads(content or b"{}")
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}
