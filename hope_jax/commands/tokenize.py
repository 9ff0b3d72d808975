r"""Makes text into files of tokens, from which corpora of any size are trained on.

    hope tokenize --files='corpus/**/*.jsonl' --tokenizer=tokenizer.model --output=DIR
    hope train --config=X.py --config.data.tokens=DIR \
        --config.data.tokenizer=tokenizer.model --workdir=runs/a

Of `.jsonl` files (also `.jsonl.gz`) every line is a document, its field `text`; of `.parquet` files every
row (that needs `pip install pyarrow`); any other file is one document. A share of the documents, chosen
by a hash of file and place, is held out for validation.
"""

import functools
import gzip
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from hope_jax.commands.paths import check_output_folder
from hope_jax.data.corpus import is_held_out, named_paths
from hope_jax.data.token_stream import write_tokens
from hope_jax.data.tokenizers import load_tokenizer


def read_documents(patterns: Sequence[str], field: str = "text") -> Iterator[tuple[str, bytes]]:
    """Reads documents one after the other, in the order of the patterns and of the files' names.

    Args:
      patterns: of files.
      field: of `.jsonl` lines and `.parquet` rows that holds the text.

    Yields:
      Name, which does not depend on where the files lie, and text.

    Raises:
      ValueError: if a pattern matches no file, or a line or row has no such field.
    """
    for pattern in patterns:
        for name, path in named_paths(pattern):
            if path.endswith((".jsonl", ".jsonl.gz")):
                texts = _lines(path, field)
            elif path.endswith(".parquet"):
                texts = _rows(path, field)
            else:
                yield name, Path(path).read_bytes()
                continue
            for place, text in enumerate(texts):
                yield f"{name}:{place}", text.encode()


def _lines(path: str, field: str) -> Iterator[str]:
    opened: Any = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            value = json.loads(line)
            if not isinstance(value, dict) or not isinstance(value.get(field), str):
                raise ValueError(f"{path}, line {number}: there is no text in a field {field!r}")
            yield value[field]


def _rows(path: str, field: str) -> Iterator[str]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{path}: to read .parquet files, pip install pyarrow") from error
    file = parquet.ParquetFile(path)
    if field not in file.schema_arrow.names:
        raise ValueError(f"{path}: there is no column {field!r}; it has {file.schema_arrow.names}")
    for batch in file.iter_batches(columns=[field]):
        yield from batch.column(0).to_pylist()


@functools.cache
def _tokenizer(name: str) -> Any:
    return load_tokenizer(name)


def _encoded(
    tokenizer: str, validation_fraction: float, document: tuple[str, bytes]
) -> tuple[str, int, np.ndarray]:
    name, text = document
    part = "validation" if is_held_out(name, validation_fraction) else "train"
    return part, len(text), _tokenizer(tokenizer).encode(text)


def tokenize(
    files: Sequence[str],
    tokenizer: str,
    output: str,
    validation_fraction: float = 0.001,
    processes: int = 1,
    field: str = "text",
) -> dict[str, dict[str, int]]:
    """Writes the tokens of a corpus to a folder.

    Args:
      files: patterns.
      tokenizer: `bytes`, or the file of a tokenizer.
      output: folder.
      validation_fraction: share of documents held out.
      processes: how many encode.
      field: that holds the text.

    Returns:
      Tokens, documents and bytes of each part.

    Raises:
      ValueError: if files, tokenizer or folder do not fit.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"the share held out must lie between 0 and 1, got {validation_fraction}")
    vocab_size = _tokenizer(tokenizer).vocab_size
    encode = functools.partial(_encoded, tokenizer, validation_fraction)
    documents = read_documents(files, field)
    if processes == 1:
        return write_tokens(output, map(encode, documents), tokenizer, vocab_size)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        encoded = pool.imap(encode, documents, chunksize=64)
        return write_tokens(output, encoded, tokenizer, vocab_size)


UNEXPECTED = "quote patterns: --files='a/**/*.txt'"


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_multi_string("files", None, "Pattern of files; can be given again.", required=True)
    flags.DEFINE_string("tokenizer", "bytes", "`bytes`, or the file of a tokenizer.")
    flags.DEFINE_string("output", None, "Folder to write to.", required=True)
    flags.DEFINE_float("validation_fraction", 0.001, "Share of documents held out.")
    flags.DEFINE_integer("processes", 1, "Processes that encode.", lower_bound=1)
    flags.DEFINE_string("field", "text", "Field of lines and rows that holds the text.")


def run() -> None:
    """Runs the command."""
    given = flags.FLAGS
    check_output_folder("output", given.output)
    counts = tokenize(
        given.files,
        given.tokenizer,
        given.output,
        given.validation_fraction,
        given.processes,
        given.field,
    )
    for part, count in counts.items():
        print(
            f"{part}: {count['tokens']:,} tokens of {count['documents']:,} documents, "
            f"{count['bytes'] / count['tokens']:.2f} bytes a token"
        )
