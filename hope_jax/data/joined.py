"""Several streams of tokens as one, without reading them."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from hope_jax.data.token_stream import TokenStream


class JoinedTokens:
    """Ids of several arrays or files, one after the other, read where they are asked for: `ids[3:9]`.

    Args:
      parts: arrays, or `TokenFile`s.
    """

    def __init__(self, parts: Sequence[Any]):
        self.parts = parts
        self._firsts = [0, *itertools.accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, part: slice) -> np.ndarray:
        first, end, step = part.indices(len(self))
        if step != 1:
            raise IndexError("only slices without a step are read")
        read = [
            ids[max(first - begin, 0) : max(end - begin, 0)]
            for ids, begin in zip(self.parts, self._firsts, strict=False)
            if begin < end and first < begin + len(ids)
        ]
        return np.concatenate(read) if read else self.parts[0][:0]


def join_streams(streams: Sequence[TokenStream]) -> TokenStream:
    """One stream of the documents of several, of one tokenizer.

    Args:
      streams: of which each comes whole, in this order.

    Example:
      >>> one = TokenStream(np.array([1, 2, 3]), np.array([0, 2]), 3)
      >>> joined = join_streams([one, one])
      >>> joined.tokens[2:5].tolist(), joined.starts.tolist()
      ([3, 1, 2], [0, 2, 3, 5])
    """
    if len(streams) == 1:
        return streams[0]
    tokens = JoinedTokens([stream.tokens for stream in streams])
    firsts = itertools.accumulate((len(stream.tokens) for stream in streams[:-1]), initial=0)
    starts = [stream.starts + first for stream, first in zip(streams, firsts, strict=True)]
    size = sum(stream.num_bytes for stream in streams)
    return TokenStream(
        tokens, np.concatenate(starts), size, streams[0].vocab_size, streams[0].marks
    )
