"""What a run is doing, since when, and for how long it has done what."""

import time
from typing import Literal

Kind = Literal["starting", "compiling", "reading", "stepping", "evaluating", "saving"]

_IN_WORDS: dict[Kind, str] = {
    "starting": "it starts",
    "compiling": "step {step} is compiled and taken",
    "reading": "the batch of step {step} is read",
    "stepping": "step {step} is under way",
    "evaluating": "it is evaluated at step {step}",
    "saving": "the checkpoint of step {step} is written",
}


class Activity:
    """Is told what begins; what was done before has then ended.

    Attributes:
      kind: of what is done now.
      begun: how many things have begun.
      seconds: that each kind has taken, of what has ended.
    """

    def __init__(self) -> None:
        self.kind: Kind = "starting"
        self.begun = 0
        self.seconds: dict[Kind, float] = dict.fromkeys(_IN_WORDS, 0.0)
        self._step = 0
        self._first = self._since = time.monotonic()

    def begin(self, kind: Kind, step: int) -> None:
        """Notes that something begins.

        Args:
          kind: of it.
          step: that it is of.
        """
        now = time.monotonic()
        self.seconds[self.kind] += now - self._since
        self.kind, self._step, self._since = kind, step, now
        self.begun += 1

    def share(self, kind: Kind) -> float:
        """Share of the time so far that a kind has taken."""
        now = time.monotonic()
        seconds = self.seconds[kind] + (now - self._since) * (kind == self.kind)
        return seconds / max(now - self._first, 1e-9)

    def __str__(self) -> str:
        return _IN_WORDS[self.kind].format(step=self._step)
