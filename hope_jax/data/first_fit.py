"""Documents packed into rows whole: each into the first row that has room for it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from hope_jax.data.pipeline import check_ids, check_length
from hope_jax.data.token_stream import TokenStream

# Rows that are filled at a time; the fullest of them is closed to begin another.
_OPEN = 64


class Rows(NamedTuple):
    """Which pieces of a stream lie in which row.

    Attributes:
      first: place in the stream of each piece's first token, ordered by row, shape (pieces,).
      size: of each piece: so many tokens, each with the one after it as its target.
      begin: of each row its first piece, and the number of pieces at the end, shape (rows + 1,).
    """

    first: Int[np.ndarray, " pieces"]
    size: Int[np.ndarray, " pieces"]
    begin: Int[np.ndarray, " rows_and_one"]


def first_fit(starts: Int[np.ndarray, " documents"], total: int, length: int) -> Rows:
    """Cuts documents that are longer than a row, and packs what there is then by first fit.

    A document of n tokens has n - 1 with a target in it. Of a longer one full rows are cut off as long
    as there are any. At most 64 rows are open at a time, so that it takes time in proportion to the
    number of documents, some 13 seconds for each million; the result depends on nothing else.

    Args:
      starts: places of the documents' first tokens.
      total: tokens of the stream.
      length: T, of a row.

    Example:
      >>> first_fit(np.array([0, 4, 10, 12]), 15, 6).begin.tolist()
      [0, 3, 4]
    """
    sizes = np.diff([*starts, total]) - 1
    pieces = [np.stack([starts, sizes], 1)[(sizes > 0) & (sizes <= length)]]
    for first, size in zip(starts[sizes > length], sizes[sizes > length], strict=True):
        cuts = np.arange(0, size, length)
        pieces.append(np.stack([first + cuts, np.minimum(length, size - cuts)], 1))
    found = np.concatenate(pieces)
    found = found[np.argsort(found[:, 0])]
    row_of = np.empty(len(found), np.int64)
    names = np.arange(_OPEN)
    room = np.full(_OPEN, length)
    rows = _OPEN
    for number, size in enumerate(found[:, 1]):
        fits = room >= size
        place = int(np.argmax(fits))
        if not fits[place]:
            place = int(np.argmin(room))
            # The newest row is the last that is tried.
            names[place:-1], room[place:-1] = names[place + 1 :], room[place + 1 :]
            place, names[-1], room[-1] = -1, rows, length
            rows += 1
        row_of[number] = names[place]
        room[place] -= size
    order = np.argsort(row_of, kind="stable")
    begin = np.flatnonzero(np.diff(row_of[order], prepend=-1))
    first, size = found[order].T
    return Rows(first, size, np.append(begin, len(found)))


class FittedRows:
    """A stream of documents packed into rows, as Grain wants a data source.

    A row holds whole documents, of those longer than a row pieces, and at its end tokens 0 without a
    weight. Each carries a reset at its first token.

    Attributes:
      stream: the documents.
      length: T.
    """

    def __init__(self, stream: TokenStream, length: int):
        check_length(stream, length)
        self.stream, self.length = stream, length
        self._rows = first_fit(stream.starts, len(stream.tokens), length)
        if not len(self):
            raise ValueError("no document of the corpus part has two tokens; give longer ones")

    def __len__(self) -> int:
        return len(self._rows.begin) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = {
            "tokens": np.zeros(self.length, np.int32),
            "targets": np.zeros(self.length, np.int32),
            "reset": np.zeros(self.length, bool),
            "weights": np.zeros(self.length, np.float32),
        }
        filled = 0
        for piece in range(self._rows.begin[index], self._rows.begin[index + 1]):
            first, size = int(self._rows.first[piece]), int(self._rows.size[piece])
            raw = self.stream.tokens[first : first + size + 1]
            check_ids(self.stream, first, raw)
            here = slice(filled, filled + size)
            row["tokens"][here], row["targets"][here] = raw[:-1], raw[1:]
            row["reset"][filled], row["weights"][here] = True, 1
            filled += size
        row["reset"][filled : filled + 1] = True
        return row
