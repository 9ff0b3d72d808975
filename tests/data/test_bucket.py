"""Texts in buckets: read as those on a disk, under the same names."""

import gzip
import json
import sys

import pyarrow
import pytest
from pyarrow import parquet

from hope_jax.commands.tokenize import tokenize
from hope_jax.data import bucket as bucket_file
from hope_jax.data.bucket import Bucket, BucketError, at_hand, matching_files
from hope_jax.data.corpus import load_documents, read_documents
from hope_jax.data.token_stream import read_tokens
from hope_jax.data.tokenizers import load_tokenizer
from hope_jax.data.whole_folder import check_writable, whole_folder
from tests.commands.in_process import hope
from tests.runs.buckets import Flaky, flaky  # noqa: F401

TEXT = "flaky://bucket/text"


@pytest.fixture
def corpus(tmp_path, flaky):  # noqa: F811
    """Files of every kind, in a folder and in a bucket."""
    folder = tmp_path / "text"
    (folder / "more").mkdir(parents=True)
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"file {number}")
    lines = "".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(5))
    (folder / "more" / "lines.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(
        pyarrow.table({"text": ["row 0", "row 1"]}), folder / "more" / "rows.parquet"
    )
    for path in folder.rglob("*"):
        if path.is_file():
            Bucket(TEXT).put(path, str(path.relative_to(folder)))
    return folder


@pytest.mark.parametrize("pattern", ["", "/*.txt", "/**/*.gz", "/more/*", "/3.txt", "/[1-3].txt"])
def test_a_bucket_gives_what_a_folder_gives(corpus, pattern):
    here = list(read_documents([f"{corpus}{pattern}"]))
    assert here and list(read_documents([f"{TEXT}{pattern}"])) == here


def test_a_corpus_splits_alike_wherever_it_lies(corpus):
    here = load_documents(f"{corpus}/**/*", validation_fraction=0.3)
    assert load_documents(f"{TEXT}/**/*", validation_fraction=0.3) == here


def test_tokens_are_made_of_texts_in_a_bucket(corpus, tmp_path):
    told = tokenize([f"{TEXT}/*.txt"], "bytes", str(tmp_path / "tokens"), validation_fraction=0.3)
    assert told["train"]["documents"] + told["validation"]["documents"] == 8
    assert len(read_tokens(tmp_path / "tokens", "train", load_tokenizer("bytes"))) > 0


def test_tokens_are_written_to_a_bucket_whole_or_not_at_all(corpus, tmp_path, monkeypatch):
    there, sent = "flaky://bucket/made", []

    def before(operation, path):
        if operation == "put":
            if len(sent) == fails_after:
                raise PermissionError(path)
            sent.append(path.rpartition("/")[2])

    monkeypatch.setattr(Flaky, "before", before)
    monkeypatch.setattr(bucket_file, "_PAUSES", (0.0,))
    write = lambda: tokenize([f"{corpus}/*.txt"], "bytes", there, validation_fraction=0.3)
    fails_after = 3
    with pytest.raises(
        BucketError, match=f"is in {tmp_path}.*made: copy it there, tokens.json last"
    ):
        write()
    assert "tokens.json" not in Bucket(there).files()
    with pytest.raises(ValueError, match="was written for --output=flaky://bucket/made and is not"):
        write()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    sent, fails_after = [], 100
    write()
    assert len(sent) == 5 and sent[-1] == "tokens.json"
    with pytest.raises(ValueError, match="holds files already"):
        write()
    here = tmp_path / "here"
    tokenize([f"{corpus}/*.txt"], "bytes", str(here), validation_fraction=0.3)
    assert {file.name: file.read_bytes() for file in here.iterdir()} == {
        name: Bucket(there).read(name) for name in Bucket(there).files()
    }


def test_files_that_are_not_there_or_damaged_are_named_by_address(corpus):
    with pytest.raises(
        ValueError, match="flaky://bucket/text/\\*.md' matches no file in the bucket"
    ):
        load_documents(f"{TEXT}/*.md")
    Bucket(TEXT).write("bad.jsonl", b'{"text": ')
    with pytest.raises(ValueError, match="^flaky://bucket/text/bad.jsonl, line 1: this is no JSON"):
        list(read_documents([f"{TEXT}/bad.jsonl"]))


def test_a_file_that_comes_cut_is_fetched_again_and_refused_if_it_stays_cut(
    corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(bucket_file, "_PAUSES", (0.0,))
    system = Bucket(TEXT)._system
    real, came = system.get_file, []

    def cut(source, target, **more):
        real(source, target, **more)
        came.append(source)
        if len(came) in cuts:
            with open(target, "r+b") as file:
                file.truncate(2)

    monkeypatch.setattr(system, "get_file", cut)
    cuts = {1}
    with at_hand(f"{TEXT}/1.txt") as path:
        assert path.read_text() == "file 1" and path.name == "1.txt"
    assert not path.exists()
    cuts = {3, 4}
    with (
        pytest.raises(BucketError, match="cannot read .*1.txt \\(2 bytes came, of 6\\)"),
        at_hand(f"{TEXT}/1.txt"),
    ):
        pass
    assert not [*tmp_path.rglob("*.unfinished")]


def test_what_has_no_program_to_reach_it_names_the_extra(monkeypatch):
    for name in ("gcsfs", "s3fs"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BucketError, match="pip install 'hope_jax\\[gcs\\]'"):
        Bucket("gs://bucket/run")
    with pytest.raises(BucketError, match="pip install 'hope_jax\\[s3\\]'"):
        matching_files("s3://bucket/*.txt")
    with pytest.raises(BucketError, match="cannot be reached"):
        Bucket("nowhere://bucket/run")


def test_places_that_must_be_of_this_machine_refuse_an_address(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--output=gs://b/t lies in a bucket"):
        check_writable("gs://b/t", "--output")
    with (
        pytest.raises(ValueError, match="--output=gs://b/t lies in a bucket"),
        whole_folder("gs://b/t", "--output"),
    ):
        pass
    assert hope("compare", "--config=x", "--workdir=gs://b/t") == 2
    assert hope("convert", "--from_llama=x", "--workdir=gs://b/t") == 2
    assert "lies in a bucket" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_tokens_in_a_bucket_are_fetched_once_and_again_when_they_are_others(
    corpus,
    tmp_path,
    flaky,  # noqa: F811
):
    read = lambda: read_tokens("flaky://bucket/tokens", "train", load_tokenizer("bytes")).tokens[:]

    def make(name, files):
        tokenize([f"{corpus}/{files}"], "bytes", str(tmp_path / name), validation_fraction=0.3)
        for path in (tmp_path / name).iterdir():
            Bucket("flaky://bucket/tokens").put(path, path.name)
        return read_tokens(tmp_path / name, "train", load_tokenizer("bytes")).tokens[:]

    assert (read_all := make("all", "*.txt")).tolist() == read().tolist()
    fetched = []
    flaky(lambda operation, path: fetched.append(path) if operation == "get" else None)
    assert read().tolist() == read_all.tolist() and not fetched
    assert make("some", "[0-5].txt").tolist() == read().tolist() != read_all.tolist()
    assert fetched[-1].endswith("tokens.json")
