"""A file of results, a JSON value a line, that is added to as they come and outlives a kill."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a file with the numbers of their lines, from 1; none if there is no file.

    A line that is no JSON is left out: its writer was killed while it wrote.
    """
    for number, text in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            value = json.loads(text)
        except ValueError:
            continue
        yield number, value


def find_json_lines(path: Path, entries: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects of a file that have all of some entries, and maybe others."""
    for _, value in read_json_lines(path):
        if isinstance(value, dict) and all(value.get(key) == entries[key] for key in entries):
            yield value


def add_json_line(path: Path, value: Any) -> None:
    """Adds a value, on a line of its own behind whatever a writer that was killed has left.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "results.jsonl"
      >>> _ = path.write_text('{"cut": ')
      >>> add_json_line(path, {"right": 1.0})
      >>> list(read_json_lines(path))
      [(2, {'right': 1.0})]
      >>> list(find_json_lines(path, {"right": 0.5}))
      []
    """
    with path.open("ab+") as file:  # which is read anywhere and written at its end
        cut = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n"
        file.write((b"\n" if cut else b"") + json.dumps(value).encode() + b"\n")
