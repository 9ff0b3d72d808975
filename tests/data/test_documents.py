"""Files of every kind, whole and broken."""

import gzip
import json

import pytest

from hope_jax.data.corpus import load_documents, read_documents
from hope_jax.data.documents import read_file

TEXTS = ["one ü", "", "three\nlines\n"]
ROWS = [{"text": text, "id": 7} for text in TEXTS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
BOM = b"\xef\xbb\xbf"


def zstd(content):
    return pytest.importorskip("zstandard").ZstdCompressor().compress(content)


def plain(content):
    return content


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("", plain), (".gz", gzip.compress), (".zst", zstd)],
    ids=("plain", "gzip", "zstandard"),
)
def test_every_kind_of_file_gives_its_texts(suffix, pack, tmp_path):
    many = {
        "a.jsonl": LINES,
        "blank.ndjson": BOM + LINES.replace(b"\n", b"\r\n \n"),
        "lines.json": b"\n" + LINES,
        "list.json": json.dumps(ROWS, indent=1).encode(),
        "strings.json": json.dumps(TEXTS).encode(),
    }
    for name, content in many.items():
        (tmp_path / (name + suffix)).write_bytes(pack(content))
        found = list(read_file(tmp_path / (name + suffix)))
        assert [text.decode() for _, text in found] == TEXTS, name
        assert [place for place, _ in found] == [":0", ":1", ":2"]
    one = {"object.json": json.dumps(ROWS[0], indent=1).encode(), "a.txt": BOM + b"one \xc3\xbc"}
    for name, content in one.items():
        (tmp_path / (name + suffix)).write_bytes(pack(content))
        assert [text for _, text in read_file(tmp_path / (name + suffix))] == [b"one \xc3\xbc"]


def test_first_bytes_count_for_more_than_a_name(tmp_path):
    (tmp_path / "a.txt").write_bytes(gzip.compress(b"text"))
    (tmp_path / "b.jsonl").write_bytes(zstd(LINES[:9]) + zstd(LINES[9:]))  # in two frames
    assert list(read_file(tmp_path / "a.txt")) == [("", b"text")]
    assert len(list(read_file(tmp_path / "b.jsonl"))) == 3


BROKEN = {
    "cut.jsonl": (LINES + b'{"text": "a', "line 4: this is no JSON, or cut off"),
    "list.jsonl": (b"[1]\n", "line 1: there is no object with a field 'text'"),
    "null.jsonl": (b'{"text": null}\n', "line 1: there is no text in a field 'text'"),
    "field.jsonl": (b'\n{"body": "b"}\n', r"line 2: .* 'text' \(only \['body'\]\)"),
    "half.jsonl": (b'{"text": "a\\ud800"}', "line 1: character 1 is half of a surrogate pair"),
    "latin.jsonl": (b'{"text": "\xe9"}', "line 1: this is no UTF-8"),
    "item.json": (b'[{"text": "a"},\n 3]', "item 2: there is no object"),
    "cut.json": (b'{"text":\n', "this is no JSON, or cut off"),
    "utf16.txt": ("\ufeffhi".encode("utf-16-le"), "is no text: byte 3 is 0"),
    "latin.txt": (b"caf\xe9", "is no UTF-8 text: byte 3 is 0xe9"),
    "picture.png": (b"\x89PNG\0", "is no text"),
    "pointer.txt": (b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
    "fake.txt.gz": (b"text", "is not compressed with gzip, as its name says"),
    "fake.zst": (b"text", "is not compressed with zstd, as its name says"),
    "cut.txt.gz": (gzip.compress(b"text" * 99)[:-9], "cannot be read: Compressed file ended"),
    "cut.txt.zst": (lambda: zstd(LINES * 99)[:-3], "cannot be read: it is cut off"),
    "bad.txt.zst": (lambda: zstd(LINES)[:5] + b"\xff" * 20, "no zstd file, or a damaged one"),
    "bad.parquet": (b"PAR1 and no more", "is no Parquet file, or a damaged one"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named_with_its_place(name, tmp_path):
    content, message = BROKEN[name]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content() if callable(content) else content)
    with pytest.raises(ValueError, match=f"{name}.*{message}") as raised:
        list(read_file(path))
    assert "\n" not in str(raised.value)


def test_rows_of_parquet(tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    parquet.write_table(arrow.table({"text": ["one", "two"], "url": ["", ""]}), "x.parquet")
    assert list(read_documents(["x.parquet"])) == [("x.parquet:0", b"one"), ("x.parquet:1", b"two")]
    with pytest.raises(ValueError, match=r"no column 'body'; it has \['text', 'url'\]"):
        list(read_documents(["x.parquet"], "body"))
    for column, message in (([b"a"], "row 1: .* holds binary"), (["a", None], "row 2: .* null")):
        parquet.write_table(arrow.table({"text": column}), "y.parquet")
        with pytest.raises(ValueError, match=f"y.parquet, {message}, not text"):
            list(read_documents(["y.parquet"]))


def test_a_folder_and_training_read_the_same(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jsonl.gz").write_bytes(gzip.compress(LINES * 20))
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / ".hidden").write_bytes(b"\0")
    named = list(read_documents([str(tmp_path)]))
    assert named[0] == ("b.txt", b"b")
    assert named[1] == ("deep/a.jsonl.gz:0", TEXTS[0].encode())
    assert [name for name, _ in read_documents([str(tmp_path / "**/*")])] == [n for n, _ in named]
    documents = load_documents(str(tmp_path))
    expected = sorted(text for _, text in named if text)
    assert sorted([*documents.train, *documents.validation]) == expected


def test_little_text_is_split_as_well_as_it_can_be(tmp_path):
    """One document by span, at a line or a character; of a few documents, the last is held out."""
    path = tmp_path / "one.txt"
    lines = "".join(f"line {i}\n" for i in range(100)).encode()
    for text in (lines, "ü".encode() * 55, b"ab"):
        path.write_bytes(text)
        train, validation = load_documents(str(path))
        assert train[0] + validation[0] == text
        train[0].decode(), validation[0].decode()
        assert len(validation[0]) == pytest.approx(max(len(text) / 10, 1), abs=9)
    path.write_bytes(lines)
    assert load_documents(str(path))[1][0].startswith(b"line ")
    for name in ("other", "third"):
        (tmp_path / f"{name}.txt").write_text(name)
    documents = load_documents(str(tmp_path), validation_fraction=1e-9)
    assert (documents.train, documents.validation) == ([lines, b"other"], [b"third"])
