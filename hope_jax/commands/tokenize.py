"""Makes text into files of tokens, from which corpora of any size are trained on.

    hope tokenize --files='corpus/**/*.jsonl' --tokenizer=tokenizer.model --output=DIR
    hope train --config=X.py --config.data.tokens=DIR \
        --config.data.tokenizer=tokenizer.model --workdir=runs/a

Of `.jsonl` and `.json` files every line or item is a document, its field `text`; of `.parquet` files
every row; any other file is one document. All but `.parquet` may be compressed, `.gz` or `.zst`. A share
of the documents, chosen by a hash of file and place, is held out for validation; of a single one, its
end. The folder appears when it is whole; after a stop or a kill, the same command goes on where it was.
One in a bucket (`--output=gs://...`) is written on this machine first, and then sent.

A function of your own gives documents instead, as data.source does in training, but not all at once:

    hope tokenize --source=my_data.sums --set=count=20000 --output=DIR
"""

import contextlib
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from absl import flags

from hope_jax.commands.config import parse
from hope_jax.counts import count
from hope_jax.data.corpus import given_documents, read_documents, split_documents
from hope_jax.data.token_stream import encode_document
from hope_jax.data.token_writer import open_writer
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
    source: str = "",
    arguments: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, dict[str, int]]:
    """Writes the tokens of a corpus to a folder, or those that an earlier call has not written.

    Args:
      files: patterns.
      tokenizer: `bytes`, or the file of a tokenizer.
      output: folder, or its address in a bucket.
      validation_fraction: share of documents held out.
      processes: how many encode.
      field: that holds the text.
      source: dotted name of a function that gives documents, in place of files.
      arguments: that it is called with.

    Returns:
      Tokens, documents and bytes of each part.

    Raises:
      ValueError: if files, tokenizer or folder do not fit.
    """
    # Loaded once and handed over, so that all processes encode with what is noted.
    loaded = load_tokenizer(tokenizer)
    if bool(files) == bool(source):
        raise ValueError("give --files=PATTERN or --source=FILE.FUNCTION, one of them")
    named = given_documents(source, arguments) if source else read_documents(files, field)
    documents = split_documents(named, validation_fraction)
    settings: dict[str, Any] = {
        "files": list(files),
        "source": source,
        "arguments": dict(arguments),
    }
    settings |= {"field": field, "validation_fraction": validation_fraction}
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(open_writer(output, loaded, settings))
        if writer.done:
            print(f"going on after {count(writer.done, 'document')}")
        left = writer.left(documents)
        if processes == 1:
            _use(loaded)
            encoded: Iterator[Any] = map(_encoded, left)
        else:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(context.Pool(processes, _use, (loaded,)))
            encoded = pool.imap(_encoded, left, chunksize=64)
        for document in encoded:
            writer.write(*document)
        return writer.finish()


UNEXPECTED = "quote patterns: --files='a/**/*.txt'"


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_multi_string("files", [], "Pattern of files; can be given again.")
    flags.DEFINE_string("source", "", "Or a function of your own that gives documents.")
    flags.DEFINE_multi_string("set", [], "An argument of that function, such as count=20000.")
    flags.DEFINE_string("tokenizer", "bytes", "`bytes`, or the file of a tokenizer.")
    flags.DEFINE_string("output", None, "Folder to write to, here or in a bucket.", required=True)
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
        given.source,
        {name: parse(Any, value) for name, _, value in (item.partition("=") for item in given.set)},
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
