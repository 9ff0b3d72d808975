"""Files in buckets, by addresses such as `gs://bucket/folder` and `s3://bucket/folder`.

All that is asked of a bucket is what every object store gives: a file is there whole or not at all, one
that was written is listed and read by whoever looks next, and one of two that make the same new file
learns that it came second. There is no renaming, no adding to a file and no lock, and nothing here needs
one. fsspec speaks with the stores; `memory://` and `file:///folder` are buckets, too, to it.
"""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from hope_jax.data.whole_file import UNFINISHED

T = TypeVar("T")

_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
# What a store refuses it refuses again; anything else may be the network. Seconds before it is tried
# again.
_REFUSALS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)
_PAUSES = (1.0, 4.0)


class BucketError(ValueError):
    """Raised when a bucket cannot be read or written."""


def is_address(path: str | Path) -> bool:
    """Whether a path is the address of something in a bucket.

    Example:
      >>> is_address("gs://bucket/run"), is_address("runs/a")
      (True, False)
    """
    return "://" in str(path)


def refuse_address(path: str | Path, name: str) -> None:
    """Raises a ValueError, with the flag that gave it, if a path is an address and cannot be one."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):  # a Path has made one slash of two
        raise ValueError(
            f"{name}={path} lies in a bucket, and must be a path of this machine; give one, and copy "
            f"what comes there"
        )


class Bucket:
    """A folder in a bucket.

    Args:
      address: of the folder.

    Raises:
      BucketError: if there is no such kind of bucket, or what reads it is not installed.

    Example:
      >>> bucket = Bucket("memory://example/run")
      >>> bucket.write("a/b.txt", b"text")
      >>> bucket.files(), bucket.read("a/b.txt"), bucket.read("c")
      ({'a/b.txt': 4}, b'text', None)
    """

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        self._system, self._root = _open(self.address)

    def files(self, under: str = "") -> dict[str, int]:
        """Names of all files, relative to the folder, with their sizes.

        Args:
          under: of a folder within, if only its files are wanted.
        """

        def find() -> dict[str, int]:
            self._system.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):
                found = self._system.find(self._path(under), detail=True)
                return {path: int(about["size"]) for path, about in found.items()}
            return {}

        found = self._try("list", under, find)
        return dict(
            zip(self._relative(found), (found[path] for path in sorted(found)), strict=True)
        )

    def matching(self, pattern: str) -> list[str]:
        """Names of the files that match a pattern, which begins with the folder's address."""
        path = self._root + pattern.removeprefix(self.address)

        def find() -> list[str]:
            self._system.invalidate_cache()
            found = self._system.glob(path, detail=True)
            return [place for place, about in found.items() if about["type"] == "file"]

        return self._relative(self._try("list", "", find))

    def read(self, name: str) -> bytes | None:
        """What is in a file; None if there is none."""

        def read() -> bytes | None:
            with contextlib.suppress(FileNotFoundError):
                return self._system.cat_file(self._path(name))
            return None

        return self._try("read", name, read)

    def write(self, name: str, content: bytes, new: bool = False) -> None:
        """Writes a file, whole, in the place of one that is there.

        Args:
          name: of the file.
          content: of the file.
          new: whether it must not be there yet.

        Raises:
          FileExistsError: if it must not, and is.
        """
        mode = "create" if new else "overwrite"
        self._try(
            "write", name, lambda: self._system.pipe_file(self._path(name), content, mode=mode)
        )

    def put(self, path: Path, name: str) -> None:
        """Copies a file of this machine that nobody changes to the bucket."""
        self._try("write", name, lambda: self._system.put_file(str(path), self._path(name)))

    def get(self, name: str, path: Path) -> None:
        """Copies a file to this machine, where it appears whole, in the place of one that is there.

        Raises:
          BucketError: if it cannot be read, or comes in another size than is listed.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}{UNFINISHED}")

        def get() -> None:
            size = int(self._system.info(self._path(name))["size"])
            self._system.get_file(self._path(name), str(aside))
            if aside.stat().st_size != size:
                raise OSError(f"{aside.stat().st_size} bytes came, of {size}")

        try:
            self._try("read", name, get)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files, one after the other; one that is gone already is no error."""
        for name in names:

            def delete(path: str = self._path(name)) -> None:
                with contextlib.suppress(FileNotFoundError):
                    self._system.rm_file(path)

            self._try("delete", name, delete)

    def copy(self, name: str, other: str) -> None:
        """Copies a file within the folder."""
        paths = self._path(name), self._path(other)
        self._try("copy", name, lambda: self._system.cp_file(*paths))

    def _relative(self, paths: Iterable[str]) -> list[str]:
        start = len(self._root.strip("/")) + 1
        return [path.strip("/")[start:] for path in sorted(paths)]

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _try(self, doing: str, name: str, action: Callable[[], T]) -> T:
        """Does it, and again where that might help."""
        for pause in (*_PAUSES, None):
            try:
                return action()
            except FileExistsError:
                raise
            except Exception as error:
                if pause is None or isinstance(error, _REFUSALS):
                    place = f"{self.address}/{name}".rstrip("/")
                    said = " ".join(str(error).split()) or type(error).__name__
                    raise BucketError(
                        f"cannot {doing} {place} ({said[:300]}); see to the network, the address and who "
                        f"may {doing} there"
                    ) from error
                time.sleep(pause)
        raise AssertionError


def _open(address: str) -> tuple[Any, str]:
    import fsspec  # which is needed here alone

    scheme = address.partition("://")[0]
    # A folder of this machine alone has folders that must be made.
    more = {"auto_mkdir": True} if scheme in ("file", "local") else {}
    if {".", ".."}.intersection(address.split("/")):
        raise BucketError(f"{address} is no address of a bucket; leave out . and ..")
    try:
        system, root = fsspec.core.url_to_fs(address, **more)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        mend = f"pip install 'hope_jax[{extra}]'" if extra else str(error)
        raise BucketError(f"{address}: to reach it, {mend}") from error
    except Exception as error:
        known = "give gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, or a path of this machine"
        raise BucketError(f"{address} cannot be reached ({error}); {known}") from error
    return system, root.rstrip("/")


def matching_files(pattern: str) -> list[tuple[str, str]]:
    """Files in a bucket that match a pattern, or lie in a folder, sorted by name.

    Args:
      pattern: an address, in which `*`, `?` and `**` stand for what they do in a shell.

    Returns:
      Name of each, relative to where the wildcards begin, and its address.

    Example:
      >>> Bucket("memory://example/text").write("a/1.txt", b"one")
      >>> matching_files("memory://example/text/**/*.txt")
      [('a/1.txt', 'memory://example/text/a/1.txt')]
    """
    fixed = re.split(r"[*?\[]", pattern)[0]
    if fixed == pattern:
        bucket = Bucket(pattern)
        found = bucket.files()
        if [*found] == [""]:  # a single file
            return [(pattern.rpartition("/")[2], bucket.address)]
        return [(name, f"{bucket.address}/{name}") for name in found]
    bucket = Bucket(fixed.rpartition("/")[0])
    return [(name, f"{bucket.address}/{name}") for name in bucket.matching(pattern)]


@contextlib.contextmanager
def at_hand(path: str | Path) -> Iterator[Path]:
    """A file as one of this machine: one in a bucket is fetched whole, and deleted afterwards.

    Args:
      path: of the file, or its address.

    Raises:
      BucketError: if it cannot be fetched.
    """
    if not is_address(path):
        yield Path(path)
        return
    folder, _, name = str(path).rpartition("/")
    with TemporaryDirectory(prefix="hope_jax_") as aside:
        Bucket(folder).get(name, Path(aside) / name)
        yield Path(aside) / name


def fetch_folder(path: str | Path, mark: str) -> Path:
    """A folder as one of this machine; one in a bucket is copied to it, and found there the next time.

    Args:
      path: of the folder, or its address.
      mark: the file that tells it from any other folder, which is copied last. If that of the copy is
        the bucket's, so is all else.

    Raises:
      BucketError: if it cannot be fetched.
    """
    if not is_address(path):
        return Path(path)
    bucket, folder = Bucket(str(path)), local_copy(str(path), "data")
    there, here = bucket.read(mark), folder / mark
    if there is None:
        raise BucketError(f"{path} holds no {mark}; give the address of a folder that does")
    if not (here.is_file() and here.read_bytes() == there):
        here.unlink(missing_ok=True)
        for name in sorted(bucket.files(), key=lambda name: (name == mark, name)):
            bucket.get(name, folder / name)
    return folder


def local_copy(address: str, kind: str) -> Path:
    """Where what an address names lies on this machine: under `~/.cache/hope_jax`, or `XDG_CACHE_HOME`.

    Args:
      address: of a file or folder.
      kind: of copy; those of different kinds lie apart.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    scheme, _, path = address.rstrip("/").partition("://")
    return Path(home).expanduser() / "hope_jax" / kind / scheme / path.strip("/")
