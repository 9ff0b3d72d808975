"""The corpus of a run, as its config names it."""

import json
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from hope_jax.data.corpus import Documents, load_documents
from hope_jax.data.first_fit import FittedRows
from hope_jax.data.joined import join_streams
from hope_jax.data.pipeline import PackedWindows, RowSource
from hope_jax.data.token_stream import PARTS, TokenStream, encode_documents, read_tokens
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.runs.agreement import all_see
from hope_jax.runs.corpus_record import Record, describe_corpus
from hope_jax.training.config import read_mixture

_PACKINGS: dict[str, Callable[[TokenStream, int], RowSource]] = {
    "stream": PackedWindows,
    "first_fit": FittedRows,
}


class Corpus(NamedTuple):
    """What a run learns from, and what it is measured on.

    Attributes:
      documents: texts, where they are in memory.
      train: tokens to learn from, those of all sources one after the other.
      validation: tokens to measure on, likewise.
      sources: tokens to learn from, of each.
      weights: in which they are drawn.
    """

    documents: Documents | None
    train: TokenStream
    validation: TokenStream
    sources: Sequence[TokenStream]
    weights: Sequence[float]

    @property
    def parts(self) -> tuple[TokenStream, TokenStream]:
        """All to learn from, and all to measure on."""
        return self.train, self.validation


def open_corpus(data: ConfigDict, tokenizer: Tokenizer) -> Corpus:
    """Loads the documents of a config and encodes them, or opens the tokens that it names.

    Args:
      data: section of a run's config.
      tokenizer: of the run.
    """
    if data.tokens or data.mixture:
        shares = read_mixture(data.mixture) if data.mixture else {data.tokens: 1.0}
        sources, measured = (
            [read_tokens(folder, part, tokenizer) for folder in shares] for part in PARTS
        )
        joined = join_streams(sources), join_streams(measured)
        return Corpus(None, *joined, sources, [*shares.values()])
    documents = load_documents(
        data.files, data.tfds, data.validation_fraction, data.source, data.arguments.to_dict()
    )
    train, validation = (encode_documents(part, tokenizer) for part in documents)
    return Corpus(documents, train, validation, [train], [1.0])


def make_rows(stream: TokenStream, data: ConfigDict) -> RowSource:
    """Rows of a stream, cut as a config says.

    Args:
      stream: of documents.
      data: section of a run's config.
    """
    return _PACKINGS[data.packing](stream, data.sequence_length)


def corpus_record(corpus: Corpus) -> Record:
    """What is noted of a corpus; all processes must see the same.

    Raises:
      ValueError: if they do not.
    """
    record = describe_corpus(dict(zip(PARTS, corpus.parts, strict=True)))
    if not all_see(zlib.crc32(json.dumps(record).encode())):
        raise ValueError(
            f"processes see different corpora, process {jax.process_index()} this: {record}; give every "
            f"host the same files"
        )
    return record
