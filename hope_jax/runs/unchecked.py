"""Checkpoints of before there were checksums: one item `state`, and proof that it cannot be decoded."""

import json
from pathlib import Path

import tensorstore as ts

from hope_jax.runs.folder_error import refused_by_system


def is_unchecked(folder: Path) -> bool:
    """Whether a checkpoint is of the time before checksums."""
    return (folder / "state").is_dir()


def find_undecodable(folder: Path) -> str | None:
    """Decodes every array of such a checkpoint, one after the other.

    Args:
      folder: of the checkpoint.

    Returns:
      What is missing or cannot be decoded, and why; None if all can. A flipped bit is seldom found.

    Raises:
      OSError, ValueError: if a file is there and cannot be read (see `refused_by_system`).
    """
    try:
        json.loads((folder / "data" / "metadata").read_bytes())
        names = json.loads((folder / "state" / "_METADATA").read_bytes())["tree_metadata"]
        paths = [
            ".".join(part["key"] for part in about["key_metadata"])
            for about in names.values()
            if about["value_metadata"]["value_type"] not in ("None", "Dict", "Tuple", "NamedTuple")
        ]
    except (FileNotFoundError, NotADirectoryError) as error:
        return f"{error.filename} is missing"
    except (ValueError, TypeError, KeyError) as error:
        return f"a description cannot be decoded ({error})"
    base = {"driver": "file", "path": f"{folder / 'state'}/"}
    for path in paths:
        store = {"driver": "ocdbt", "base": base, "path": path}
        try:
            ts.open({"driver": "zarr", "kvstore": store}).result().read().result()
        except (ValueError, KeyError, FileNotFoundError) as error:
            if refused_by_system(error):
                raise
            return f"array {path} cannot be decoded ({' '.join(str(error).split())[:200]})"
    return None
