"""Runs in buckets, fetched to read them.

In a bucket a run looks as its folder does. A checkpoint is whole there when its `checksums.json` is, for
that is written after all else of it, and deleted before all else.
"""

import logging
import secrets
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hope_jax.data.bucket import Bucket, BucketError, is_address, local_copy
from hope_jax.data.whole_file import UNFINISHED
from hope_jax.runs.bucket_lock import LOCK
from hope_jax.runs.checkpoint_reader import PARTS, checkpoint_steps
from hope_jax.runs.checksums import CHECKSUMS, find_wrong_file

# Folders of a run that are no part of going on or reading: checkpoints are fetched one by one.
CHECKPOINTS, DAMAGED = "checkpoints", "damaged"
_SELDOM_READ = ("tensorboard", "profile")
# Files that are on their way at once, since each waits for the store more than for the line.
AT_ONCE = 16
_ATTEMPTS = 5


def whole_steps(names: Collection[str]) -> list[int]:
    """Steps of the whole checkpoints among a bucket's files, newest first.

    Example:
      >>> whole_steps(["checkpoints/5/checksums.json", "checkpoints/9/data/metadata", "config.json"])
      [5]
    """
    parts = [name.split("/") for name in names]
    steps = [
        int(part[1])
        for part in parts
        if len(part) == 3
        and part[0] == CHECKPOINTS
        and part[2] == CHECKSUMS
        and part[1].isdecimal()
    ]
    return sorted(steps, reverse=True)


def names_of_step(names: Iterable[str], step: int) -> list[str]:
    """Those of a bucket's files that are of a checkpoint, the one that makes it whole first."""
    start = f"{CHECKPOINTS}/{step}/"
    return sorted(
        (name for name in names if name.startswith(start)),
        key=lambda name: (name != start + CHECKSUMS, name),
    )


def fetch_others(
    bucket: Bucket, folder: Path, names: Iterable[str], but: Collection[str] = ()
) -> None:
    """Fetches what is no checkpoint.

    Args:
      bucket: of the run.
      folder: where it is put.
      names: of all files of the bucket.
      but: folders of the run that are left out.
    """
    out = {CHECKPOINTS, DAMAGED, LOCK, *but}
    wanted = [name for name in names if name.split("/")[0] not in out]
    _in_parallel(bucket, {name: folder / name for name in wanted})


def fetch_checkpoint(
    bucket: Bucket, folder: Path, step: int, names: Iterable[str], parts: Sequence[str] = PARTS
) -> str | None:
    """Fetches a checkpoint, which takes the place of one that is there if it is as its checksums say.

    Args:
      bucket: of the run.
      folder: of the copy.
      step: of the checkpoint.
      names: of all files of the bucket.
      parts: those that are wanted.

    Returns:
      What is wrong with it, if something is; it is then fetched in vain.

    Raises:
      BucketError: if something of it cannot be fetched.
    """
    start = f"{CHECKPOINTS}/{step}/"
    place = folder / CHECKPOINTS / str(step)
    aside = place.with_name(f".{step}.{secrets.token_hex(8)}{UNFINISHED}")
    relative = [name.removeprefix(start) for name in names_of_step(names, step)]
    wanted = [name for name in relative if "/" not in name or name.split("/")[0] in parts]
    aside.mkdir(parents=True)
    try:
        _in_parallel(bucket, {start + name: aside / name for name in wanted})
        wrong = find_wrong_file(aside, parts)
        if wrong is None:
            _remove(place)
            try:
                aside.rename(place)
            except OSError:  # another process has put its own there
                if (place / CHECKSUMS).read_bytes() != (aside / CHECKSUMS).read_bytes():
                    raise
        return wrong
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def fetch_run(path: str, parts: Sequence[str] = ("params",), flag: str = "--workdir") -> str:
    """A run's folder on this machine; one in a bucket is fetched, with its newest whole checkpoint.

    What was fetched once is not fetched again. Nothing in the bucket is changed.

    Args:
      path: of a run, or of one of its checkpoints, here or in a bucket.
      parts: of the checkpoint that are wanted; none for no checkpoint.
      flag: that gave the path, for the error.

    Returns:
      The path itself, or that of the copy.

    Raises:
      ValueError: if there is no run.
      BucketError: if the bucket cannot be read.
    """
    if not is_address(path):
        return path
    run, only = _run_and_step(path)
    bucket, folder = Bucket(run), local_copy(run, "read")
    for attempt in range(_ATTEMPTS):
        names = bucket.files()
        if "config.json" not in names:
            raise ValueError(f"{flag}={path} holds no run (there is no {run}/config.json)")
        try:
            fetch_others(bucket, folder, names, _SELDOM_READ)
            if parts:
                _fetch_newest(bucket, folder, names, parts, only)
            break
        except BucketError:
            # A run that is training has put a newer one in its place.
            if attempt == _ATTEMPTS - 1 or [*bucket.files()] == [*names]:
                raise
    return str(folder if only is None else folder / CHECKPOINTS / str(only))


def holds_run(path: str) -> bool:
    """Whether there is a run, here or in a bucket."""
    if is_address(path):
        return Bucket(path).read("config.json") is not None
    return (Path(path) / "config.json").is_file()


def _fetch_newest(
    bucket: Bucket, folder: Path, names: Mapping[str, int], parts: Sequence[str], only: int | None
) -> None:
    steps = [step for step in whole_steps(names) if only in (None, step)]
    taken = None
    for step in steps:
        place = folder / CHECKPOINTS / str(step)
        there = bucket.read(f"{CHECKPOINTS}/{step}/{CHECKSUMS}")
        here = all((place / part).is_dir() for part in parts) and (place / CHECKSUMS).read_bytes()
        damage = None if here == there else fetch_checkpoint(bucket, folder, step, names, parts)
        if damage is None:
            taken = step
            break
        logging.warning(
            "checkpoint of step %d in %s is damaged (%s); taking the one before",
            step,
            bucket.address,
            damage,
        )
    for step in checkpoint_steps(folder):
        # Of those that were asked for by their steps several may be read at once.
        if step != taken and (only is None or step == only):
            _remove(folder / CHECKPOINTS / str(step))


def _run_and_step(address: str) -> tuple[str, int | None]:
    run, _, step = address.rstrip("/").rpartition(f"/{CHECKPOINTS}/")
    return (run, int(step)) if run and step.isdecimal() else (address.rstrip("/"), None)


def _remove(place: Path) -> None:
    """Removes a folder; whoever reads in it finds it whole or not at all."""
    if place.exists():
        gone = place.with_name(f".{place.name}.{secrets.token_hex(8)}{UNFINISHED}")
        place.rename(gone)
        shutil.rmtree(gone)


def _in_parallel(bucket: Bucket, places: Mapping[str, Path]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(bucket.get, places, places.values()))
