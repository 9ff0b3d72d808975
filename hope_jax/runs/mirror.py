"""Keeps in a bucket what a run writes to a folder of this machine, while it goes on.

The run writes to its folder as any other does, and knows nothing of the bucket: what holds there of kills
and full disks still holds. A thread looks at the folder every some seconds, and copies what is new: first
files such as the config and the metrics, whole, each time that they have changed; then the newest
checkpoint that the bucket lacks, its `checksums.json` last. A bucket that is slow makes it skip
checkpoints, and one that is out of reach makes it wait. Training never waits.

Of several processes each has a folder with its own pieces of the arrays, and sends those. The first
begins a checkpoint by a file `upload/begun` in it, the others answer by `upload/part_N.json`, with the
checksums of what they sent, and when all are there the first writes `checksums.json` of all of it.
"""

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hope_jax.data.bucket import Bucket, BucketError
from hope_jax.data.whole_file import UNFINISHED
from hope_jax.exit_codes import UNSENT
from hope_jax.runs.checkpoint_reader import checkpoint_steps
from hope_jax.runs.checksums import CHECKSUMS, Checksums, as_text, read_checksums
from hope_jax.runs.fetch import AT_ONCE, CHECKPOINTS, DAMAGED, names_of_step, whole_steps
from hope_jax.runs.folder_error import RunFolderError
from hope_jax.runs.keep import Keep, superfluous
from hope_jax.runs.metrics import validation_losses

# Seconds between two looks at the folder; between two warnings of a bucket that is out of reach; and
# for which sending may fail until the end of a run waits no longer.
_PAUSE = 15.0
_REMINDER = 600.0
_PATIENCE = 300.0
# So many times longer where nothing fails either.
_LONGER = 12


class UnsentError(RuntimeError):
    """Raised at the end of a run of which the bucket does not have everything."""

    exit_code = UNSENT


class Mirror:
    """Copies a run's folder to a bucket in the background, from `begin` to `finish`.

    Args:
      bucket: of the run.
      folder: of this process on this machine.
      aside: a folder beside it, on the same disk, for what is being sent.
      keep: which checkpoints stay in the bucket.
      confirm: raises a RunFolderError if another process writes to the bucket now.
      number: of this process.
      processes: how many there are.
      pause: seconds between two looks at the folder.
      patience: seconds for which `finish` waits while sending fails.
    """

    def __init__(
        self,
        bucket: Bucket,
        folder: Path,
        aside: Path,
        keep: Keep,
        confirm: Callable[[], None] = lambda: None,
        number: int = 0,
        processes: int = 1,
        pause: float | None = None,
        patience: float | None = None,
    ):
        self._bucket, self._folder, self._aside, self._keep = bucket, folder, aside, keep
        self._confirm, self._number, self._processes = confirm, number, processes
        self._pause = _PAUSE if pause is None else pause
        self._patience = _PATIENCE if patience is None else patience
        self._sent: dict[str, tuple[int, int]] = {}
        self._open: tuple[int, Checksums] | None = None
        self._refused: set[int] = set()  # steps whose checkpoints another process no longer has
        self._there: set[int] = set()  # steps that the bucket is known to have
        self._lost: RunFolderError | None = None
        self._error: Exception | None = None
        self._said = self._moved = time.monotonic()
        self._since = ""
        self._slow = False
        self._closing, self._ended, self._wake = (threading.Event() for _ in range(3))
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        """Sends what there is but checkpoints, and then goes on in the background.

        Raises:
          BucketError: if the bucket cannot be written.
        """
        for left in self._aside.glob("*/"):  # of a run that was killed
            shutil.rmtree(left)
        self._send_others()
        self._thread.start()

    def check(self) -> None:
        """Raises a RunFolderError if another process writes to the bucket now."""
        if self._lost is not None:
            raise self._lost

    def finish(self) -> None:
        """Waits until the bucket has everything.

        Raises:
          UnsentError: if sending has failed for minutes, or nothing has moved for an hour.
          RunFolderError: if another process writes to the bucket now.
        """
        self._moved = time.monotonic()
        self._closing.set()
        self._wake.set()
        began, told = time.monotonic(), False
        while not self._ended.wait(0.05 * self._pause):
            now = time.monotonic()
            # A large file may take its time; what fails is not waited for as long.
            if now - self._moved > self._patience * (_LONGER if self._error is None else 1):
                break
            if now - began > self._pause and not told:
                told = True
                logging.warning(
                    "waiting for %s, which lacks %s",
                    self._bucket.address,
                    ", ".join(self._lacking()),
                )
        ended = self._ended.is_set()
        self.stop()
        self.check()
        if not ended:
            why = "" if self._error is None else f" ({self._error})"
            raise UnsentError(
                f"{self._bucket.address} lacks {', '.join(self._lacking())}{why}. All of it lies in "
                f"{self._folder}: run the same command again on this machine, which sends it"
            )

    def stop(self) -> None:
        """Sends nothing more."""
        self._closing.set()
        self._ended.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _lacking(self) -> list[str]:
        """What the bucket is not known to have, in words."""
        newest = max(checkpoint_steps(self._folder), default=None)
        steps = [] if newest in (None, *self._there) else [f"the checkpoint of step {newest}"]
        return [*steps, *(name for name, _, _ in self._unsent())] or ["what other processes have"]

    def _run(self) -> None:
        while True:
            if self._ended.is_set():
                return
            closing = self._closing.is_set()
            try:
                left = self._look()
                if self._error is not None:
                    logging.warning(
                        "%s has what it lacked, or is reached again", self._bucket.address
                    )
                    self._error = None
                if closing and not left:
                    self._ended.set()
            except RunFolderError as error:
                self._lost = error
                self._ended.set()
            except Exception as error:  # whatever it is, training goes on
                self._warn(error)
            if closing:
                self._ended.wait(0.1 * self._pause)
            else:
                self._wake.wait(self._pause)

    def _warn(self, error: Exception) -> None:
        now = time.monotonic()
        if self._error is None:
            self._since = time.strftime("%H:%M")
        if self._error is None or now - self._said > _REMINDER:
            logging.warning(
                "since %s the run cannot be copied to its bucket (%s); it goes on in %s, and copying is "
                "tried again",
                self._since,
                error,
                self._folder,
            )
            self._said = now
        self._error = error

    def _look(self) -> set[int]:
        """Sends what can be sent now; the steps whose checkpoints are left to be sent."""
        steps = set(
            checkpoint_steps(self._folder)
        )  # before the files, so that they tell of all of these
        self._send_others()
        names = [*self._bucket.files(CHECKPOINTS)]
        self._there = set(whole_steps(names))
        return self._lead(steps, names) if self._number == 0 else self._follow(steps, names)

    def _unsent(self) -> Iterator[tuple[str, Path, tuple[int, int]]]:
        """Files but those of checkpoints that have changed since they were sent: name, path, state."""
        for path in sorted(self._folder.rglob("*") if self._number == 0 else ()):
            name = path.relative_to(self._folder)
            hidden = any(part.startswith(".") or part.endswith(UNFINISHED) for part in name.parts)
            if hidden or name.parts[0] in (CHECKPOINTS, DAMAGED, "lock") or not path.is_file():
                continue
            with contextlib.suppress(FileNotFoundError):
                state = path.stat().st_size, path.stat().st_mtime_ns
                if self._sent.get(str(name)) != state:
                    yield str(name), path, state

    def _send_others(self) -> None:
        for name, path, state in self._unsent():
            with contextlib.suppress(FileNotFoundError):
                content = path.read_bytes()  # which may grow meanwhile
                self._bucket.write(name, content)
                self._sent[name] = state
                self._moved = time.monotonic()

    def _lead(self, steps: set[int], names: list[str]) -> set[int]:
        """What the first process does; the steps whose checkpoints are left to be sent."""
        there = self._there
        losses = validation_losses(self._folder) if self._keep.best else {}
        wanted = steps - there - self._refused
        wanted -= set(superfluous(steps | there, self._keep, losses))
        if self._open is None and wanted:
            step = max(wanted)
            if len(wanted) > 1 and there and not self._slow:
                self._slow = True
                logging.warning(
                    "%s is slower than checkpoints are made: the newest is sent, not each before it",
                    self._bucket.address,
                )
            if self._processes > 1:
                self._bucket.write(f"{CHECKPOINTS}/{step}/upload/begun", b"")
            sums = self._send_checkpoint(step)
            if sums is None:  # it has gone meanwhile
                return wanted
            self._open = step, sums
        if self._open is not None:
            step, sums = self._open
            parts = [self._part(step, number) for number in range(1, self._processes)]
            if None in parts:
                return wanted
            self._open = None
            uploaded = [
                f"{CHECKPOINTS}/{step}/upload/part_{n}.json" for n in range(1, self._processes)
            ]
            uploaded += [f"{CHECKPOINTS}/{step}/upload/begun"] if self._processes > 1 else []
            if all(part["whole"] for part in parts if part):
                for part in parts:
                    sums = {**(part or {})["files"], **sums}
                self._confirm()
                self._bucket.write(f"{CHECKPOINTS}/{step}/{CHECKSUMS}", as_text(sums).encode())
                there.add(step)
                self._moved = time.monotonic()
            else:
                self._refused.add(step)
            self._bucket.delete(uploaded)
            self._clear(there, names, losses)
        return wanted - there - self._refused

    def _clear(self, there: set[int], names: list[str], losses: dict[int, float]) -> None:
        """Deletes from the bucket the checkpoints that may go, and what was left of others."""
        stays = there - set(superfluous(there, self._keep, losses))
        left = {name.split("/")[1] for name in names} - {str(step) for step in stays}
        for step in left:
            if step.isdecimal() and int(step) < max(stays, default=0):
                self._bucket.delete(names_of_step(names, int(step)))

    def _part(self, step: int, number: int) -> dict[str, Any] | None:
        """What another process says of its part of a checkpoint; None if nothing yet."""
        said = self._bucket.read(f"{CHECKPOINTS}/{step}/upload/part_{number}.json")
        return None if said is None else json.loads(said)

    def _follow(self, steps: set[int], names: list[str]) -> set[int]:
        """What the other processes do; the steps whose checkpoints are left to be sent."""
        there = self._there
        last = max(steps, default=0)
        mine = f"upload/part_{self._number}.json"
        for step in sorted(
            {int(name.split("/")[1]) for name in names if name.endswith("/upload/begun")}
        ):
            name = f"{CHECKPOINTS}/{step}/{mine}"
            if name in names or step in there or step > last:
                continue
            sums = self._send_checkpoint(step)
            answer = {"whole": sums is not None, "files": sums or {}}
            self._bucket.write(name, json.dumps(answer).encode())
            names = [*names, name]
        done = last in there or f"{CHECKPOINTS}/{last}/{mine}" in names
        return set() if done or not steps else {last}

    def _send_checkpoint(self, step: int) -> Checksums | None:
        """Sends the files of a checkpoint but the one that makes it whole.

        Returns:
          Their checksums; None if the checkpoint has made room for a newer one.
        """
        place = self._aside / str(step)
        shutil.rmtree(place, ignore_errors=True)
        try:
            # A second name for each file, so that the run may delete its own meanwhile.
            _link_all(self._folder / CHECKPOINTS / str(step), place)
            sums = read_checksums(place)
            if not all((place / name).exists() for name in sums):
                return None
            wanted = {n: sums[n] for n in sums if self._number == 0 or _is_piece(n)}
            others = [] if self._number else [n for n in _NOTES if (place / n).exists()]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(
                    pool.map(lambda name: self._send(place / name, step, name), [*wanted, *others])
                )
            return wanted
        except FileNotFoundError:
            return None
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _send(self, path: Path, step: int, name: str) -> None:
        if self._ended.is_set():
            raise BucketError(f"{step}/{name} is not sent any more")
        self._bucket.put(path, f"{CHECKPOINTS}/{step}/{name}")
        self._moved = time.monotonic()


# Orbax's own, which is in no list of checksums.
_NOTES = ("_CHECKPOINT_METADATA",)


def _is_piece(name: str) -> bool:
    """Whether a file holds a piece of an array, not what every process writes of all of them."""
    return not name.startswith("data/") and not Path(name).name.startswith("_")


def _link_all(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise FileNotFoundError(source)
    for path in source.rglob("*"):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except PermissionError:  # a file system without such names
            shutil.copyfile(path, place)
