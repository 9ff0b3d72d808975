"""Arrays by name and what is said of them, in a file with a checksum."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization

# A file begins with such a line, in which stands a checksum of all that follows. Files of before it
# have none, and are read.
_HEADER = b"hope_jax %b file, CRC-32 "
_CHECKSUM = b"%08x\n"


def packed(kind: str, words: Mapping[str, Any], arrays: Mapping[str, Any]) -> bytes:
    """The content of a file, MessagePack with a checksum.

    Args:
      kind: of file.
      words: what is said of the arrays, in texts, numbers, lists and dicts.
      arrays: by name.
    """
    held = {name: np.asarray(array) for name, array in arrays.items()}
    content = serialization.msgpack_serialize({**words, "format": _format(kind), "arrays": held})
    return _HEADER % kind.encode() + _CHECKSUM % zlib.crc32(content) + content


def unpacked(path: Path, kind: str, called: str) -> dict[str, Any]:
    """What `packed` was given: the words, and `arrays`.

    Args:
      path: of a file.
      kind: it should be of.
      called: what a file of this kind is called, for the error.

    Raises:
      ValueError: if it is damaged, or of another kind.
    """
    try:
        content: Any = serialization.msgpack_restore(_checked(path.read_bytes(), kind))
        if content["format"] != _format(kind):
            raise ValueError(f"format {content['format']!r} where {_format(kind)!r} is read")
        _ = content["arrays"].keys()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no {called}, or a damaged one ({error})") from error
    return content


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _format(kind: str) -> str:
    return f"hope_jax {kind} 1"


def _checked(content: bytes, kind: str) -> bytes:
    """What follows the header, if there is one."""
    header = _HEADER % kind.encode()
    if not content.startswith(header):
        return content
    size = len(header) + len(_CHECKSUM % 0)
    if content[len(header) : size] != _CHECKSUM % zlib.crc32(content[size:]):
        raise ValueError("its checksum is another")
    return content[size:]
