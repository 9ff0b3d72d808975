"""Strings with a class at each position: padded arrays of them, and batches."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Examples(NamedTuple):
    """Strings of many lengths, each from the left of its row.

    Attributes:
      tokens: ids that are read; 0 behind the end.
      targets: the class to be told at each position; 0 behind the end.
      weights: 1 at each position that counts, 0 behind the end.
    """

    tokens: Int[np.ndarray, "N T"]
    targets: Int[np.ndarray, "N T"]
    weights: Float[np.ndarray, "N T"]


def pad_examples(
    tokens: Sequence[np.ndarray], targets: Sequence[np.ndarray], length: int | None = None
) -> Examples:
    """Lays strings in rows of one length.

    Args:
      tokens: ids of each string.
      targets: classes of each string.
      length: T; None for that of the longest string.

    Raises:
      ValueError: if a string is longer, or has not a class at each position.

    Example:
      >>> pad_examples([np.array([3, 4])], [np.array([0, 1])], length=3).weights.tolist()
      [[1.0, 1.0, 0.0]]
    """
    longest = max(map(len, tokens), default=0)
    length = longest if length is None else length
    if longest > length:
        raise ValueError(f"there is a string of {longest} tokens, longer than length={length}")
    examples = Examples(
        np.zeros((len(tokens), length), np.int32),
        np.zeros((len(tokens), length), np.int32),
        np.zeros((len(tokens), length), np.float32),
    )
    for row, (ids, classes) in enumerate(zip(tokens, targets, strict=True)):
        if len(ids) != len(classes):
            raise ValueError(f"string {row} has {len(ids)} tokens and {len(classes)} classes")
        examples.tokens[row, : len(ids)] = ids
        examples.targets[row, : len(ids)] = classes
        examples.weights[row, : len(ids)] = 1
    return examples


def shuffled_batches(
    examples: Examples, batch_size: int, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches, each pass over the examples in an order of its own.

    Args:
      examples: N of them.
      batch_size: B; the rows that a pass leaves over go to the next one.
      seed: of the orders.

    Yields:
      `tokens`, `targets` and `weights`, each (B, T), as a training step takes them.
    """
    random = np.random.default_rng(seed)
    order = np.zeros(0, np.int64)
    while True:
        while len(order) < batch_size:
            order = np.concatenate([order, random.permutation(len(examples.tokens))])
        rows, order = order[:batch_size], order[batch_size:]
        yield {name: values[rows] for name, values in examples._asdict().items()}
