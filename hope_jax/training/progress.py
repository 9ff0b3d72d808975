"""What a run says on the console while it trains."""

import math
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingProgress:
    """A bar on a terminal, lines elsewhere; entered while steps are taken.

    Args:
      console: to print on.
      first: steps taken before.
      steps: of the whole run.
      tokens: of one step.
      every: steps from one line to the next.
    """

    def __init__(self, console: Console, first: int, steps: int, tokens: int, every: int):
        self.console, self.steps, self.every = console, steps, every
        self._first = first
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        ]
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._bar = self._progress.add_task("compiling", total=steps, completed=first)
        self._clock = _Clock(tokens)
        self._started: float | None = None

    def __enter__(self) -> "TrainingProgress":
        self._started = time.perf_counter()
        if self._first < self.steps and not self.console.is_terminal:
            self.console.print("compiling the training step ...")
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def is_due(self, step: int) -> bool:
        """Whether a step is one of those that are written down."""
        return step % self.every == 0 or step == self.steps

    def step(self, step: int, loss: float) -> float:
        """Tells of a step; returns tokens a second, no number until there are two steps."""
        if self._started is not None:
            waited = time.perf_counter() - self._started
            self.console.print(f"compiled, and the first step taken, in {waited:.1f} s")
            self._started = None
        rate = self._clock.tick()
        speed = f"  {rate:,.0f} tokens/s" if math.isfinite(rate) else ""
        left = f"  {self._clock.left(self.steps - step):.0f} s left" if speed else ""
        if self.is_due(step) and not self.console.is_terminal:
            self.console.print(f"step {step}/{self.steps}  loss {loss:.4f}{speed}{left}")
        self._progress.update(self._bar, completed=step, description=f"loss {loss:.3f}{speed}")
        return rate

    def evaluation(self, step: int, loss: float) -> None:
        """Tells of an evaluation, whose time is not that of a step."""
        if not self.console.is_terminal:
            self.console.print(f"step {step}  validation loss {loss:.4f}")
        self._clock.restart()


class _Clock:
    """Tokens a second over the last steps."""

    def __init__(self, tokens: int, window: int = 20):
        self.tokens, self.window = tokens, window
        self.times: list[float] = []
        self.seconds = math.nan

    def tick(self) -> float:
        """Notes the end of a step; the rate is not a number until there are two."""
        self.times = [*self.times[-self.window :], time.perf_counter()]
        if len(self.times) > 1:
            self.seconds = (self.times[-1] - self.times[0]) / (len(self.times) - 1)
        return self.tokens / self.seconds

    def left(self, steps: int) -> float:
        """Seconds that so many steps will take."""
        return steps * self.seconds

    def restart(self) -> None:
        """Forgets the past, which held more than steps."""
        self.times = []
