"""Text from token ids that come one at a time."""

import unicodedata
from collections.abc import Callable, Sequence

_LONGEST_CHARACTER = 4  # bytes, and so at most tokens, in UTF-8
_LONGEST_SILENCE = 32  # tokens without text that are remembered
_TURNING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # of the direction


class TextStream:
    """Decodes a stream of ids, holding back the start of a character until its end has come.

    Ids are decoded together with those before them, because some tokenizers write a space only
    between tokens.

    Args:
      decode: text of a sequence of ids, with U+FFFD where bytes form no character.
      before: ids that came before, whose text is not to be repeated.

    Example:
      >>> stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"))
      >>> [stream.push(byte) for byte in "aé".encode()]
      ['a', '', 'é']
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self.decode = decode
        # More than a few are not looked at, unless those have no text, as special ones.
        self._shown = list(before[-_LONGEST_CHARACTER:])
        if not decode(self._shown):
            self._shown = list(before)
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
        if text:
            self._shown = self._held
        elif len(self._shown) < _LONGEST_SILENCE:
            # After a special token the text before it still says whether a space is due.
            self._shown = self._shown + self._held
        self._held = []
        return text

    def _text(self) -> str:
        before = self.decode(self._shown)
        return self.decode(self._shown + self._held)[len(before) :]


def show_controls(text: str) -> str:
    """Text that is safe to show in a terminal: its control characters written out.

    Tabs and line feeds stay. Escape sequences would otherwise move the cursor, or worse.

    Args:
      text: any.

    Example:
      >>> show_controls("a\\tb\\x1b[2J")
      'a\\tb\\\\x1b[2J'
    """
    unsafe = lambda c: (unicodedata.category(c) == "Cc" and c not in "\n\t") or c in _TURNING
    return "".join(repr(c)[1:-1] if unsafe(c) else c for c in text)
