"""What a run says on the console while it trains."""

import math
import time
from collections.abc import Sequence

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hope_jax.training.chip import memory_in_use


class TrainingProgress:
    """A bar on a terminal, lines elsewhere; entered while steps are taken.

    Args:
      console: to print on.
      first: steps taken before.
      steps: of the whole run.
      tokens: of one step.
      every: steps from one line to the next.
      devices: of this process, whose memory is told of.
    """

    def __init__(
        self,
        console: Console,
        first: int,
        steps: int,
        tokens: int,
        every: int,
        devices: Sequence[jax.Device],
    ):
        self.console, self.steps, self.every = console, steps, every
        self._devices = devices
        self._first = first
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        ]
        self._progress = Progress(
            *columns, console=console, disable=console.quiet or not console.is_terminal
        )
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

    def step(self, step: int, loss: float, rate: float, under_way: bool) -> float:
        """Tells of a step.

        Args:
          step: that has been taken.
          loss: of it.
          rate: of learning.
          under_way: whether the next one is, as `_Clock` needs to know.

        Returns:
          Tokens a second; no number until there are some steps.
        """
        if self._started is not None:
            waited = time.perf_counter() - self._started
            self.console.print(f"compiled, and the first step taken, in {waited:.1f} s")
            self._started = None
        speed = self._clock.tick(step, under_way)
        known = math.isfinite(speed)
        if self.is_due(step) and not self.console.is_terminal:
            said = [f"step {step}/{self.steps}", f"loss {loss:.4f}", f"rate {rate:.3g}"]
            if known:
                left = duration(self._clock.left(self.steps - step))
                said += [f"{speed:,.0f} tokens/s", f"{left} left"]
            said.append(f"memory {size(memory_in_use(self._devices))}")
            self.console.print("  ".join(said), soft_wrap=True)
        fast = f"  {speed:,.0f} tokens/s" if known else ""
        self._progress.update(self._bar, completed=step, description=f"loss {loss:.3f}{fast}")
        return speed

    def say(self, line: str) -> None:
        """Prints a line, above the bar where there is one."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def evaluation(self, step: int, loss: float) -> None:
        """Tells of an evaluation, whose time is not that of a step."""
        if not self.console.is_terminal:
            self.console.print(f"step {step}  validation loss {loss:.4f}")
        self._clock.restart()


def duration(seconds: float) -> str:
    """A time, as exactly as one wants to know it.

    Example:
      >>> duration(42.3), duration(200), duration(7500)
      ('42 s', '3 min 20 s', '2 h 05 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return (
        f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
    )


def size(count: int) -> str:
    """Bytes, in words.

    Example:
      >>> size(730_000_000), size(12_340_000_000)
      ('730 MB', '12.3 GB')
    """
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


class _Clock:
    """Tokens a second over the last steps.

    Where the next step is under way, it may be over by the time this one is told of, as on a CPU, or
    hardly begun. A time of either kind, with or without one under way, is compared with its like only.
    """

    def __init__(self, tokens: int, window: int = 20):
        self.tokens, self.window = tokens, window
        self.ticks: list[tuple[int, float]] = []
        self.under_way: bool | None = None
        self.seconds = math.nan

    def tick(self, step: int, under_way: bool) -> float:
        """Notes that a step is over; the rate is no number until there are two times of a kind."""
        if self.under_way and not under_way:
            return self.tokens / self.seconds  # one of the few at checkpoints and the end
        if under_way != self.under_way:
            self.restart()
        self.under_way = under_way
        self.ticks = [*self.ticks[-self.window :], (step, time.perf_counter())]
        (first, begun), (last, ended) = self.ticks[0], self.ticks[-1]
        if last > first:
            self.seconds = (ended - begun) / (last - first)
        return self.tokens / self.seconds

    def left(self, steps: int) -> float:
        """Seconds that so many steps will take."""
        return steps * self.seconds

    def restart(self) -> None:
        """Forgets the past, which held more than steps."""
        self.ticks, self.under_way = [], None
