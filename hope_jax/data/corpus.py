"""Documents to train on: of files, TFDS, a function of one's own, or the running Python's library."""

import glob
import hashlib
import itertools
import os
import pathlib
import re
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from hope_jax.data.bucket import is_address, matching_files
from hope_jax.data.documents import read_file
from hope_jax.named import calling, find

_END = object()
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


class Documents(NamedTuple):
    """Documents as bytes, split by document.

    Attributes:
      train: documents to learn from.
      validation: documents to evaluate on.
    """

    train: Sequence[bytes]
    validation: Sequence[bytes]


def load_documents(
    files: str = "",
    tfds: str = "",
    validation_fraction: float = 0.1,
    source: str | None = None,
    arguments: Mapping[str, Any] = MappingProxyType({}),
) -> Documents:
    """Loads a corpus and splits it, document by document.

    The split is by a hash of a document's name, so that a new file moves no other between the parts. If
    that holds out none, the last one is; of a single document, its end.

    Args:
      files: a pattern such as `corpus/**/*.txt`, or a folder, of files of the kinds of `read_file`;
        empty for the sources of the standard library of the Python that runs this, which every
        machine has.
      tfds: name of a TFDS data set of texts instead, prepared as ArrayRecord. Its `train` split is
        read, and its `validation` split if it has one; no other. The folder is TFDS's own, or that in
        the environment's `TFDS_DATA_DIR`.
      validation_fraction: share of documents held out.
      source: dotted name of a function that gives documents instead, each a text or bytes, one after
        the other; their places are their names.
      arguments: that it is called with.

    Returns:
      `Documents`.

    Raises:
      ValueError: if nothing is found, or a part would be empty.
    """
    if files and tfds:
        raise ValueError(
            f"data.files={files!r} and data.tfds={tfds!r} are both given; set one of them to ''"
        )
    if source:
        return _split(
            given_documents(source, arguments), validation_fraction, f"data.source={source!r}"
        )
    if tfds:
        return _tfds_documents(tfds, validation_fraction)
    return _split(read_documents([files]), validation_fraction, f"data.files={files!r}")


def read_documents(patterns: Sequence[str], field: str = "text") -> Iterator[tuple[str, bytes]]:
    """Reads documents one after the other, in the order of the patterns and of the files' names.

    Args:
      patterns: of files; see `named_paths`, and for the kinds of files `read_file`.
      field: of JSON objects and Parquet rows that holds the text.

    Yields:
      Name, which does not depend on where the files lie, and text.

    Raises:
      ValueError: if a pattern matches no file, or a file cannot be read.
    """
    for pattern in patterns:
        for name, path in named_paths(pattern):
            for place, text in read_file(path, field):
                yield name + place, text


def named_paths(files: str = "") -> list[tuple[str, str]]:
    """Files by a name that does not depend on where the corpus lies.

    Args:
      files: a pattern or a folder for all files in it, of this machine or an address in a bucket; or
        empty for the sources of the standard library.

    Raises:
      ValueError: if nothing matches.
    """
    if is_address(files):
        matching = matching_files(files)
        if not matching:
            raise ValueError(
                f"data.files={files!r} matches no file in the bucket; give an address or a quoted "
                f"pattern such as 'gs://BUCKET/corpus/**/*.txt'"
            )
        return matching
    if files:
        found = [files] if os.path.isfile(files) else glob.glob(files, recursive=True)
        if os.path.isdir(files):
            files = os.path.join(glob.escape(files), "")
            found = glob.glob(os.path.join(files, "**"), recursive=True)
        paths = sorted(path for path in found if os.path.isfile(path))
        if not paths:
            raise ValueError(
                f"data.files={files!r} matches no file from {os.getcwd()}; give a path or a quoted "
                f"pattern such as 'corpus/**/*.txt'"
            )
        # Named from where the wildcards begin, so that a corpus splits alike wherever it lies.
        root = os.path.dirname(re.split(r"[*?\[]", files)[0])
        return [(os.path.relpath(path, root or "."), path) for path in paths]
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(
        path
        for path in library.rglob("*.py")
        if not _SKIPPED.intersection(path.relative_to(library).parts)
    )
    return [(str(path.relative_to(library)), str(path)) for path in sources]


def given_documents(source: str, arguments: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """What a function of one's own gives, one after the other, by place.

    Args:
      source: its dotted name.
      arguments: that it is called with.

    Raises:
      ValueError: if it cannot be called, or gives what is no document.
    """
    function = find(source)
    with calling(source):
        given = iter(function(**arguments))
    for number in itertools.count():
        with calling(source):
            text = next(given, _END)
        if text is _END:
            return
        if not isinstance(text, bytes | str):
            raise ValueError(
                f"data.source={source!r} gives {type(text).__name__} as document {number}; each must "
                f"be a text or bytes"
            )
        yield str(number), text.encode() if isinstance(text, str) else text


def _tfds_documents(name: str, validation_fraction: float) -> Documents:
    # TFDS takes seconds to import and is needed here alone. A data source reads ArrayRecord files
    # without TensorFlow.
    import tensorflow_datasets as tfds

    try:
        source = tfds.data_source(name)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"data.tfds={name!r} is no data set that TFDS knows, nor lies prepared in one of its "
            f"folders; correct the name, or set TFDS_DATA_DIR to the folder in which it lies"
        ) from error
    if "train" not in source:
        raise ValueError(f"TFDS data set {name!r} has no split 'train'; it has {sorted(source)}")
    train = [_text(name, example) for example in source["train"]]
    if "validation" in source:
        return Documents(train, [_text(name, example) for example in source["validation"]])
    named = ((str(index), text) for index, text in enumerate(train))
    return _split(named, validation_fraction, f"TFDS data set {name!r}")


def _text(name: str, example: dict[str, Any]) -> bytes:
    """The feature `text`, or the only one that is a string."""
    texts = {key: value for key, value in example.items() if isinstance(value, bytes | str)}
    if "text" not in texts and len(texts) != 1:
        raise ValueError(
            f"TFDS data set {name!r} has no feature 'text' and not exactly one other string feature; "
            f"its string features are {sorted(texts)}"
        )
    text = texts["text"] if "text" in texts else next(iter(texts.values()))
    return text.encode() if isinstance(text, str) else text


def is_held_out(name: str, fraction: float) -> bool:
    """Whether a document of this name belongs to the validation part; such are a given share."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_documents(
    named: Iterable[tuple[str, bytes]], validation_fraction: float
) -> Iterator[tuple[str, bytes]]:
    """Says of each document to which part it belongs; empty ones are left out.

    Where there is one document alone, its end is held out.

    Args:
      named: names and texts.
      validation_fraction: share held out.

    Yields:
      `train` or `validation`, and the text.

    Raises:
      ValueError: if the share does not lie between 0 and 1.

    Example:
      >>> list(split_documents([("a", b"one\\ntwo\\n")], 0.5))
      [('train', b'one\\n'), ('validation', b'two\\n')]
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must lie between 0 and 1, got {validation_fraction}")
    part = lambda name: "validation" if is_held_out(name, validation_fraction) else "train"
    full = ((name, text) for name, text in named if text)
    first, second = next(full, None), next(full, None)
    if first is not None and second is None:
        cut = _cut(first[1], validation_fraction)
        pieces = (("train", first[1][:cut]), ("validation", first[1][cut:]))
        yield from (piece for piece in pieces if piece[1])
        return
    for name, text in itertools.chain([item for item in (first, second) if item], full):
        yield part(name), text


def _cut(text: bytes, fraction: float) -> int:
    """Where the last part of a text begins: with a line, or else with a character."""
    cut = min(int(len(text) * (1 - fraction)), len(text) - 1)
    line = text.rfind(b"\n", 0, cut) + 1
    if line > cut // 2:
        return line
    while cut and text[cut] & 0b1100_0000 == 0b1000_0000:
        cut -= 1
    return cut


def _split(named: Iterable[tuple[str, bytes]], fraction: float, source: str) -> Documents:
    parts: dict[str, list[bytes]] = {"train": [], "validation": []}
    for part, text in split_documents(named, fraction):
        parts[part].append(text)
    train, validation = parts.values()
    if len(train) > 1 and not validation:
        validation.append(train.pop())
    if not train or not validation:
        raise ValueError(
            f"{source} gives {len(train)} training and {len(validation)} validation documents that "
            f"are not empty; at least one of each is needed: add text, or change "
            f"data.validation_fraction={fraction}"
        )
    return Documents(train, validation)
