"""A corpus that changed between a stop and the resume."""

import numpy as np
import pytest

from hope_jax.data.token_stream import PARTS, encode_documents
from hope_jax.data.tokenizers import ByteTokenizer
from hope_jax.runs import corpus_record
from hope_jax.runs.corpus_record import check_corpus, describe_corpus, keep_corpus

TEXTS = [b"ten green bottles", b"hanging", b"on the wall"]


def record(*texts):
    stream = encode_documents(texts, ByteTokenizer())
    return describe_corpus(dict.fromkeys(PARTS, stream))


def test_one_byte_one_document_or_one_boundary_more_is_another_corpus(tmp_path):
    keep_corpus(tmp_path, record(*TEXTS))
    check_corpus(tmp_path, record(*TEXTS), "data.files='x'")
    others = [
        [*TEXTS, b"!"],
        [TEXTS[1], TEXTS[0], TEXTS[2]],
        [TEXTS[0] + b"h", TEXTS[1][1:], TEXTS[2]],
        [b"tan green bottles", *TEXTS[1:]],
    ]
    for texts in others:
        with pytest.raises(ValueError, match=r"data.files='x' is not the corpus .* 35 tokens of 3"):
            check_corpus(tmp_path, record(*texts), "data.files='x'")


def test_a_run_without_a_record_may_have_any(tmp_path):
    check_corpus(tmp_path, record(*TEXTS), "data.files='x'")


def test_mapped_files_of_another_dtype_are_the_same_corpus_and_large_ones_are_sampled(monkeypatch):
    monkeypatch.setattr(corpus_record, "_WHOLE", 64)
    monkeypatch.setattr(corpus_record, "_BLOCK", 8)
    tokens = np.arange(1000) % 256
    digest = corpus_record._digest(tokens.astype(np.int32))
    assert corpus_record._digest(tokens.astype("<u2")) == digest
    for changed in (np.append(tokens, 0), np.roll(tokens, 1), tokens[:-1]):
        assert corpus_record._digest(changed) != digest
