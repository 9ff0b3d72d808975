"""How far something long has come, in a file: a night, or a life on a stream of text."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hope_jax.data.whole_file import write_whole
from hope_jax.inference.array_file import packed, unpacked


class ProgressFile:
    """Keeps how far something has come, every so many seconds, whole or not at all.

    Args:
      path: of the file.
      every: seconds from one time to the next.

    Attributes:
      held: what was kept last, its words and `arrays`; None if there is no such file.

    Raises:
      ValueError: if there is a file, but no such one.
    """

    def __init__(self, path: Path, every: float):
        self.path, self._every, self._last = path, every, time.monotonic()
        self.held: dict[str, Any] | None = None
        if path.is_file():
            self.held = unpacked(path, "progress", "file of something begun")

    def go_on(self, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was kept last, by the same arguments; None where nothing was.

        Args:
          arguments: all that the result depends on, as texts and numbers.

        Raises:
          ValueError: if it was begun with others.
        """
        if self.held is None:
            return None
        before = self.held["arguments"]
        differ = [
            f"{name} was {before.get(name)!r} and is {arguments.get(name)!r}"
            for name in sorted({*before, *arguments})
            if before.get(name) != arguments.get(name)
        ]
        if differ:
            raise ValueError(
                f"{self.path} was begun with other arguments: {'; '.join(differ)}; give those of before "
                f"to go on with it, or delete it to begin anew"
            )
        return self.held

    def keep(
        self, arguments: Mapping[str, Any], words: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> None:
        """Writes how far it has come, in the place of what was kept before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        words = {**words, "arguments": dict(arguments)}
        write_whole(self.path, packed("progress", words, arrays))
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to keep."""
        return time.monotonic() - self._last >= self._every

    def delete(self) -> None:
        """What was begun is over."""
        self.path.unlink(missing_ok=True)


def numbered(tree: Any, prefix: str) -> dict[str, Any]:
    """The leaves of a tree by a prefix and their numbers."""
    return {f"{prefix}{n}": np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(tree))}


def leaves_of(arrays: Mapping[str, Any], prefix: str) -> list[Any] | None:
    """The leaves that `numbered` has named; None if there are none."""
    names = sorted((n for n in arrays if n.startswith(prefix)), key=lambda n: int(n[len(prefix) :]))
    return [arrays[name] for name in names] or None
