"""What a run was trained on, kept in its folder: another corpus has another order of batches."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hope_jax.counts import count
from hope_jax.data.token_stream import TokenStream
from hope_jax.data.whole_file import write_whole

# Of larger streams, which may lie in mapped files of any size, as many tokens evenly spread are read.
_WHOLE = 1 << 24
_BLOCK = 1 << 12

Record = dict[str, dict[str, Any]]


def describe_corpus(streams: Mapping[str, TokenStream]) -> Record:
    """Counts and a digest of each part of a corpus.

    The digest is of all tokens and starts of documents, whatever their dtype; above 2^24 of them of
    the number and an even sample of as many.

    Args:
      streams: by name of the part.

    Returns:
      `tokens`, `documents`, `bytes` and `digest` of each part.
    """
    return {
        part: {
            "tokens": len(stream.tokens),
            "documents": len(stream.starts),
            "bytes": stream.num_bytes,
            "digest": _digest(stream.tokens, stream.starts),
        }
        for part, stream in streams.items()
    }


def check_corpus(workdir: str | Path, corpus: Record, source: str) -> None:
    """Compares a corpus with that of the run in a folder; a run that has none noted may have any.

    Args:
      workdir: folder of the run.
      corpus: that is there now.
      source: where it comes from, such as `data.files='*.txt'`.

    Raises:
      ValueError: if it is another one.
    """
    path = Path(workdir) / "corpus.json"
    try:
        before = json.loads(path.read_text())
        differing = [part for part in corpus if corpus[part] != before[part]]
        changes = [
            f"{part}: {_said(before[part])} then, {_said(corpus[part])} now" for part in differing
        ]
    except FileNotFoundError:
        return
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it if the corpus is the same"
        ) from error
    if changes:
        raise ValueError(
            f"{source} is not the corpus that the run in {workdir} was begun with "
            f"({'; '.join(changes)}); it would go on with other batches. Bring back the files as they "
            f"were, or give another --workdir to start anew"
        )


def keep_corpus(workdir: str | Path, corpus: Record) -> None:
    """Notes the corpus of a run."""
    write_whole(Path(workdir) / "corpus.json", json.dumps(corpus, indent=1) + "\n")


def _said(part: Mapping[str, Any]) -> str:
    told = f"{count(part['tokens'], 'token')} of {count(part['documents'], 'document')}"
    return f"{told} ({part['digest'][:8]})"


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(str(len(array)).encode())
        if len(array) <= _WHOLE:
            firsts = np.arange(0, len(array), _BLOCK)
        else:
            firsts = np.linspace(0, len(array) - _BLOCK, _WHOLE // _BLOCK).astype(np.int64)
        for first in firsts:
            digest.update(array[first : first + _BLOCK].astype("<i8").tobytes())
    return digest.hexdigest()
