"""Batches of packed documents, in an order that a checkpoint can take up again."""

from collections.abc import Sequence
from typing import Any, Protocol

import grain
import numpy as np

from hope_jax.counts import count
from hope_jax.data.token_stream import TokenStream


class RowSource(Protocol):
    """Rows of T tokens by their number, as Grain wants a data source."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`tokens`, `targets`, `reset` and `weights` of one."""


def check_length(stream: TokenStream, length: int) -> None:
    """Refuses a stream that is shorter than one row and its last target."""
    if len(stream.tokens) < length + 1:
        raise ValueError(
            f"the corpus part has {count(len(stream.tokens), 'token')}, fewer than the "
            f"{length + 1} of one sequence and its last target; add text, lower "
            f"data.sequence_length={length}, or, for the validation part, hold out a larger share"
        )


def check_ids(stream: TokenStream, first: int, ids: np.ndarray) -> None:
    """Refuses ids that are none of the tokenizer's; `first` is the place of the first."""
    if ids.min() < 0 or ids.max() >= stream.vocab_size:
        raise ValueError(
            f"tokens {first:,} to {first + len(ids) - 1:,} hold ids {ids.min()} to {ids.max()}, but "
            f"the tokenizer has {stream.vocab_size}; the files are damaged, make them anew "
            f"with hope tokenize"
        )


class PackedWindows:
    """A stream of documents cut into windows, as Grain wants a data source.

    Window i holds tokens i T to i T + T; its targets are the tokens one further on. A document's
    first token carries a reset, so that nothing is carried over from the document before.

    Attributes:
      stream: the documents.
      length: T.
    """

    def __init__(self, stream: TokenStream, length: int):
        check_length(stream, length)
        self.stream, self.length = stream, length

    def __len__(self) -> int:
        return (len(self.stream.tokens) - 1) // self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        first = index * self.length
        raw = self.stream.tokens[first : first + self.length + 1]
        check_ids(self.stream, first, raw)
        ids = raw.astype(np.int32)
        starts = np.zeros(self.length + 1, bool)
        begin, end = np.searchsorted(self.stream.starts, (first, first + self.length + 1))
        starts[self.stream.starts[begin:end] - first] = True
        return {
            "tokens": ids[:-1],
            "targets": ids[1:],
            "reset": starts[:-1],
            # The first token of the next document cannot be told from this one.
            "weights": (~starts[1:]).astype(np.float32),
        }


class ValidationBatches(Sequence[dict[str, np.ndarray]]):
    """Every row once, in order, made when asked for.

    Attributes:
      windows: rows of the validation part.
      batch_size: B.
    """

    def __init__(self, windows: RowSource, *, batch_size: int):
        self.windows, self.batch_size = windows, batch_size

    def __len__(self) -> int:
        return -(-len(self.windows) // self.batch_size)

    def __getitem__(self, index: Any) -> Any:
        """A batch as those of `train_iterator`, the last one filled up by rows of weight 0."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * self.batch_size
        end = min(first + self.batch_size, len(self.windows))
        rows = [self.windows[i] for i in range(first, end)]
        filler = {**rows[0], "weights": np.zeros_like(rows[0]["weights"])}
        rows += [filler] * (self.batch_size - len(rows))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def train_iterator(
    sources: Sequence[RowSource],
    *,
    batch_size: int,
    seed: int,
    weights: Sequence[float] = (1.0,),
    process_index: int = 0,
    process_count: int = 1,
) -> Any:
    """Makes the endless iterator of training batches.

    Every pass over a source has its own order, fixed by the seed; rows of several come in the
    proportions of their weights, as evenly spread as can be. The iterator's `get_state` and `set_state`
    take it up exactly where it was.

    Args:
      sources: rows to learn from.
      batch_size: B over all processes.
      seed: of the order.
      weights: share of the rows that each source gives, in proportion.
      process_index: which part of each batch this process reads.
      process_count: how many processes share a batch.

    Returns:
      An iterator of `tokens` and `targets` (int32), `reset` (bool) and `weights` (float32; 0 where
      the target belongs to the next document), each of shape (B / process_count, T).

    Raises:
      ValueError: if the corpus is shorter than a batch, or the batch does not divide.
    """
    if batch_size % process_count:
        raise ValueError(
            f"data.batch_size={batch_size} does not divide among {process_count} processes; make it "
            f"a multiple"
        )
    there_are = sum(map(len, sources))
    if there_are < batch_size:
        raise ValueError(
            f"the training part has {count(there_are, 'sequence')} of data.sequence_length, fewer than "
            f"data.batch_size={batch_size}; add text, or lower the batch size or sequence length"
        )
    rows = batch_size // process_count
    # Endless for all purposes, and yet a number that Grain, which divides it as a float, keeps exact,
    # for several sources also in proportion to the smallest weight.
    endless = 2**52 if len(sources) == 1 else 2**40
    endless_sources = [
        grain.MapDataset.source(source)
        .seed((seed + number) % 2**32)
        .shuffle()
        .repeat(endless // len(source))
        for number, source in enumerate(sources)
    ]
    mixed = endless_sources[0]
    if len(sources) > 1:
        mixed = grain.MapDataset.mix(endless_sources, weights)
    # Each process takes every n-th sequence of one global order, so that the batches of all processes
    # together do not depend on how many there are.
    dataset = mixed[process_index::process_count].batch(rows)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(dataset.to_iter_dataset(options))
