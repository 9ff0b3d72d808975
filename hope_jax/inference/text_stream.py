"""Text from token ids that come one at a time."""

from collections.abc import Callable, Sequence

_LONGEST_CHARACTER = 4  # bytes, and so at most tokens, in UTF-8


class TextStream:
    """Decodes a stream of ids, holding back the start of a character until its end has come.

    Ids are decoded together with those before them, because some tokenizers write a space only
    between tokens.

    Attributes:
      decode: text of a sequence of ids, with U+FFFD where bytes form no character.

    Example:
      >>> stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"))
      >>> [stream.push(byte) for byte in "aé".encode()]
      ['a', '', 'é']
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode = decode
        self._shown: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """Takes one id; returns the text that it completes, or an empty string."""
        self._held.append(token)
        unfinished = self._text().endswith("\N{REPLACEMENT CHARACTER}")
        if unfinished and len(self._held) < _LONGEST_CHARACTER:
            return ""
        return self.flush()

    def flush(self) -> str:
        """Returns the text of what is held back, whole characters or not."""
        text = self._text()
        if self._held:
            self._shown, self._held = self._held, []
        return text

    def _text(self) -> str:
        before = self.decode(self._shown)
        return self.decode(self._shown + self._held)[len(before) :]
