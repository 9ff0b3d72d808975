"""Text to token ids and back: bytes, SentencePiece, or a Hugging Face tokenizers file."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

# Files beside a tokenizer's that say more of it; whoever copies a tokenizer copies them too.
COMPANIONS = (
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_POINTER = b"version https://git-lfs"


class Tokenizer(Protocol):
    """What the trainer and the commands need of a tokenizer.

    Attributes:
      vocab_size: one more than the largest id.
      before: ids that the tokenizer puts in front of a text, such as that of a first token.
      after: ids that it puts behind a text.
      end_ids: ids after which nothing more is to be said.
      digest: `bytes`, or a digest of the file that was read, by which it is known wherever it lies.
    """

    vocab_size: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    end_ids: tuple[int, ...]
    digest: str

    def encode(self, text: bytes | str) -> Int[np.ndarray, " T"]:
        """Ids of a text, int32, without those before and after it."""
        ...

    def decode(self, ids: Any) -> str:
        """The text of ids; special ones have none."""
        ...

    def bytes_of_first(self, text: str) -> int:
        """How many of the text's own bytes lie before its second token."""
        ...


def decode_to_end(tokenizer: Tokenizer, ids: Any) -> str:
    """The text of ids up to the first that says that it is over, if there is one."""
    ids = np.asarray(ids, np.int32)
    ends = np.flatnonzero(np.isin(ids, tokenizer.end_ids))
    return tokenizer.decode(ids[: ends[0]] if ends.size else ids)


class ByteTokenizer:
    """Every byte is a token.

    Example:
      >>> ByteTokenizer().encode("hi").tolist()
      [104, 105]
    """

    vocab_size = 256
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()
    digest = "bytes"

    def encode(self, text: bytes | str) -> Int[np.ndarray, " T"]:
        """Ids of a text, int32."""
        return np.frombuffer(_bytes(text), np.uint8).astype(np.int32)

    def decode(self, ids: Any) -> str:
        """The text of ids; bytes that are no UTF-8 become replacement characters."""
        return bytes(np.asarray(ids, np.uint8)).decode("utf-8", errors="replace")

    def bytes_of_first(self, text: str) -> int:
        """One, unless there is none."""
        return min(len(text), 1)


class SentencePieceTokenizer:
    """A SentencePiece model file, read once; it pickles.

    The `tokenizer_config.json` beside it says whether `<s>` and `</s>` are put around a text.

    Args:
      path: of the file.
    """

    def __init__(self, path: str):
        self.content = _content(path)
        self.digest = hashlib.sha256(self.content).hexdigest()
        self._processor: Any = None
        try:
            if not self.content:
                raise RuntimeError("the file is empty")
            self.vocab_size: int = self.processor.vocab_size()
        except RuntimeError as error:
            raise ValueError(
                f"{path} is no SentencePiece model, or a damaged one; if it is one of tiktoken, give "
                f"the tokenizer.json that comes with it"
            ) from error
        about = _read_json(Path(path).parent / "tokenizer_config.json")
        around = {
            name: (mark,) if about.get(name) is True and mark >= 0 else ()
            for name, mark in (
                ("add_bos_token", self.processor.bos_id()),
                ("add_eos_token", self.processor.eos_id()),
            )
        }
        self.before: tuple[int, ...] = around["add_bos_token"]
        self.after: tuple[int, ...] = around["add_eos_token"]
        self.end_ids = _end_ids(path, self.processor.piece_to_id, self.vocab_size)

    @property
    def processor(self) -> Any:
        """The loaded model."""
        if self._processor is None:
            import sentencepiece

            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self.content)
        return self._processor

    def encode(self, text: bytes | str) -> Int[np.ndarray, " T"]:
        """Ids of a text, int32."""
        return np.asarray(self.processor.encode(_string(text)), np.int32)

    def decode(self, ids: Any) -> str:
        """The text of ids."""
        return self.processor.decode(np.asarray(ids).tolist())

    def bytes_of_first(self, text: str) -> int:
        """How many of the text's own bytes lie before its second token."""
        pieces = self.processor.encode(text, return_type="proto").pieces
        return pieces[1].begin if len(pieces) > 1 else len(text.encode())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_processor": None}


class FileTokenizer:
    """A `tokenizer.json` of Hugging Face's tokenizers, read once; it pickles.

    Args:
      path: of the file. What it holds for other jobs, truncation and padding, is switched off.
    """

    def __init__(self, path: str):
        import tokenizers

        content = _content(path)
        self.digest = hashlib.sha256(content).hexdigest()
        try:
            self.tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # whatever the library makes of a file
            raise ValueError(f"{path} is no file of Hugging Face's tokenizers: {error}") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        # Ids may have gaps, so that there are fewer tokens than the largest id says.
        ids = self.tokenizer.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise ValueError(f"{path} holds a tokenizer without tokens")
        self.vocab_size: int = max(ids) + 1
        around = self.tokenizer.encode("a", add_special_tokens=True)
        text = np.flatnonzero(np.equal(around.special_tokens_mask, 0))
        self.before: tuple[int, ...] = tuple(around.ids[: text[0]]) if len(text) else ()
        self.after: tuple[int, ...] = tuple(around.ids[text[-1] + 1 :]) if len(text) else ()
        self.end_ids = _end_ids(path, self.tokenizer.token_to_id, self.vocab_size)

    def encode(self, text: bytes | str) -> Int[np.ndarray, " T"]:
        """Ids of a text, int32."""
        return np.asarray(
            self.tokenizer.encode(_string(text), add_special_tokens=False).ids, np.int32
        )

    def decode(self, ids: Any) -> str:
        """The text of ids; special ones have none."""
        return self.tokenizer.decode(np.asarray(ids).tolist())

    def bytes_of_first(self, text: str) -> int:
        """How many of the text's own bytes lie before its second token."""
        offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets
        return len((text[: offsets[1][0]] if len(offsets) > 1 else text).encode())


def load_tokenizer(name: str) -> Tokenizer:
    """Loads the tokenizer that a config names.

    Args:
      name: `bytes`, or the path of a SentencePiece `.model` or a tokenizers `.json` file.

    Returns:
      A `Tokenizer`.

    Raises:
      ValueError: for any other name, or a file that is not there or cannot be read as one.
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


def tokenizer_file(folder: str | Path) -> Path:
    """The tokenizer of a checkpoint's folder.

    Args:
      folder: with a `tokenizer.json` or, if there is none, a `tokenizer.model`.

    Returns:
      Its path.

    Raises:
      ValueError: if there is neither.
    """
    paths = [Path(folder) / name for name in ("tokenizer.json", "tokenizer.model")]
    for path in paths:
        if path.is_file():
            return path
    raise ValueError(
        f"{folder} has no tokenizer: there is neither {paths[0].name} nor {paths[1].name}; put one "
        f"there, or name another with --config.data.tokenizer=FILE"
    )


def copy_tokenizer(name: str, folder: str | Path) -> None:
    """Puts a tokenizer where Hugging Face's readers of a checkpoint look for it.

    Args:
      name: `bytes`, for which a `tokenizer.json` of the same ids is made, or a file, which is copied
        with those beside it that say more of it.
      folder: that is there.
    """
    folder = Path(folder)
    if name == "bytes":
        (folder / "tokenizer.json").write_text(_byte_level().to_str())
        about = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / "tokenizer_config.json").write_text(json.dumps(about) + "\n")
        return
    (folder / f"tokenizer{Path(name).suffix}").write_bytes(_content(name))
    for companion in COMPANIONS:
        if (Path(name).parent / companion).is_file():
            (folder / companion).write_bytes((Path(name).parent / companion).read_bytes())


def _byte_level() -> Any:
    """`ByteTokenizer` in Hugging Face's tokenizers: its letters for bytes, in the order of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # bytes that are a letter
    rest = iter(range(0x100, 0x200))
    letters = {chr(byte if byte in own else next(rest)): byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, name: str) -> None:
    """Compares the ids of a tokenizer with those that a model knows.

    Args:
      tokenizer: of the model's text.
      vocab_size: rows of the model's embedding table; ids that only it has are never drawn.
      name: of the tokenizer, for the error.

    Raises:
      ValueError: if the tokenizer has ids that the model has not.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"data.tokenizer={name!r} has {tokenizer.vocab_size} tokens, but "
            f"model.vocab_size={vocab_size}; set model.vocab_size to at least that, or give the "
            f"tokenizer that belongs to the model"
        )


def _content(path: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"data.tokenizer={path!r} cannot be read ({error.strerror})") from error
    if content.startswith(_POINTER):
        raise ValueError(f"{path} is a pointer of git-lfs, not the file itself; run git lfs pull")
    return content


def _end_ids(path: str, id_of: Any, vocab_size: int) -> tuple[int, ...]:
    """What the files beside a tokenizer's call the end, as Hugging Face's generation looks for it."""
    folder = Path(path).parent
    for name in ("generation_config.json", "config.json"):
        found = _read_json(folder / name).get("eos_token_id")
        if found is not None:
            found = found if isinstance(found, Sequence) else [found]
            return tuple(int(end) for end in found)
    token = _read_json(folder / "tokenizer_config.json").get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    end = id_of(token) if isinstance(token, str) else None
    return () if end is None or not 0 <= end < vocab_size else (int(end),)


def _read_json(path: Path) -> dict[str, Any]:
    """What a file says, nothing if there is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); mend or delete it") from error
    return found if isinstance(found, dict) else {}


def _bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _string(text: bytes | str) -> str:
    return text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text
