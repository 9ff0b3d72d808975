"""Documents as one stream of token ids: in memory, or in files of any size that are mapped."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from hope_jax.data.tokenizers import Tokenizer

PARTS = ("train", "validation")
_ABOUT = "tokens.json"


class TokenStream(NamedTuple):
    """Documents' ids, set one after the other.

    Attributes:
      tokens: ids, shape (total,).
      starts: places of the documents' first tokens, ascending, shape (documents,).
      num_bytes: of the text.
    """

    tokens: Int[np.ndarray, " total"]
    starts: Int[np.ndarray, " documents"]
    num_bytes: int


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
    ids = [tokenizer.encode(document) for document in documents]
    ids = [document for document in ids if len(document)]
    tokens = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    starts = np.cumsum([0, *(len(document) for document in ids)])[:-1]
    return TokenStream(tokens, starts, sum(len(document) for document in documents))


def write_tokens(
    folder: str | Path,
    documents: Iterable[tuple[str, int, Int[np.ndarray, " T"]]],
    tokenizer: str,
    vocab_size: int,
) -> dict[str, dict[str, int]]:
    """Writes streams to files, a document at a time, in two bytes a token where ids allow.

    Args:
      folder: to write to; it must hold no tokens yet.
      documents: name of the part, bytes of the text, and ids of each.
      tokenizer: `bytes` or its file, whose digest is noted.
      vocab_size: of the tokenizer.

    Returns:
      Tokens, documents and bytes of each part.

    Raises:
      ValueError: if the folder holds tokens already, or a part would be empty.
    """
    folder = Path(folder)
    if (folder / _ABOUT).exists():
        raise ValueError(f"{folder} holds tokens already; give another folder, or delete it first")
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    counts = {part: {"tokens": 0, "documents": 0, "bytes": 0} for part in PARTS}
    files = {
        (part, kind): (folder / f"{part}.{kind}").open("wb")
        for part in PARTS
        for kind in ("tokens", "starts")
    }
    try:
        for part, size, ids in documents:
            if not len(ids):
                continue
            count = counts[part]
            files[part, "tokens"].write(ids.astype(dtype).tobytes())
            files[part, "starts"].write(np.array(count["tokens"], "<i8").tobytes())
            count["tokens"] += len(ids)
            count["documents"] += 1
            count["bytes"] += size
    finally:
        for file in files.values():
            file.close()
    empty = [part for part in PARTS if not counts[part]["tokens"]]
    if empty:
        raise ValueError(
            f"there is no document for {' and '.join(empty)}; add text, or change the share that is "
            f"held out"
        )
    about = {"dtype": dtype.str, "vocab_size": vocab_size, "tokenizer": tokenizer_digest(tokenizer)}
    # Written last: a folder without it is not whole.
    (folder / _ABOUT).write_text(json.dumps({**about, **counts}, indent=1) + "\n")
    return counts


def read_tokens(folder: str | Path, part: str, tokenizer: str) -> TokenStream:
    """Maps a stream that `write_tokens` has written; nothing is read before it is used.

    Args:
      folder: that was written.
      part: `train` or `validation`.
      tokenizer: with which the text is supposed to have been encoded.

    Raises:
      ValueError: if the folder holds no tokens, or those of another tokenizer.
    """
    folder = Path(folder)
    if not (folder / _ABOUT).is_file():
        raise ValueError(
            f"data.tokens={str(folder)!r} holds no {_ABOUT}; make it with hope tokenize"
        )
    about = json.loads((folder / _ABOUT).read_text())
    if about["tokenizer"] != tokenizer_digest(tokenizer):
        raise ValueError(
            f"data.tokens={str(folder)!r} was written with another tokenizer than "
            f"data.tokenizer={tokenizer!r}; give the file that --tokenizer named then"
        )
    count = about[part]
    of = lambda kind, dtype, length: np.memmap(
        folder / f"{part}.{kind}", dtype, mode="r", shape=(length,)
    )
    return TokenStream(
        of("tokens", about["dtype"], count["tokens"]),
        of("starts", "<i8", count["documents"]),
        count["bytes"],
    )


def tokenizer_digest(name: str) -> str:
    """`bytes`, or a digest of a tokenizer's file, by which it is known wherever it lies."""
    return name if name == "bytes" else hashlib.sha256(Path(name).read_bytes()).hexdigest()
