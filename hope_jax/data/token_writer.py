"""Writes token files a document at a time, and goes on where an earlier call has stopped."""

import collections
import contextlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from hope_jax.data.token_stream import ABOUT, DTYPES, PARTS
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.data.whole_file import write_whole
from hope_jax.data.whole_folder import whole_folder_in

_PROGRESS = "progress.json"
# Tokens from one note of the progress to the next.
_EVERY = 1 << 24


class TokenWriter:
    """Writes the streams of a folder; `open_writer` makes it.

    Attributes:
      done: documents that an earlier call has written.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, settings: Mapping[str, Any]):
        self._folder, self._tokenizer = folder, tokenizer
        self._dtype = np.dtype(DTYPES[0] if tokenizer.vocab_size <= 2**16 else DTYPES[1])
        self._settings = {
            "dtype": self._dtype.str,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.digest,
            "before": list(tokenizer.before),
            "after": list(tokenizer.after),
            "documents": dict(settings),
        }
        self._counts = {part: {"tokens": 0, "documents": 0, "bytes": 0} for part in PARTS}
        self.done = self._checksum = 0
        self._noted = 0
        if (folder / _PROGRESS).is_file():
            self._go_on()
        self._files = {
            (part, kind): (folder / f"{part}.{kind}").open("ab")
            for part in PARTS
            for kind in ("tokens", "starts")
        }
        # The last document, which may yet move to the other part, and checksums up to those that follow.
        self._held: tuple[str, int, np.ndarray] | None = None
        self._last = self.done, self._checksum
        self._checksums: collections.deque[int] = collections.deque()

    def _go_on(self) -> None:
        """Takes up the progress of an earlier call, and cuts off what it has not noted."""
        noted = json.loads((self._folder / _PROGRESS).read_text())
        if noted["settings"] != self._settings:
            raise ValueError(
                f"{self._folder} holds what was begun with other settings or another tokenizer; give "
                f"the same to go on, or delete it"
            )
        self._counts, self.done, self._checksum = (
            noted[name] for name in ("counts", "done", "checksum")
        )
        for part, count in self._counts.items():
            sizes = {"tokens": count["tokens"] * self._dtype.itemsize}
            sizes["starts"] = count["documents"] * 8
            for kind, size in sizes.items():
                os.truncate(self._folder / f"{part}.{kind}", size)
        self._noted = sum(count["tokens"] for count in self._counts.values())

    def left(self, documents: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        """Of all documents, with their parts, those that are not written yet.

        Raises:
          ValueError: if those that are were others.
        """
        checksum = number = 0
        for number, (part, text) in enumerate(documents, 1):
            checksum = zlib.crc32(text, zlib.crc32(part.encode(), checksum))
            if number == self.done and checksum != self._checksum:
                break
            if number > self.done:
                self._checksums.append(checksum)
                yield part, text
        if number < self.done or (number == self.done and checksum != self._checksum):
            raise ValueError(
                f"{self._folder} holds tokens of other documents than those that come now; give the "
                f"same to go on, or delete it"
            )

    def write(self, part: str, size: int, ids: Int[np.ndarray, " T"]) -> None:
        """Writes the next document that `left` has given.

        Args:
          part: to which it belongs.
          size: bytes of its text.
          ids: of it; a document without any is left out.
        """
        done, checksum = self._last
        self._last = done + 1, self._checksums.popleft() if self._checksums else 0
        if not len(ids):
            return
        if ids.min() < 0 or ids.max() >= self._tokenizer.vocab_size:
            raise ValueError(
                f"a tokenizer of {self._tokenizer.vocab_size} tokens gave ids {ids.min()} to {ids.max()}"
            )
        if self._held is not None:
            self._put(*self._held)
            self.done, self._checksum = done, checksum
            if sum(count["tokens"] for count in self._counts.values()) - self._noted >= _EVERY:
                self._note()
        self._held = part, size, ids

    def _put(self, part: str, size: int, ids: np.ndarray) -> None:
        count = self._counts[part]
        self._files[part, "tokens"].write(ids.astype(self._dtype).tobytes())
        self._files[part, "starts"].write(np.array(count["tokens"], "<i8").tobytes())
        count["tokens"] += len(ids)
        count["documents"] += 1
        count["bytes"] += size

    def _note(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        names = ("settings", "counts", "done", "checksum")
        values = (self._settings, self._counts, self.done, self._checksum)
        write_whole(self._folder / _PROGRESS, json.dumps(dict(zip(names, values, strict=True))))
        self._noted = sum(count["tokens"] for count in self._counts.values())

    def finish(self) -> dict[str, dict[str, int]]:
        """Writes what is left; if no document is for validation, the last one is moved there.

        Returns:
          Tokens, documents and bytes of each part.

        Raises:
          ValueError: if a part would be empty.
        """
        if self._held is not None:
            alone = (
                self._counts["train"]["documents"] and not self._counts["validation"]["documents"]
            )
            self._put("validation" if alone else self._held[0], *self._held[1:])
        self.close()
        empty = [part for part in PARTS if not self._counts[part]["tokens"]]
        if empty:
            raise ValueError(
                f"there is no document for {' and '.join(empty)}; add text, or change the share that "
                f"is held out"
            )
        (self._folder / _PROGRESS).unlink(missing_ok=True)
        about = {name: value for name, value in self._settings.items() if name != "documents"}
        (self._folder / ABOUT).write_text(json.dumps({**about, **self._counts}, indent=1) + "\n")
        return self._counts

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()


@contextlib.contextmanager
def open_writer(
    folder: str | Path, tokenizer: Tokenizer, settings: Mapping[str, Any]
) -> Iterator[TokenWriter]:
    """Lends a writer of a folder that appears when it is whole; tokens take two bytes where ids allow.

    What a call has written when it is stopped or killed, some millions of tokens short, the next one
    takes up: it lies beside the folder as `.NAME.unfinished`.

    Args:
      folder: to write to, or its address in a bucket; it must be empty or not there.
      tokenizer: that makes the ids, whose digest is noted.
      settings: on which the documents depend.

    Raises:
      ValueError: if the folder holds something or cannot be written, or what is to be taken up is of
        other settings.
    """
    with whole_folder_in(folder, "--output", mark=ABOUT, keep=_PROGRESS) as aside:
        writer = TokenWriter(aside, tokenizer, settings)
        try:
            yield writer
        finally:
            writer.close()
