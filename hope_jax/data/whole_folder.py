"""Folders that appear whole or not at all, also in buckets, and places that are known to be writable."""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from hope_jax.data.bucket import Bucket, BucketError, is_address, local_copy, refuse_address
from hope_jax.data.whole_file import UNFINISHED


@contextlib.contextmanager
def whole_folder(path: str | Path, name: str, keep: str = "") -> Iterator[Path]:
    """Lends a folder to write in, which becomes `path` in one move if nothing is raised within.

    It lies beside `path`, under a name that cannot be guessed, or as `.NAME.unfinished` if a later call
    may go on with it. Meanwhile `path` is an empty folder that
    is locked, so that a second writer is refused before it begins.

    Args:
      path: of the folder, which is not there yet, or empty.
      name: of the flag that gave the path, for the errors.
      keep: a file in the folder to write in; where it is there when something is raised, or the process
        dies, the folder stays, and is lent again.

    Yields:
      The folder to write in.

    Raises:
      ValueError: if the path holds something, is being written to, or cannot be written.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as home:
      ...     with whole_folder(f"{home}/tokens", "--output") as folder:
      ...         _ = (folder / "a").write_text("text")
      ...     os.listdir(home), os.listdir(f"{home}/tokens")
      (['tokens'], ['a'])
    """
    refuse_address(path, name)
    path = Path(os.path.realpath(path))
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ValueError(_refusal(path, name, error)) from error
    try:
        _lock(lock, path, name)
        if os.listdir(path):
            raise ValueError(
                f"{name}={path} holds files already; give another folder, or delete it first"
            )
        unguessed = "" if keep else f".{secrets.token_hex(8)}"
        aside = path.with_name(f".{path.name}{unguessed}{UNFINISHED}")
        try:
            if keep and not (aside / keep).is_file() and not aside.is_symlink():
                shutil.rmtree(aside, ignore_errors=True)
            if not keep or not aside.is_dir() or aside.is_symlink():
                aside.mkdir()
            yield aside
            _sync(aside)
            aside.rename(path)  # an empty folder gives way
        except BaseException as error:
            if not keep or not (aside / keep).is_file():
                shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.rmdir()  # only if it is empty
            if isinstance(error, OSError):
                raise ValueError(_refusal(path, name, error)) from error
            raise
    finally:
        os.close(lock)


@contextlib.contextmanager
def whole_folder_in(path: str | Path, name: str, mark: str, keep: str = "") -> Iterator[Path]:
    """As `whole_folder`, and where the path is the address of one in a bucket, it is sent there.

    It is first written on this machine, where `hope_jax.data.bucket.fetch_folder` then finds it.

    Args:
      path: of the folder, or its address.
      name: see `whole_folder`.
      mark: the file that tells it from any other folder, which is sent last.
      keep: see `whole_folder`.

    Yields:
      The folder to write in.

    Raises:
      ValueError: see `whole_folder`.
      BucketError: if it cannot be sent; it stays on this machine, and the error says where.
    """
    if not is_address(path):
        with whole_folder(path, name, keep) as aside:
            yield aside
        return
    bucket, folder = Bucket(str(path)), local_copy(str(path), "data")
    if mark in bucket.files():
        raise ValueError(
            f"{name}={path} holds files already; give another address, or delete it first"
        )
    if (folder / mark).is_file():
        raise ValueError(
            f"{folder} was written for {name}={path} and is not there; copy it there, {mark} last, or "
            f"delete it to begin anew"
        )
    with whole_folder(folder, name, keep) as aside:
        yield aside
    files = [file for file in folder.rglob("*") if file.is_file()]
    try:
        for file in sorted(files, key=lambda file: (file == folder / mark, file)):
            bucket.put(file, file.relative_to(folder).as_posix())
    except BucketError as error:
        raise BucketError(
            f"{error}; what was to be sent is in {folder}: copy it there, {mark} last"
        ) from error


def check_writable(path: str | Path, name: str) -> None:
    """Makes sure that a file can be written later, before the work whose result it is to hold.

    Args:
      path: of the file; its folder may yet have to be made.
      name: of the flag that gave the path, for the error.

    Raises:
      ValueError: if it cannot.
    """
    refuse_address(path, name)
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no ordinary file"
        raise ValueError(f"{name}={path} is {kind}; give the path of a file")
    # Folders that are missing are not made yet: the work may still fail.
    home = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    probe = home / f".{path.name}.{secrets.token_hex(8)}{UNFINISHED}"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        probe.unlink()
    except OSError as error:
        raise ValueError(_refusal(path, name, error)) from error


def _lock(handle: int, path: Path, name: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"{name}={path} is being written by another process; wait for it, or give another folder"
        ) from error
    except OSError:
        return  # a file system without locks; the move at the end still is one
    # Between opening and locking, another writer may have put its result there.
    if not path.is_dir() or not os.path.samestat(os.fstat(handle), path.stat()):
        raise ValueError(f"{name}={path} was written by another process just now")


def _sync(folder: Path) -> None:
    """Puts what was written on the disk, so that no power cut leaves names without contents."""
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _refusal(path: Path, name: str, error: OSError) -> str:
    where = "" if error.filename in (None, str(path)) else f" at {error.filename}"
    return (
        f"{name}={path} cannot be written ({error.strerror}{where}); give a place in a folder that "
        f"you may write to"
    )
