"""Documents to train on: files, a TFDS data set, or the running Python's own standard library."""

import glob
import hashlib
import os
import pathlib
import re
import sysconfig
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


class Documents(NamedTuple):
    """Documents as bytes, split by document.

    Attributes:
      train: documents to learn from.
      validation: documents to evaluate on.
    """

    train: Sequence[bytes]
    validation: Sequence[bytes]


def load_documents(files: str = "", tfds: str = "", validation_fraction: float = 0.1) -> Documents:
    """Loads a corpus and splits it, document by document.

    The split is by a hash of a file's name, so that a new file moves no other between the parts.

    Args:
      files: a pattern such as `corpus/**/*.txt`; empty for the sources of the standard library of
        the Python that runs this, which every machine has.
      tfds: name of a TFDS data set of texts instead, prepared as ArrayRecord. Its `train` split is
        read, and its `validation` split if it has one; no other. The folder is TFDS's own, or that in
        the environment's `TFDS_DATA_DIR`.
      validation_fraction: share of documents held out.

    Returns:
      `Documents`.

    Raises:
      ValueError: if nothing is found, or a part would be empty.
    """
    if files and tfds:
        raise ValueError(
            f"data.files={files!r} and data.tfds={tfds!r} are both given; set one of them to ''"
        )
    if not 0 < validation_fraction < 1:
        raise ValueError(
            f"data.validation_fraction must lie between 0 and 1, got {validation_fraction}"
        )
    if tfds:
        return _tfds_documents(tfds, validation_fraction)
    named = [(name, pathlib.Path(path).read_bytes()) for name, path in named_paths(files)]
    return _split(iter(named), validation_fraction, f"data.files={files!r}")


def named_paths(files: str = "") -> list[tuple[str, str]]:
    """Files by a name that does not depend on where the corpus lies.

    Args:
      files: a pattern, or empty for the sources of the standard library.

    Raises:
      ValueError: if nothing matches.
    """
    if files:
        paths = sorted(path for path in glob.glob(files, recursive=True) if os.path.isfile(path))
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


def _split(
    named: Iterator[tuple[str, bytes]], validation_fraction: float, source: str
) -> Documents:
    train: list[bytes] = []
    validation: list[bytes] = []
    for name, document in named:
        if not document:
            continue
        (validation if is_held_out(name, validation_fraction) else train).append(document)
    if not train or not validation:
        raise ValueError(
            f"{source} gives {len(train)} training and {len(validation)} validation documents that "
            f"are not empty; at least one of each is needed: add files, or change "
            f"data.validation_fraction={validation_fraction}"
        )
    return Documents(train, validation)
