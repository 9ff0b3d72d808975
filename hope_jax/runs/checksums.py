"""Checksums of a folder's files, kept in it: one flipped bit is found."""

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from hope_jax.data.whole_file import write_whole

CHECKSUMS = "checksums.json"
# Size and CRC-32 by a file's name.
Checksums = dict[str, tuple[int, int]]
# Orbax writes these after everything else; nothing that is restored depends on them.
_NOTES = {"_CHECKPOINT_METADATA", "commit_success.txt"}


def write_checksums(folder: Path) -> None:
    """Notes size and CRC-32 of every file: reads all that was written, about a second for each GB.

    Args:
      folder: in which `checksums.json` is written.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in _NOTES)
    sums = {str(path.relative_to(folder)): _size_and_checksum(path) for path in files}
    write_whole(folder / CHECKSUMS, as_text(sums))


def as_text(sums: Checksums) -> str:
    """What is written of checksums, and of themselves."""
    own = zlib.crc32(json.dumps(sums).encode())
    return json.dumps({"files": sums, "checksum": own})


def read_checksums(folder: Path) -> Checksums:
    """What `write_checksums` wrote to a folder that is whole."""
    files = json.loads((folder / CHECKSUMS).read_bytes())["files"]
    return {name: (int(size), int(checksum)) for name, (size, checksum) in files.items()}


def find_wrong_file(folder: Path, parts: Sequence[str]) -> str | None:
    """What is wrong with the files of a folder.

    Args:
      folder: with the file that `write_checksums` wrote.
      parts: the folders in it that matter.

    Returns:
      A file that is missing or not as it was written, and why; None if all are.

    Raises:
      OSError: if files are there and cannot be read, which says nothing about what is in them.
    """
    try:
        content = json.loads((folder / CHECKSUMS).read_bytes())
        sums = content["files"]
        if zlib.crc32(json.dumps(sums).encode()) != content["checksum"]:
            return f"{CHECKSUMS} has another checksum"
        wanted = {
            name: (int(size), int(checksum))
            for name, (size, checksum) in sums.items()
            if name.split(os.sep)[0] in parts
        }
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{CHECKSUMS} cannot be decoded"
    missing = set(parts) - {name.split(os.sep)[0] for name in wanted}
    if missing:
        return f"{CHECKSUMS} lists no file of {', '.join(sorted(missing))}"
    for name, (size, checksum) in wanted.items():
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes, of {size}"
            if _size_and_checksum(folder / name) != (size, checksum):
                return f"{name} has another checksum"
        except (FileNotFoundError, NotADirectoryError):
            return f"{name} is missing"
    return None


def _size_and_checksum(path: Path) -> tuple[int, int]:
    size = checksum = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return size, checksum
