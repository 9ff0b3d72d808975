"""Makes text into files of tokens, from which corpora of any size are trained on.

    hope tokenize --files='corpus/**/*.jsonl' --tokenizer=tokenizer.model --output=DIR
    hope train --config=X.py --config.data.tokens=DIR \
        --config.data.tokenizer=tokenizer.model --workdir=runs/a

Of `.jsonl` and `.json` files every line or item is a document, its field `text`; of `.parquet` files
every row; any other file is one document. All but `.parquet` may be compressed, `.gz` or `.zst`. A share
of the documents, chosen by a hash of file and place, is held out for validation; of a single one, its
end. The folder appears when it is whole.
"""

import multiprocessing
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from hope_jax.counts import count
from hope_jax.data.corpus import read_documents, split_documents
from hope_jax.data.token_stream import encode_document, write_tokens
from hope_jax.data.tokenizers import Tokenizer, load_tokenizer

_tokenizer: Any = None  # of a process that encodes


def _use(tokenizer: Tokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer


def _encoded(document: tuple[str, bytes]) -> tuple[str, int, np.ndarray]:
    part, text = document
    return part, len(text), encode_document(text, _tokenizer)


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
    # Loaded once and handed over, so that all processes encode with what is noted.
    loaded = load_tokenizer(tokenizer)
    documents = split_documents(read_documents(files, field), validation_fraction)
    if processes == 1:
        _use(loaded)
        return write_tokens(output, map(_encoded, documents), loaded)
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _use, (loaded,)) as pool:
        return write_tokens(output, pool.imap(_encoded, documents, chunksize=64), loaded)


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
    counts = tokenize(
        given.files,
        given.tokenizer,
        given.output,
        given.validation_fraction,
        given.processes,
        given.field,
    )
    for part, told in counts.items():
        print(
            f"{part}: {count(told['tokens'], 'token')} of {count(told['documents'], 'document')}, "
            f"{told['bytes'] / told['tokens']:.2f} bytes a token"
        )
    print(
        f"train on them with --config.data.tokens={given.output} "
        f"--config.data.tokenizer={given.tokenizer}"
    )
