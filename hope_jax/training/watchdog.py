"""Ends a run that hangs, and says where it does."""

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from hope_jax.exit_codes import HUNG
from hope_jax.training.activity import Activity

_TICK = 1.0  # seconds
_GRACE = 10  # seconds that a folder which may hang, too, is waited for


class Watchdog:
    """Ends this process, with code 77, if one and the same thing is done for too long.

    That is a step, the reading of its batch, a batch of an evaluation, or the writing of a checkpoint;
    starting and compiling may take as long as they will. The stacks of all threads go to standard error
    and to a file of the run's folder. Time in which the process was suspended does not count. It runs
    while it is entered.

    Args:
      folder: of the run.
      process: number of this process.
      activity: what is done.
      seconds: that are too long; 0 for never.
      tell: is called before the end.
    """

    def __init__(
        self,
        folder: str,
        process: int,
        activity: Activity,
        seconds: float,
        tell: Callable[[], None],
    ):
        self._file = Path(folder) / f"stacks_of_process_{process}.txt"
        self._activity, self._seconds, self._tell = activity, seconds, tell
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._seconds:
            self._thread.join()

    def _watch(self) -> None:
        seen, waited = -1, 0.0
        tick = min(_TICK, self._seconds / 4)
        while not self._over.wait(tick):
            if self._activity.begun != seen or self._activity.kind in ("starting", "compiling"):
                seen, waited = self._activity.begun, 0.0
            else:
                waited += tick
            if waited >= self._seconds:
                return self._end()

    def _end(self) -> None:
        doing = f"for {self._seconds:g} seconds {self._activity}, and nothing else has been begun"
        print(
            f"hope: the run hangs: {doing}. It ends; the same command again goes on from its last "
            f"checkpoint. Stacks of all threads, also in {self._file}:",
            file=sys.stderr,
            flush=True,
        )
        with contextlib.suppress(Exception):  # a standard error that is no file of the system
            faulthandler.dump_traceback(sys.stderr)
        self._tell()
        writing = threading.Thread(target=self._write, args=(doing,), daemon=True)
        writing.start()
        writing.join(_GRACE)
        os._exit(HUNG)

    def _write(self, doing: str) -> None:
        with contextlib.suppress(OSError), self._file.open("w") as file:
            file.write(doing + "\n")
            file.flush()
            faulthandler.dump_traceback(file)
