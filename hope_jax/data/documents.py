"""Documents in files of every kind that is read: text, JSON lines, JSON, Parquet, also compressed.

What a file is, its first bytes say where they can, and its name otherwise: `.jsonl` and `.ndjson` hold
a document a line, `.json` a list, lines, or one object, `.parquet` a document a row, and any other file
is one document. All but Parquet may be compressed: `.gz`, `.zst`.
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hope_jax.data.bucket import at_hand

_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_COMPRESSED = {".gz": ("gzip", _GZIP), ".zst": ("zstd", _ZSTD)}
_POINTER = b"version https://git-lfs"
_BLOCK = 1 << 20
_LINES = (".jsonl", ".ndjson")


def read_file(path: str | Path, field: str = "text") -> Iterator[tuple[str, bytes]]:
    """Reads the documents of a file one after the other.

    Args:
      path: of the file, or its address in a bucket: it is then fetched, and gone afterwards.
      field: of JSON objects and Parquet rows that holds the text.

    Yields:
      Place in the file, such as `:3` for its fourth document, empty where the file is one document,
      and text, UTF-8 without a byte order mark.

    Raises:
      ValueError: with the file, and the line where there are lines, if it is damaged, holds no text in
        the field, or is no text at all.
    """
    try:
        with at_hand(path) as here, here.open("rb") as file:
            yield from _documents(str(path), file, field)
    except (OSError, EOFError, zlib.error) as error:  # gzip reports damage as OSError too
        said = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read: {said}") from error


def _documents(path: str, file: IO[bytes], field: str) -> Iterator[tuple[str, bytes]]:
    head = file.read(len(_POINTER))
    file.seek(0)
    if head == _POINTER:
        raise ValueError(f"{path} is a pointer of git-lfs, not the file itself; run git lfs pull")
    suffix = Path(path).suffix.lower()
    if head.startswith(_PARQUET) or suffix == ".parquet":
        yield from _numbered(_rows(path, file, field))
        return
    opened: Any = file
    if suffix in _COMPRESSED:
        method, magic = _COMPRESSED[suffix]
        if head and not head.startswith(magic):
            raise ValueError(f"{path} is not compressed with {method}, as its name says")
        suffix = Path(Path(path).stem).suffix.lower()
    if head.startswith(_GZIP):
        opened = gzip.GzipFile(fileobj=file)
    elif head.startswith(_ZSTD):
        opened = io.BufferedReader(_ZstdReader(path, file), _BLOCK)
    if suffix in _LINES:
        yield from _numbered(_lines(path, opened, field))
    elif suffix == ".json":
        yield from _numbered(_json(path, opened, field))
    else:
        content = opened.read().removeprefix(codecs.BOM_UTF8)
        _check_text(path, content)
        yield "", content


def _numbered(texts: Iterator[bytes]) -> Iterator[tuple[str, bytes]]:
    return ((f":{place}", text) for place, text in enumerate(texts))


def _check_text(path: str, content: bytes) -> None:
    if 0 in content:
        raise ValueError(
            f"{path} is no text: byte {content.index(0):,} is 0; leave such files out of the pattern"
        )
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no UTF-8 text: byte {error.start:,} is 0x{content[error.start]:02x}; convert "
            f"it, or leave it out of the pattern"
        ) from error


def _lines(path: str, file: IO[bytes], field: str) -> Iterator[bytes]:
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            where = f"{path}, line {number}"
            yield _text(where, _parsed(where, line), field)


def _json(path: str, file: IO[bytes], field: str) -> Iterator[bytes]:
    first = b"\n"
    while first and not first.removeprefix(codecs.BOM_UTF8).strip():
        first = file.readline()
    first = first.removeprefix(codecs.BOM_UTF8)
    try:
        lines = isinstance(json.loads(first), dict)  # one whole object on the first line
    except (ValueError, RecursionError):
        lines = False
    if lines:
        file.seek(0)
        yield from _lines(path, file, field)
        return
    if not first:
        return
    whole = _parsed(path, first + file.read())
    if isinstance(whole, list):
        for number, value in enumerate(whole, 1):
            where = f"{path}, item {number}"
            yield _text(where, {field: value} if isinstance(value, str) else value, field)
    else:
        yield _text(path, whole, field)


def _parsed(where: str, content: bytes) -> Any:
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: this is no UTF-8 text ({error.reason})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: this is no JSON, or cut off ({error})") from error


def _text(where: str, value: Any, field: str) -> bytes:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: there is no object with a field {field!r}")
    if not isinstance(value.get(field), str):
        found = f"it is {type(value[field]).__name__}" if field in value else f"only {list(value)}"
        raise ValueError(f"{where}: there is no text in a field {field!r} ({found[:80]})")
    return _encoded(where, value[field])


def _encoded(where: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: character {error.start:,} is half of a surrogate pair, which is no text"
        ) from error


def _rows(path: str, file: IO[bytes], field: str) -> Iterator[bytes]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{path}: to read .parquet files, pip install pyarrow") from error
    try:
        with parquet.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            if field not in schema.names:
                raise ValueError(f"{path}: there is no column {field!r}; it has {schema.names}")
            number = 0
            for batch in opened.iter_batches(columns=[field], batch_size=1024):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if not isinstance(text, str):
                        kind = "null" if text is None else schema.field(field).type
                        raise ValueError(
                            f"{path}, row {number}: column {field!r} holds {kind}, not text"
                        )
                    yield _encoded(f"{path}, row {number}", text)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no Parquet file, or a damaged one ({error})") from error


class _ZstdReader(io.RawIOBase):
    """A file of zstd frames, unpacked; unlike the library's reader it sees that one is cut off."""

    def __init__(self, path: str, file: IO[bytes]):
        try:
            import zstandard
        except ImportError as error:
            raise ValueError(f"{path}: to read .zst files, pip install zstandard") from error
        self._path, self._file, self._library = path, file, zstandard
        self._frame: Any = None
        self._packed = self._ready = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """To its beginning."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Goes back to the beginning."""
        if offset or whence:
            raise io.UnsupportedOperation("only the beginning can be sought")
        self._file.seek(0)
        self._frame, self._packed, self._ready = None, b"", b""
        return 0

    def readinto(self, buffer: Any) -> int:
        """Unpacks as much as is wanted."""
        while not self._ready:
            self._packed = self._packed or self._file.read(_BLOCK)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it is cut off")
                return 0
            self._frame = self._frame or self._library.ZstdDecompressor(
                max_window_size=1 << 31
            ).decompressobj(write_size=_BLOCK)
            try:
                self._ready = self._frame.decompress(self._packed)
            except self._library.ZstdError as error:
                raise EOFError(f"it is no zstd file, or a damaged one ({error})") from error
            self._packed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
