"""MAD's six tasks: what a sequence layer can recall, copy, memorise and compress (Table 4).

The benchmark of Poli et al. (2024, arXiv 2403.17844). A task has a size at which it begins, and points
beside it that change one thing.

* recall: keys, each with a value, which is the same wherever the key comes again. What counts are the
  values of keys that have come before.
* fuzzy recall: likewise, of keys and values of one to three tokens; in the test all keys have three.
* noisy recall: as recall, but in some pairs' place there are two tokens that mean nothing.
* selective copying: tokens among blanks, then a sign, then blanks. At these the tokens are to be told, in
  order.
* memorisation: keys, each followed by a blank, at which its value is to be told, always the same one.
* compression: random tokens and a sign. What the model has made of the string at the sign is all that a
  decoder gets (`hope_jax.models.auto_encoder`), which is to tell every token, the sign too.

In recall, which value a key has is drawn anew for every string, and the last pair's key has always been
seen. Models are trained on every next token of the recall tasks, and tested on what counts. In selective
copying the tokens lie anywhere before the sign (the original's last one lies right before it).

The score is the share of positions that are right. The original's is the mean of such shares over ids,
much the same where ids are equally frequent; but the sign of compression weighs there as much as an id.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from hope_jax.data.examples import Examples

NOISE = 16  # tokens that mean nothing
MOTIF = 3  # tokens of a fuzzy key or value at most
_MAP_SEED = 12345  # of what is memorised, one for training and test


class Point(NamedTuple):
    """One size of a task.

    Attributes:
      task: its name.
      vocabulary: token ids, those of blanks and noise included.
      length: tokens of a string.
      items: strings to train on.
      noise: share of pairs that are noise.
      copied: tokens to copy.
    """

    task: str
    vocabulary: int
    length: int
    items: int = 12_800
    noise: float = 0.0
    copied: int = 0


class Sets(NamedTuple):
    """Strings of a point, drawn independently.

    Attributes:
      train: with the weights of training.
      validation: with those of the test.
      test: likewise.
    """

    train: Examples
    validation: Examples
    test: Examples


_ITEMS = (6_400, 3_200, 1_600, 800)
_LENGTHS = (256, 512, 1_024)
_RECALL = {"vocabulary": (32, 64, 128), "length": _LENGTHS, "items": _ITEMS}
# Where a task begins, and what is changed, one at a time.
_TASKS: dict[str, tuple[str, Point, Mapping[str, tuple[float, ...]]]] = {
    "recall": ("recall", Point("recall", 16, 128), _RECALL),
    "fuzzy": ("fuzzy recall", Point("fuzzy", 16, 128), _RECALL),
    "noisy": (
        "noisy recall",
        Point("noisy", 16 + NOISE, 128, noise=0.2),
        {
            "vocabulary": (32 + NOISE, 64 + NOISE, 128 + NOISE),
            "noise": (0.4, 0.6, 0.8),
            "length": _LENGTHS,
            "items": _ITEMS,
        },
    ),
    "copying": (
        "selective copying",
        Point("copying", 16, 256, copied=16),
        {
            "vocabulary": (32, 64, 128),
            "length": (512, 1_024),
            "copied": (32, 64, 96),
            "items": _ITEMS,
        },
    ),
    "memorisation": (
        "memorisation",
        Point("memorisation", 256, 32, items=256),
        {"vocabulary": (512, 1_024, 2_048, 4_096, 8_192)},
    ),
    "compression": (
        "compression",
        Point("compression", 16, 32),
        {"vocabulary": (32, 64, 128), "length": (64, 128, 256), "items": _ITEMS},
    ),
}


def _all_points() -> dict[str, Point]:
    points = {}
    for name, (_, first, changes) in _TASKS.items():
        points[name] = first
        for key, values in changes.items():
            for value in values:
                points[f"{name}/{key}={value}"] = Point(**{**first._asdict(), key: value})
    return points


POINTS: Mapping[str, Point] = _all_points()
BASELINES = tuple(_TASKS)
TITLES = {name: _TASKS[point.task][0] for name, point in POINTS.items()}


def make_sets(point: Point, seed: int, *, validation: int, test: int) -> Sets:
    """Draws the strings of a point.

    Args:
      point: of `POINTS`, or a size of your own.
      seed: of the strings.
      validation: strings to choose by.
      test: strings to test on.

    Raises:
      ValueError: if a string of that length or vocabulary holds nothing of the task.

    Example:
      >>> sets = make_sets(POINTS["recall"], 0, validation=2, test=3)
      >>> sets.train.tokens.shape, sets.test.tokens.shape
      ((12800, 127), (3, 127))
    """
    _check(point)
    draw = _DRAW[point.task]
    counts = (point.items, validation, test)
    parts = [
        draw(np.random.default_rng([seed, place]), point, count, place == 0)
        for place, count in enumerate(counts)
    ]
    return Sets(*parts)


# Ids that a task keeps for itself, besides noise.
_SPECIAL = {"fuzzy": 1, "copying": 2, "memorisation": 1, "compression": 1}
_IN_PAIRS = ("recall", "noisy", "memorisation")


def _check(point: Point) -> None:
    special = NOISE if point.task == "noisy" else _SPECIAL.get(point.task, 0)
    least = 2 * MOTIF if point.task == "fuzzy" else 2
    if point.vocabulary - special < least:
        raise ValueError(
            f"a vocabulary of {point.vocabulary} is too small for {point.task}; give it at least "
            f"{least + special} ids"
        )
    least_lengths = {"fuzzy": 6 * MOTIF, "copying": 2 * point.copied + 1, "compression": 2}
    shortest = least_lengths.get(point.task, 4)
    even = point.task in _IN_PAIRS
    if point.length < shortest or (even and point.length % 2):
        raise ValueError(
            f"length {point.length} of {point.task} must be {shortest} or more"
            + (", and even" if even else "")
        )


def _next_token(tokens: Int[np.ndarray, "N T"], counts: Bool[np.ndarray, "N T"]) -> Examples:
    """Examples of the next token, where that is one that counts."""
    return Examples(
        tokens[:, :-1].astype(np.int32),
        tokens[:, 1:].astype(np.int32),
        counts[:, 1:].astype(np.float32),
    )


def _recall(random: np.random.Generator, point: Point, count: int, train: bool) -> Examples:
    noise = NOISE if point.noise else 0
    keys = (point.vocabulary - noise) // 2
    values = point.vocabulary - noise - keys
    pairs = point.length // 2
    value_of = random.integers(values, size=(count, keys)) + keys
    key = random.integers(keys, size=(count, pairs))
    meant = random.random((count, pairs)) >= point.noise
    meant[np.arange(count), random.integers(pairs - 1, size=count)] = True
    # The last pair asks for a key that has come: that of a pair that is no noise.
    meant[:, -1] = True
    place = np.where(meant[:, :-1], random.random((count, pairs - 1)), -1).argmax(axis=1)
    key[:, -1] = key[np.arange(count), place]
    pair = np.stack([key, np.take_along_axis(value_of, key, axis=1)], axis=-1)
    if noise:
        nothing = random.integers(point.vocabulary - noise, point.vocabulary, size=pair.shape)
        pair = np.where(meant[..., None], pair, nothing)
    rows = np.arange(count)
    seen = np.zeros((count, keys), bool)
    counts = np.zeros((count, pairs, 2), bool)
    for number in range(pairs):
        counts[:, number, 1] = meant[:, number] & seen[rows, key[:, number]]
        seen[rows, key[:, number]] |= meant[:, number]
    counts |= train
    return _next_token(pair.reshape(count, -1), counts.reshape(count, -1))


def _fuzzy_recall(random: np.random.Generator, point: Point, count: int, train: bool) -> Examples:
    padding = point.vocabulary - 1
    keys = range(padding // 2)
    values = range(padding // 2, padding)
    motifs = {
        part: {size: list(itertools.permutations(ids, size)) for size in range(1, MOTIF + 1)}
        for part, ids in (("key", keys), ("value", values))
    }
    tokens = np.full((count, point.length + 1), padding)
    counts = np.zeros(tokens.shape, bool)
    for row in range(count):
        written, asked = _fuzzy_string(random, motifs, point.length + 1, train)
        tokens[row, -len(written) :] = written
        counts[row, -len(asked) :] = asked
    return _next_token(tokens, counts | train)


def _fuzzy_string(
    random: np.random.Generator,
    motifs: Mapping[str, Mapping[int, list[tuple[int, ...]]]],
    length: int,
    train: bool,
) -> tuple[list[int], list[bool]]:
    """Tokens of a string of at most so many, and which of them count."""
    value_of: dict[tuple[int, ...], tuple[int, ...]] = {}
    written: list[int] = []
    asked: list[bool] = []

    def draw(part: str, least: int) -> tuple[int, ...]:
        some = motifs[part][int(random.integers(least, MOTIF + 1))]
        return some[random.integers(len(some))]

    def write(key: tuple[int, ...]) -> None:
        known = key in value_of
        value = value_of.setdefault(key, draw("value", 1))
        written.extend((*key, *value))
        asked.extend((*[False] * len(key), *[known] * len(value)))

    while len(written) <= length - 4 * MOTIF:  # so that it and the last pair have room
        write(draw("key", 1 if train else MOTIF))
    known = list(value_of)
    write(known[random.integers(len(known))])
    return written, asked


def _copying(random: np.random.Generator, point: Point, count: int, train: bool) -> Examples:
    sign, blank = point.vocabulary - 1, point.vocabulary - 2
    copied = random.integers(blank, size=(count, point.copied))
    before = point.length - point.copied - 1
    places = np.sort(random.random((count, before)).argsort(axis=1)[:, : point.copied], axis=1)
    tokens = np.full((count, point.length), blank, np.int32)
    np.put_along_axis(tokens, places, copied, axis=1)
    tokens[:, before] = sign
    targets = np.zeros_like(tokens)
    targets[:, before + 1 :] = copied
    weights = np.zeros(tokens.shape, np.float32)
    weights[:, before + 1 :] = 1
    return Examples(tokens, targets, weights)


@functools.cache
def _always(vocabulary: int) -> Int[np.ndarray, " K"]:
    """The value of each key, the same for training and test."""
    keys = (vocabulary - 1) // 2
    return keys + np.random.default_rng(_MAP_SEED).permutation(vocabulary - 1 - keys)[:keys]


def _memorisation(random: np.random.Generator, point: Point, count: int, train: bool) -> Examples:
    value_of = _always(point.vocabulary)
    key = random.integers(len(value_of), size=(count, point.length // 2))
    tokens = np.full((count, point.length // 2, 2), point.vocabulary - 1, np.int32)
    tokens[..., 0] = key
    targets = np.zeros_like(tokens)
    targets[..., 1] = value_of[key]
    weights = np.zeros(tokens.shape, np.float32)
    weights[..., 1] = 1
    return Examples(*(part.reshape(count, -1) for part in (tokens, targets, weights)))


def _compression(random: np.random.Generator, point: Point, count: int, train: bool) -> Examples:
    sign = point.vocabulary - 1
    tokens = random.integers(sign, size=(count, point.length), dtype=np.int32)
    tokens[:, -1] = sign
    return Examples(tokens, tokens, np.ones(tokens.shape, np.float32))


_DRAW: Mapping[str, Callable[[np.random.Generator, Point, int, bool], Examples]] = {
    "recall": _recall,
    "noisy": _recall,
    "fuzzy": _fuzzy_recall,
    "copying": _copying,
    "memorisation": _memorisation,
    "compression": _compression,
}
