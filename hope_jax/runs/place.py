"""Where a run is written: a folder of this machine, by itself or with a bucket behind it.

Training in a bucket is training in a folder of this machine that is kept there, too: it writes to a disk
with locks and moves, as ever, and waits for no network. When it begins, the folder becomes what the
bucket holds, unless it is the one that was written to the bucket last: then it has all that the bucket
has, and maybe more.

Of several processes each has a folder of its own, since hosts share no disk. None of them holds a whole
checkpoint but those that it has fetched, so that all of them begin with what the bucket holds.
"""

import contextlib
import logging
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax

from hope_jax.data.bucket import Bucket, BucketError, is_address, local_copy
from hope_jax.data.whole_file import UNFINISHED, write_whole
from hope_jax.runs.agreement import first_decides
from hope_jax.runs.bucket_lock import BucketLock
from hope_jax.runs.checksums import CHECKSUMS
from hope_jax.runs.fetch import (
    CHECKPOINTS,
    DAMAGED,
    fetch_checkpoint,
    fetch_others,
    names_of_step,
    whole_steps,
)
from hope_jax.runs.keep import Keep
from hope_jax.runs.lock import FolderLock
from hope_jax.runs.mirror import Mirror


class Place:
    """Where a run is written.

    Attributes:
      folder: of this process on this machine.
      shared: whether all processes have the same.
    """

    def __init__(self, folder: str, shared: bool = True):
        self.folder, self.shared = folder, shared

    def begin(self, keep: Keep) -> None:
        """Called when the folder holds the run's config, with which checkpoints stay."""

    def check(self) -> None:
        """Raises a RunFolderError if another process writes there now."""

    def finish(self) -> None:
        """Called when all is written; raises an UnsentError if not all of it is where it belongs."""


class _InBucket(Place):
    """A folder of this machine that is kept in a bucket, too."""

    def __init__(self, bucket: Bucket, folder: Path, aside: Path, lock: BucketLock | None):
        super().__init__(str(folder), shared=jax.process_count() == 1)
        self._bucket, self._aside, self._lock = bucket, aside, lock
        self._mirror: Mirror | None = None

    def begin(self, keep: Keep) -> None:
        self._mirror = Mirror(
            self._bucket,
            Path(self.folder),
            self._aside,
            keep,
            self._lock.confirm if self._lock else lambda: None,
            jax.process_index(),
            jax.process_count(),
        )
        self._mirror.begin()

    def check(self) -> None:
        if self._lock is not None:
            self._lock.check()
        if self._mirror is not None:
            self._mirror.check()

    def finish(self) -> None:
        if self._mirror is not None:
            self._mirror.finish()

    def stop(self) -> None:
        """Sends nothing more."""
        if self._mirror is not None:
            self._mirror.stop()


@contextlib.contextmanager
def place_of(workdir: str) -> Iterator[Place]:
    """The place of a run that is to be written; every process enters it at the same point.

    Args:
      workdir: a folder, or the address of one in a bucket.

    Yields:
      The place, which nobody else writes to until it is left.

    Raises:
      ValueError: if somebody does.
      BucketError: if the bucket cannot be read or written.
    """
    if not is_address(workdir):
        yield Place(workdir)
        return
    bucket, folder = Bucket(workdir), local_copy(workdir, "runs")
    if jax.process_count() > 1:
        folder = folder.with_name(f"{folder.name}.process_{jax.process_index()}")
    aside = folder.with_name(f"{folder.name}.sending")
    with contextlib.ExitStack() as stack:
        aside.mkdir(parents=True, exist_ok=True)
        stack.callback(FolderLock(aside).release)
        lock: BucketLock | None = None

        def take() -> int | None:
            nonlocal lock
            name = _name(aside)
            lock = BucketLock(bucket, name)
            stack.callback(lock.release)
            _clear_unfinished(bucket)
            step = None
            if jax.process_count() > 1 or lock.head != name or not folder.is_dir():
                step = _fetch_whole(bucket, folder)
                lock.lead()
            return step

        step = first_decides(take)
        if jax.process_index() > 0 and (damage := _fetch(bucket, folder, step)) is not None:
            raise BucketError(
                f"{workdir}: step {step} came damaged ({damage}); run the command again"
            )
        place = _InBucket(bucket, folder, aside, lock)
        stack.callback(place.stop)
        yield place


def _name(aside: Path) -> str:
    """The name of a folder of this machine, which no other has."""
    path = aside / "name"
    if not path.exists():
        write_whole(path, secrets.token_hex(8))
    return path.read_text()


def _clear_unfinished(bucket: Bucket) -> None:
    """Deletes what is left of checkpoints that were being sent when their run was killed."""
    names = bucket.files(CHECKPOINTS)
    whole = {str(step) for step in whole_steps(names)}
    bucket.delete(name for name in names if name.split("/")[1] not in whole)


def _fetch_whole(bucket: Bucket, folder: Path) -> int | None:
    """Makes the folder what the bucket holds; the step of its checkpoint, None if there is none.

    A checkpoint that is damaged in the bucket is set aside there, as it is in a folder.
    """
    while True:
        steps = whole_steps(bucket.files(CHECKPOINTS))
        step = steps[0] if steps else None
        damage = _fetch(bucket, folder, step)
        if damage is None or step is None:
            return step
        logging.warning(
            "checkpoint of step %d in %s is damaged (%s), and now in %s there; taking the one before",
            step,
            bucket.address,
            damage,
            DAMAGED,
        )
        # The file that makes it whole is copied last and goes first.
        names = names_of_step(bucket.files(CHECKPOINTS), step)
        for name in reversed(names):
            bucket.copy(name, name.replace(CHECKPOINTS, DAMAGED, 1))
        bucket.delete(names)


def _fetch(bucket: Bucket, folder: Path, step: int | None) -> str | None:
    """Makes the folder what the bucket holds, with one checkpoint, in one move.

    Returns:
      What is wrong with the checkpoint, if something is; nothing has then changed.
    """
    aside = folder.with_name(f"{folder.name}{UNFINISHED}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    names = bucket.files()
    damage = None if step is None else fetch_checkpoint(bucket, aside, step, names)
    if damage is None:
        fetch_others(bucket, aside, names)
        _make_room(folder)
        aside.rename(folder)
    return damage


def _make_room(folder: Path) -> None:
    """Moves a folder away if it may hold a whole run, and deletes it if it holds pieces."""
    if jax.process_count() > 1 or not any(folder.glob(f"{CHECKPOINTS}/*/{CHECKSUMS}")):
        shutil.rmtree(folder, ignore_errors=True)
        return
    other = folder.with_name(f"{folder.name}.before_{secrets.token_hex(4)}")
    folder.rename(other)
    logging.warning(
        "%s is not what was written to the bucket last; it is now %s, and can be deleted",
        folder,
        other,
    )
