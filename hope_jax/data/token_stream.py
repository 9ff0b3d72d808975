"""Documents as one stream of token ids: in memory, or in files of any size."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from hope_jax.data.bucket import fetch_folder
from hope_jax.data.tokenizers import Tokenizer

PARTS = ("train", "validation")
ABOUT = "tokens.json"
DTYPES = ("<u2", "<u4")


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
                f"{path} has {size:,} bytes where {ABOUT} says {expected:,}; it is damaged, make it "
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


def read_tokens(folder: str | Path, part: str, tokenizer: Tokenizer) -> TokenStream:
    """Opens a stream that `hope tokenize` has written; its tokens are read as they are used.

    Args:
      folder: that was written, or its address in a bucket, of which this machine then keeps a copy.
      part: `train` or `validation`.
      tokenizer: with which the text is supposed to have been encoded.

    Raises:
      ValueError: if the folder holds no tokens, damaged ones, or those of another tokenizer.
    """
    folder = fetch_folder(folder, ABOUT)
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
    path = folder / ABOUT
    if not path.is_file():
        raise ValueError(
            f"data.tokens={str(folder)!r} holds no {ABOUT}; make it with hope tokenize"
        )
    try:
        about = json.loads(path.read_text())
        whole = about["dtype"] in DTYPES and isinstance(about["vocab_size"], int)
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
