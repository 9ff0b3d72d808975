"""The corpus of a run, as its config names it."""

import json
import zlib
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from hope_jax.data.corpus import Documents, load_documents
from hope_jax.data.token_stream import PARTS, TokenStream, encode_documents, read_tokens
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.runs.agreement import all_see
from hope_jax.runs.corpus_record import Record, describe_corpus


class Corpus(NamedTuple):
    """What a run learns from, and what it is measured on.

    Attributes:
      documents: texts, where they are in memory.
      train: tokens to learn from.
      validation: tokens to measure on.
    """

    documents: Documents | None
    train: TokenStream
    validation: TokenStream


def open_corpus(data: ConfigDict, tokenizer: Tokenizer) -> Corpus:
    """Loads the documents of a config and encodes them, or opens the tokens that it names.

    Args:
      data: section of a run's config.
      tokenizer: of the run.
    """
    if data.tokens:
        return Corpus(None, *(read_tokens(data.tokens, part, tokenizer) for part in PARTS))
    documents = load_documents(
        data.files, data.tfds, data.validation_fraction, data.source, data.arguments.to_dict()
    )
    return Corpus(documents, *(encode_documents(part, tokenizer) for part in documents))


def corpus_record(corpus: Corpus) -> Record:
    """What is noted of a corpus; all processes must see the same.

    Raises:
      ValueError: if they do not.
    """
    record = describe_corpus(dict(zip(PARTS, corpus[1:], strict=True)))
    if not all_see(zlib.crc32(json.dumps(record).encode())):
        raise ValueError(
            f"processes see different corpora, process {jax.process_index()} this: {record}; give every "
            f"host the same files"
        )
    return record
