"""Documents as one stream of token ids: in memory, or in files of any size."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from hope_jax.data.tokenizers import Tokenizer
from hope_jax.data.whole_folder import whole_folder

PARTS = ("train", "validation")
_ABOUT = "tokens.json"
_DTYPES = ("<u2", "<u4")


class TokenStream(NamedTuple):
    """Documents' ids, set one after the other.

    Attributes:
      tokens: ids, shape (total,); an array, or a `TokenFile`.
      starts: places of the documents' first tokens, ascending, shape (documents,).
      num_bytes: of the text.
      vocab_size: one more than the largest id there may be.
      marks: tokens in front of each document that stand for no text and are not foretold.
    """

    tokens: Any
    starts: Int[np.ndarray, " documents"]
    num_bytes: int
    vocab_size: int = 2**31
    marks: int = 0

    @property
    def num_told(self) -> int:
        """Tokens whose losses add up to what the text costs."""
        return len(self.tokens) - self.marks * len(self.starts)


class TokenFile:
    """Ids in a file, read where they are asked for, as an array's are: `file[3:9]`.

    It is not mapped into memory: a file that is cut off meanwhile then is an error, not the death of
    the process.

    Args:
      path: of the file.
      dtype: of an id.
      length: how many ids it holds.

    Raises:
      ValueError: if it is not there, or of another size.
    """

    def __init__(self, path: Path, dtype: str, length: int):
        self.path, self.dtype, self.length = path, np.dtype(dtype), length
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror})") from error
        size, expected = os.fstat(self._file.fileno()).st_size, length * self.dtype.itemsize
        if size != expected:
            raise ValueError(
                f"{path} has {size:,} bytes where {_ABOUT} says {expected:,}; it is damaged, make it "
                f"anew with hope tokenize"
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> np.ndarray:
        first, end, step = part.indices(self.length)
        if step != 1:
            raise IndexError("only slices without a step are read")
        size = max(end - first, 0) * self.dtype.itemsize
        content = b""
        while len(content) < size:
            read = os.pread(
                self._file.fileno(),
                size - len(content),
                first * self.dtype.itemsize + len(content),
            )
            if not read:
                raise ValueError(
                    f"{self.path} has become shorter since it was opened; make it anew with hope "
                    f"tokenize"
                )
            content += read
        return np.frombuffer(content, self.dtype)


def encode_document(text: bytes, tokenizer: Tokenizer) -> Int[np.ndarray, " T"]:
    """Ids of a whole document, with what the tokenizer puts around it; none if it has no text."""
    ids = tokenizer.encode(text)
    if not len(ids) or not (tokenizer.before or tokenizer.after):
        return ids
    around = (np.asarray(part, np.int32) for part in (tokenizer.before, tokenizer.after))
    before, after = around
    return np.concatenate([before, ids, after])


def encode_documents(documents: Sequence[bytes], tokenizer: Tokenizer) -> TokenStream:
    """Makes a stream in memory; documents without a token are left out.

    Args:
      documents: texts.
      tokenizer: of their text.

    Example:
      >>> from hope_jax.data.tokenizers import ByteTokenizer
      >>> encode_documents([b"to", b"be"], ByteTokenizer()).starts.tolist()
      [0, 2]
    """
    ids = [encode_document(document, tokenizer) for document in documents]
    ids = [document for document in ids if len(document)]
    tokens = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    starts = np.cumsum([0, *(len(document) for document in ids)])[:-1]
    size = sum(len(document) for document in documents)
    return TokenStream(tokens, starts, size, tokenizer.vocab_size, len(tokenizer.before))


def write_tokens(
    folder: str | Path,
    documents: Iterable[tuple[str, int, Int[np.ndarray, " T"]]],
    tokenizer: Tokenizer,
) -> dict[str, dict[str, int]]:
    """Writes streams to files, a document at a time, in two bytes a token where ids allow.

    The folder appears when it is whole. If no document is for validation, the last one is moved there.

    Args:
      folder: to write to; it must be empty or not there.
      documents: name of the part, bytes of the text, and ids of each.
      tokenizer: that made the ids, whose digest is noted.

    Returns:
      Tokens, documents and bytes of each part.

    Raises:
      ValueError: if the folder holds something or cannot be written, an id is none of the
        tokenizer's, or a part would be empty.
    """
    with whole_folder(folder, "--output") as aside:
        dtype = np.dtype(_DTYPES[0] if tokenizer.vocab_size <= 2**16 else _DTYPES[1])
        counts = _write_parts(aside, documents, dtype, tokenizer.vocab_size)
        empty = [part for part in PARTS if not counts[part]["tokens"]]
        if empty:
            raise ValueError(
                f"there is no document for {' and '.join(empty)}; add text, or change the share that "
                f"is held out"
            )
        about = {"dtype": dtype.str, "vocab_size": tokenizer.vocab_size}
        about |= {"tokenizer": tokenizer.digest}
        about |= {"before": tokenizer.before, "after": tokenizer.after}
        (aside / _ABOUT).write_text(json.dumps({**about, **counts}, indent=1) + "\n")
    return counts


def _write_parts(
    folder: Path,
    documents: Iterable[tuple[str, int, np.ndarray]],
    dtype: np.dtype,
    vocab_size: int,
) -> dict[str, dict[str, int]]:
    counts = {part: {"tokens": 0, "documents": 0, "bytes": 0} for part in PARTS}
    files = {
        (part, kind): (folder / f"{part}.{kind}").open("wb")
        for part in PARTS
        for kind in ("tokens", "starts")
    }

    def write(part: str, size: int, ids: np.ndarray) -> None:
        count = counts[part]
        files[part, "tokens"].write(ids.astype(dtype).tobytes())
        files[part, "starts"].write(np.array(count["tokens"], "<i8").tobytes())
        count["tokens"] += len(ids)
        count["documents"] += 1
        count["bytes"] += size

    held: tuple[str, int, np.ndarray] | None = None  # the last document, which may yet move
    try:
        for part, size, ids in documents:
            if not len(ids):
                continue
            if ids.min() < 0 or ids.max() >= vocab_size:
                raise ValueError(
                    f"a tokenizer of {vocab_size} tokens gave ids {ids.min()} to {ids.max()}"
                )
            if held is not None:
                write(*held)
            held = part, size, ids
        if held is not None:
            alone = counts["train"]["documents"] and not counts["validation"]["documents"]
            write("validation" if alone else held[0], *held[1:])
    finally:
        for file in files.values():
            file.close()
    return counts


def read_tokens(folder: str | Path, part: str, tokenizer: Tokenizer) -> TokenStream:
    """Opens a stream that `write_tokens` has written; its tokens are read as they are used.

    Args:
      folder: that was written.
      part: `train` or `validation`.
      tokenizer: with which the text is supposed to have been encoded.

    Raises:
      ValueError: if the folder holds no tokens, damaged ones, or those of another tokenizer.
    """
    folder = Path(folder)
    about = _about(folder)
    if about["tokenizer"] != tokenizer.digest or about["vocab_size"] != tokenizer.vocab_size:
        raise ValueError(
            f"data.tokens={str(folder)!r} was written with another tokenizer "
            f"({about['vocab_size']} tokens, {str(about['tokenizer'])[:8]}) than data.tokenizer "
            f"({tokenizer.vocab_size}, {tokenizer.digest[:8]}); give the file that --tokenizer named "
            f"then"
        )
    around = [list(ids) for ids in (tokenizer.before, tokenizer.after)]
    if [about.get("before", []), about.get("after", [])] != around:
        raise ValueError(
            f"data.tokens={str(folder)!r} was written with {about.get('before', [])} before and "
            f"{about.get('after', [])} after each document, and the tokenizer now puts {around[0]} and "
            f"{around[1]} there; make the tokens anew with hope tokenize"
        )
    count = about[part]
    tokens = TokenFile(folder / f"{part}.tokens", about["dtype"], count["tokens"])
    starts = TokenFile(folder / f"{part}.starts", "<i8", count["documents"])[:]
    if starts[0] != 0 or starts[-1] >= len(tokens) or (np.diff(starts) <= 0).any():
        raise ValueError(f"{folder / f'{part}.starts'} is damaged; make it anew with hope tokenize")
    return TokenStream(tokens, starts, count["bytes"], tokenizer.vocab_size, len(tokenizer.before))


def _about(folder: Path) -> Mapping[str, Any]:
    """What is noted of the tokens in a folder."""
    path = folder / _ABOUT
    if not path.is_file():
        raise ValueError(
            f"data.tokens={str(folder)!r} holds no {_ABOUT}; make it with hope tokenize"
        )
    try:
        about = json.loads(path.read_text())
        whole = about["dtype"] in _DTYPES and isinstance(about["vocab_size"], int)
        whole = whole and isinstance(about["tokenizer"], str)
        for part in PARTS:
            for name in ("tokens", "documents", "bytes"):
                whole = whole and isinstance(about[part][name], int) and about[part][name] > 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); make it anew with hope tokenize"
        ) from error
    if not whole:
        raise ValueError(f"{path} is damaged; make it anew with hope tokenize")
    return about
