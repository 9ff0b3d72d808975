"""Batches of packed documents, in an order that a checkpoint can take up again."""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Int

from hope_jax.training.tokenizers import Tokenizer


class PackedWindows:
    """Documents set one after the other and cut into windows, as Grain wants a data source.

    Window i holds tokens i T to i T + T; its targets are the tokens one further on. A document's
    first token carries a reset, so that nothing is carried over from the document before.

    Attributes:
      tokens: all documents' ids, int32, shape (total,).
      starts: True at documents' first tokens, shape (total,).
      length: T.
    """

    def __init__(self, documents: Sequence[bytes], tokenizer: Tokenizer, length: int):
        ids = [tokenizer.encode(document) for document in documents]
        ids = [document for document in ids if len(document)]
        self.tokens: Int[np.ndarray, " total"] = np.concatenate(ids) if ids else np.zeros(0, int)
        self.starts: Bool[np.ndarray, " total"] = np.zeros(len(self.tokens), bool)
        if ids:
            self.starts[np.cumsum([0, *(len(document) for document in ids[:-1])])] = True
        self.length = length
        if len(self.tokens) < length + 1:
            raise ValueError(
                f"the corpus part has {len(self.tokens)} tokens, fewer than the {length + 1} of one "
                f"sequence and its last target; add text or lower data.sequence_length={length}"
            )

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        window = slice(index * self.length, (index + 1) * self.length)
        following = slice(window.start + 1, window.stop + 1)
        return {
            "tokens": self.tokens[window].astype(np.int32),
            "targets": self.tokens[following].astype(np.int32),
            "reset": self.starts[window],
            # The first token of the next document cannot be told from this one.
            "weights": (~self.starts[following]).astype(np.float32),
        }


def train_iterator(
    documents: Sequence[bytes],
    tokenizer: Tokenizer,
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
      documents: to learn from.
      tokenizer: of their text.
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
    windows = PackedWindows(documents, tokenizer, sequence_length)
    if len(windows) < batch_size:
        raise ValueError(
            f"the training part has {len(windows)} sequences of {sequence_length} tokens, fewer than "
            f"data.batch_size={batch_size}; add text, or lower the batch size or sequence length"
        )
    rows = batch_size // process_count
    dataset = (
        grain.MapDataset.source(windows)
        .seed(seed)
        .shuffle()
        .repeat()[
            # Each process takes every n-th sequence of one global order, so that the batches of all
            # processes together do not depend on how many there are.
            process_index::process_count
        ]
        .batch(rows)
    )
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(dataset.to_iter_dataset(options))


def validation_batches(
    documents: Sequence[bytes], tokenizer: Tokenizer, *, sequence_length: int, batch_size: int
) -> list[dict[str, np.ndarray]]:
    """Makes the validation batches: every window once, in order, the last batch filled up.

    Args:
      documents: to evaluate on.
      tokenizer: of their text.
      sequence_length: T.
      batch_size: B.

    Returns:
      Batches as above, with `weights` 0 at rows that only fill up the last one.
    """
    windows = PackedWindows(documents, tokenizer, sequence_length)
    batches = []
    for first in range(0, len(windows), batch_size):
        rows = [windows[i] for i in range(first, min(first + batch_size, len(windows)))]
        filler = {**rows[0], "weights": np.zeros_like(rows[0]["weights"])}
        rows += [filler] * (batch_size - len(rows))
        batches.append({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    return batches
