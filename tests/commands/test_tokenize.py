"""Text made into token files, and trained on from there."""

import gzip
import json
import os

import numpy as np
import pytest

from hope_jax.commands.tokenize import tokenize
from hope_jax.data import token_writer
from hope_jax.data.corpus import read_documents
from hope_jax.data.pipeline import PackedWindows
from hope_jax.data.token_stream import (
    PARTS,
    TokenFile,
    encode_documents,
    read_tokens,
)
from hope_jax.data.tokenizers import ByteTokenizer
from hope_jax.training.loop import train
from tests.data.tokens import write_tokens
from tests.training.runs import tiny_config


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Forty documents in four kinds of files."""
    monkeypatch.chdir(tmp_path)
    texts = [f"text number {i} ü\n" * (1 + i % 3) for i in range(40)]
    lines = "".join(json.dumps({"text": text, "id": 7}) + "\n" for text in texts[:20])
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts[20:30])
    for i in range(30, 40):
        (tmp_path / f"{i}.txt").write_text(texts[i])
    return [text.encode() for text in texts]


BYTES = ByteTokenizer()
PATTERNS = ["*.jsonl", "*.jsonl.gz", "*.txt"]


def test_every_kind_of_file_is_read_whole_and_in_order(corpus):
    named = list(read_documents(PATTERNS))
    assert [text for _, text in named] == corpus
    assert len({name for name, _ in named}) == 40
    assert named[3][0] == "a.jsonl:3"


def test_rows_of_parquet(tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    parquet.write_table(arrow.table({"text": ["one", "two"], "url": ["", ""]}), "x.parquet")
    assert list(read_documents(["x.parquet"])) == [("x.parquet:0", b"one"), ("x.parquet:1", b"two")]
    with pytest.raises(ValueError, match=r"no column 'body'; it has \['text', 'url'\]"):
        list(read_documents(["x.parquet"], "body"))


def test_files_hold_what_memory_would(corpus):
    counts = tokenize(PATTERNS, "bytes", "out", validation_fraction=0.2)
    assert sum(count["documents"] for count in counts.values()) == 40
    streams = [read_tokens("out", part, BYTES) for part in PARTS]
    assert all(isinstance(stream.tokens, TokenFile) for stream in streams)
    assert streams[0].tokens.dtype == np.uint16
    held = []
    for stream in streams:
        ends = [*stream.starts[1:], len(stream.tokens)]
        cut = [bytes(stream.tokens[i:j].tolist()) for i, j in zip(stream.starts, ends, strict=True)]
        held += cut
        same = encode_documents(cut, ByteTokenizer())
        assert same.num_bytes == stream.num_bytes
        mapped, here = (PackedWindows(part, 16) for part in (stream, same))
        assert len(mapped) == len(here) > 3
        for i in range(len(here)):
            for name, row in here[i].items():
                np.testing.assert_array_equal(mapped[i][name], row, strict=True)
    assert sorted(held) == sorted(corpus)
    several = tokenize(PATTERNS, "bytes", "two", validation_fraction=0.2, processes=2)
    assert several == counts
    for part in PARTS:
        a, b = (read_tokens(folder, part, BYTES) for folder in ("two", "out"))
        np.testing.assert_array_equal(a.tokens[:], b.tokens[:])
        np.testing.assert_array_equal(a.starts, b.starts)


def test_large_vocabularies_take_four_bytes(tmp_path):
    documents = [("train", 1, np.array([70_000], np.int32)), ("validation", 1, np.array([1]))]
    large = ByteTokenizer()
    large.vocab_size = 100_000
    write_tokens(tmp_path / "out", documents, large)
    assert read_tokens(tmp_path / "out", "train", large).tokens[:].tolist() == [70_000]


def test_training_from_files_is_training_from_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # More ids than the tokenizer has, none of which the closing sample may draw.
    padded = {"steps": 2, "model.vocab_size": 384, "evaluate.sample_tokens": 20}
    from_text = tiny_config(tmp_path, **padded)
    from_text.evaluate.ngram_orders = ()
    expected = train(from_text, str(tmp_path / "a"))
    tokenize(["text/*.txt"], "bytes", "tokens", validation_fraction=0.2)
    # Its n-gram models have no text there, and are left out.
    from_files = tiny_config(tmp_path, **padded)
    from_files.data.files, from_files.data.tokens = "", "tokens"
    assert train(from_files, str(tmp_path / "b")) == expected
    mixed = from_files.copy_and_resolve_references()
    mixed.data.update(tokens="", mixture=("tokens=2",))
    assert train(mixed, str(tmp_path / "m")) == expected
    tokenize(["text/*.txt"], "bytes", "more=tokens", validation_fraction=0.5)
    mixed.data.update(mixture=("tokens=2", "more=tokens=1"), packing="first_fit")
    mixed.data.reset_documents = True
    assert train(mixed, str(tmp_path / "n"))["bits_per_byte"] < 9
    mixed.data.mixture = ("more=tokens=1", "tokens=2")
    with pytest.raises(ValueError, match="data.mixture: .*tokens=2"):
        train(mixed, str(tmp_path / "n"))
    from_files.data.files = "text/*.txt"
    with pytest.raises(ValueError, match="leave out the others"):
        train(from_files, str(tmp_path / "c"))


def test_what_does_not_fit_is_refused(corpus, tmp_path):
    with pytest.raises(ValueError, match="no tokens.json; make it with hope tokenize"):
        read_tokens("nowhere", "train", BYTES)
    with pytest.raises(ValueError, match="matches no file"):
        tokenize(["*.md"], "bytes", "out")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="no document for train and validation"):
        tokenize(["empty.txt"], "bytes", "one")
    assert not list(tmp_path.glob("*one*"))  # nothing is left, whole or not
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    with pytest.raises(ValueError, match="line 2: there is no text in a field 'text'"):
        tokenize(["bad/*.jsonl"], "bytes", "out")
    tokenize(PATTERNS, "bytes", "out2", validation_fraction=0.2)
    with pytest.raises(ValueError, match="holds files already"):
        tokenize(PATTERNS, "bytes", "out2", validation_fraction=0.2)
    other = ByteTokenizer()
    other.digest = "another"
    with pytest.raises(ValueError, match="another tokenizer"):
        read_tokens("out2", "train", other)


def numbered(count):
    """A source of documents, one of which is empty."""
    return (f"text number {i} " * (i % 5) for i in range(count))


class Stopped(BaseException):
    """The end of a process."""


@pytest.mark.parametrize("processes", [1, 2])
def test_what_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch, capsys, processes):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(token_writer, "_EVERY", 300)
    name, given = f"{__name__}.numbered", {"count": 400}
    settings = {"validation_fraction": 0.2, "source": name, "arguments": given}
    whole = tokenize([], "bytes", "whole", **settings)
    real, written = token_writer.TokenWriter.write, []

    def stop(self, *document):
        if len(written) == 250:
            raise Stopped
        written.append(document)
        real(self, *document)

    with monkeypatch.context() as patch:
        patch.setattr(token_writer.TokenWriter, "write", stop)
        with pytest.raises(Stopped):
            tokenize([], "bytes", "cut", **settings)
    assert not os.path.exists("cut")
    with open(".cut.unfinished/train.tokens", "ab") as file:
        file.write(b"half a docu")  # what a kill leaves behind the last note
    kept = (tmp_path / ".cut.unfinished" / "progress.json").read_text()
    for other in ({"validation_fraction": 0.3}, {"arguments": {"count": 401}}):
        with pytest.raises(
            ValueError, match="cut.unfinished holds what was begun with other settings"
        ):
            tokenize([], "bytes", "cut", **{**settings, **other})
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "numbered", lambda count: (str(i) for i in range(count)))
        with pytest.raises(
            ValueError, match="holds tokens of other documents than those that come"
        ):
            tokenize([], "bytes", "cut", **settings)
    assert kept == (tmp_path / ".cut.unfinished" / "progress.json").read_text()
    written.clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            token_writer.TokenWriter,
            "write",
            lambda self, *document: written.append(document) or real(self, *document),
        )
        assert tokenize([], "bytes", "cut", processes=processes, **settings) == whole
    assert 70 < len(written) < 100
    assert f"going on after {320 - len(written)} documents\n" in capsys.readouterr().out
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "cut"}


def test_files_or_a_source(tmp_path):
    for files, source in (([], ""), (["*.txt"], f"{__name__}.numbered")):
        with pytest.raises(ValueError, match="give --files=PATTERN or --source="):
            tokenize(files, "bytes", str(tmp_path / "out"), source=source)
