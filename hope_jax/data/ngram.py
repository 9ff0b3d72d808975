"""Byte n-grams with interpolated Witten-Bell smoothing: what a table of counts can predict."""

from collections.abc import Sequence

import numpy as np

from hope_jax.counts import count


def witten_bell_bits_per_byte(
    train: Sequence[bytes], validation: Sequence[bytes], order: int
) -> float:
    """Trains an n-gram model on some documents and scores it on others.

    `P_n(b | h) = (count(h b) + distinct(h) P_{n-1}(b | h')) / (count(h) + distinct(h))` where h' drops
    the oldest byte of h and P_0 is uniform; a history never seen leaves P_{n-1} as it is. Histories do
    not reach over the beginning of a document: its first bytes are scored by lower orders.

    Args:
      train: documents to count.
      validation: documents to score.
      order: n, 1 to 7.

    Returns:
      Bits per byte of the validation documents.

    Raises:
      ValueError: for an order out of range, or where one of the parts holds no byte.

    Example:
      >>> round(witten_bell_bits_per_byte([b"abababab"], [b"abab"], order=2), 3)
      0.48
    """
    if not 1 <= order <= 7:
        raise ValueError(f"order must be 1 to 7, got {order}: longer histories overflow an integer")
    for name, part in (("train", train), ("validation", validation)):
        if not any(part):
            raise ValueError(f"the {name} part holds no byte in {count(len(part), 'document')}")
    seen, target = _flatten(train), _flatten(validation)
    probability = np.full(len(target[0]), 1 / 256)
    for length in range(order):
        counts = _counts(seen, length)
        probability = _interpolate(probability, target, length, *counts)
    return float(-np.mean(np.log2(probability)))


def _flatten(documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """All bytes in a row, and each byte's place in its document."""
    data = np.frombuffer(b"".join(documents), np.uint8).astype(np.int64)
    place = np.concatenate([np.arange(len(document)) for document in documents])
    return data, place


def _histories(text: tuple[np.ndarray, np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """The history before each byte that has one, as an integer, and which bytes those are."""
    data, place = text
    where = np.flatnonzero(place >= length)
    history = np.zeros(len(where), np.int64)
    for back in range(length, 0, -1):
        history = history * 256 + data[where - back]
    return history, where


def _counts(
    text: tuple[np.ndarray, np.ndarray], length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    history, where = _histories(text, length)
    grams, gram_counts = np.unique(history * 256 + text[0][where], return_counts=True)
    histories, first, distinct = np.unique(grams // 256, return_index=True, return_counts=True)
    totals = np.add.reduceat(gram_counts, first)
    return grams, gram_counts, histories, totals, distinct


def _interpolate(probability, target, length, grams, gram_counts, histories, totals, distinct):
    history, where = _histories(target, length)
    gram = history * 256 + target[0][where]
    count = _look_up(gram, grams, gram_counts)
    total = _look_up(history, histories, totals)
    kinds = _look_up(history, histories, distinct)
    lower = probability[where]
    mixed = (count + kinds * lower) / np.maximum(total + kinds, 1)
    probability = probability.copy()
    probability[where] = np.where(total > 0, mixed, lower)
    return probability


def _look_up(keys: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    index = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[index] == keys, values[index], 0)
