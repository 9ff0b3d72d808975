"""What a night shows: a bar while it goes on, a table and a picture of it."""

from pathlib import Path

import matplotlib
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

matplotlib.use("Agg")
from types import TracebackType

import matplotlib.pyplot as plt

from hope_jax.counts import count
from hope_jax.sleep.cycle import Night, NightSoFar
from hope_jax.sleep.seeding import SeedingStep


class NightProgress:
    """A bar on a terminal, ten lines elsewhere; entered while steps are taken.

    Args:
      console: to print on.
      steps: of the night.
    """

    def __init__(self, console: Console, steps: int):
        self._console, self._steps = console, steps
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        ]
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._bar = self._progress.add_task("compiling", total=steps)

    def __enter__(self) -> "NightProgress":
        if not self._console.is_terminal:
            self._console.print("compiling ...")
        self._progress.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def trial(self, tried: int, of: int) -> None:
        """Tells how many dreams have been tried."""
        said = f"dreams tried: {tried}/{of}"
        self._progress.update(self._bar, description=said)
        if not self._console.is_terminal:
            self._console.print(said)

    def step(self, so_far: NightSoFar) -> None:
        """Tells of the last step of one reader's night."""
        number = int(so_far.seeding.step)
        found = SeedingStep(*(values[-1] for values in so_far.steps))
        said = f"divergence {float(found.divergence[0]):.4f}  reward {float(found.reward[0]):.3f}"
        self._progress.update(self._bar, completed=number, description=said)
        due = number % max(1, self._steps // 10) == 0 or number == self._steps
        if due and not self._console.is_terminal:
            self._console.print(f"step {number}/{self._steps}  {said}")


def table(night: Night) -> str:
    """What a night has done, as Markdown."""
    dreams = night.dreams
    rows = [("divergence from the teacher, nats per token", night.before, night.after)]
    if dreams is not None:
        rows.append(("the same, of the dreams", night.after, night.after_dreams))
        rows.append(("score, of the dreams", dreams.before, dreams.after))
    rows.append(("loss of the held-out text", night.held_out_before, night.held_out_after))
    lines = ["| | before | after |", "|---|---|---|"]
    for name, before, after in rows:
        if before is not None and after is not None:
            lines.append(f"| {name} | {before[0]:.4f} | {after[0]:.4f} |")
    rewards = night.steps.reward[:, 0]
    if rewards.size and rewards.any():
        tenth = max(1, len(rewards) // 10)
        first, last = rewards[:tenth].mean(), rewards[-tenth:].mean()
        lines.append(f"| reward, first and last tenth of the steps | {first:.4f} | {last:.4f} |")
    if dreams is not None:
        made, tried = count(dreams.norms.shape[1], "dream"), dreams.reward.shape[1]
        lines += [
            "",
            f"{made}, of which {tried} were tried and {int(dreams.reward[0].sum())} helped",
        ]
    return "\n".join(lines) + "\n"


def draw(night: Night, path: Path) -> None:
    """The night, step by step, as a picture."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
    steps = 1 + np.arange(len(night.steps.divergence))
    top.plot(steps, night.steps.divergence[:, 0])
    top.set(ylabel="divergence (nats per token)", ylim=(0, None))
    bottom.plot(steps, night.steps.reward[:, 0])
    bottom.set(ylabel="reward", xlabel="step", ylim=(0, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)
