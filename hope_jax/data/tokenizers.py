"""Text to token ids and back: bytes, SentencePiece, or a Hugging Face tokenizers file."""

import os
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int


class Tokenizer(Protocol):
    """What the trainer and the generate command need of a tokenizer."""

    vocab_size: int

    def encode(self, text: bytes | str) -> Int[np.ndarray, " T"]:
        """Ids of a text, int32."""
        ...

    def decode(self, ids: Any) -> str:
        """The text of ids."""
        ...


class ByteTokenizer:
    """Every byte is a token.

    Example:
      >>> ByteTokenizer().encode("hi").tolist()
      [104, 105]
    """

    vocab_size = 256

    def encode(self, text: bytes | str) -> Int[np.ndarray, " T"]:
        """Ids of a text, int32."""
        return np.frombuffer(_bytes(text), np.uint8).astype(np.int32)

    def decode(self, ids: Any) -> str:
        """The text of ids; bytes that are no UTF-8 become replacement characters."""
        return bytes(np.asarray(ids, np.uint8)).decode("utf-8", errors="replace")


class SentencePieceTokenizer:
    """A SentencePiece model file; loaded on first use in each process, so that it pickles."""

    def __init__(self, path: str):
        self.path = path
        self._processor: Any = None
        self.vocab_size: int = self.processor.vocab_size()

    @property
    def processor(self) -> Any:
        """The loaded model."""
        if self._processor is None:
            import sentencepiece

            self._processor = sentencepiece.SentencePieceProcessor(model_file=self.path)
        return self._processor

    def encode(self, text: bytes | str) -> Int[np.ndarray, " T"]:
        """Ids of a text, int32."""
        return np.asarray(self.processor.encode(_string(text)), np.int32)

    def decode(self, ids: Any) -> str:
        """The text of ids."""
        return self.processor.decode(np.asarray(ids).tolist())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_processor": None}


class FileTokenizer:
    """A `tokenizer.json` of Hugging Face's tokenizers."""

    def __init__(self, path: str):
        import tokenizers

        self.tokenizer = tokenizers.Tokenizer.from_file(path)
        self.vocab_size: int = self.tokenizer.get_vocab_size()

    def encode(self, text: bytes | str) -> Int[np.ndarray, " T"]:
        """Ids of a text, int32."""
        return np.asarray(
            self.tokenizer.encode(_string(text), add_special_tokens=False).ids, np.int32
        )

    def decode(self, ids: Any) -> str:
        """The text of ids."""
        return self.tokenizer.decode(np.asarray(ids).tolist())


def load_tokenizer(name: str) -> Tokenizer:
    """Loads the tokenizer that a config names.

    Args:
      name: `bytes`, or the path of a SentencePiece `.model` or a tokenizers `.json` file.

    Returns:
      A `Tokenizer`.

    Raises:
      ValueError: for any other name, or a file that is not there.
    """
    if name == "bytes":
        return ByteTokenizer()
    if not name.endswith((".model", ".json")):
        raise ValueError(
            f"data.tokenizer={name!r} is not known; give 'bytes', or the path of a SentencePiece "
            f"'.model' or a Hugging Face tokenizers '.json' file"
        )
    if not os.path.isfile(name):
        raise ValueError(f"data.tokenizer={name!r}: there is no such file in {os.getcwd()}")
    return SentencePieceTokenizer(name) if name.endswith(".model") else FileTokenizer(name)


def _bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _string(text: bytes | str) -> str:
    return text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text
