"""Batches of packed documents, in an order that a checkpoint can take up again."""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from hope_jax.counts import count
from hope_jax.data.token_stream import TokenStream


class PackedWindows:
    """A stream of documents cut into windows, as Grain wants a data source.

    Window i holds tokens i T to i T + T; its targets are the tokens one further on. A document's
    first token carries a reset, so that nothing is carried over from the document before.

    Attributes:
      stream: the documents.
      length: T.
    """

    def __init__(self, stream: TokenStream, length: int):
        self.stream, self.length = stream, length
        if len(stream.tokens) < length + 1:
            raise ValueError(
                f"the corpus part has {count(len(stream.tokens), 'token')}, fewer than the "
                f"{length + 1} of one sequence and its last target; add text, lower "
                f"data.sequence_length={length}, or, for the validation part, hold out a larger share"
            )

    def __len__(self) -> int:
        return (len(self.stream.tokens) - 1) // self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        first = index * self.length
        raw = self.stream.tokens[first : first + self.length + 1]
        if raw.min() < 0 or raw.max() >= self.stream.vocab_size:
            raise ValueError(
                f"tokens {first:,} to {first + self.length:,} hold ids {raw.min()} to {raw.max()}, but "
                f"the tokenizer has {self.stream.vocab_size}; the files are damaged, make them anew "
                f"with hope tokenize"
            )
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
    """Every window once, in order, made when asked for.

    Attributes:
      windows: of the validation part.
      batch_size: B.
    """

    def __init__(self, stream: TokenStream, *, sequence_length: int, batch_size: int):
        self.windows, self.batch_size = PackedWindows(stream, sequence_length), batch_size

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
    stream: TokenStream,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Any:
    """Makes the endless iterator of training batches.

    Every pass over the corpus has its own order, fixed by the seed. The iterator's `get_state` and
    `set_state` take it up exactly where it was.

    Args:
      stream: documents to learn from.
      sequence_length: T.
      batch_size: B over all processes.
      seed: of the order.
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
    windows = PackedWindows(stream, sequence_length)
    if len(windows) < batch_size:
        raise ValueError(
            f"the training part has {count(len(windows), 'sequence')} of {sequence_length} tokens, fewer "
            f"than data.batch_size={batch_size}; add text, or lower the batch size or sequence length"
        )
    rows = batch_size // process_count
    # Endless for all purposes, and yet a number that Grain, which divides it as a float, keeps exact.
    passes = 2**52 // len(windows)
    dataset = (
        grain.MapDataset.source(windows)
        .seed(seed)
        .shuffle()
        .repeat(passes)[
            # Each process takes every n-th sequence of one global order, so that the batches of all
            # processes together do not depend on how many there are.
            process_index::process_count
        ]
        .batch(rows)
    )
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(dataset.to_iter_dataset(options))
