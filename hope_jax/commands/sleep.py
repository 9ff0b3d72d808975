"""Lets a reader sleep: `hope sleep --workdir=DIR --state_in=FILE --state_out=FILE`.

What the model's fastest level has learned from what was read moves into a new expert beside the next
slower one, and the level is fresh again. `hope generate` and `hope evaluate` take the new state like any
other. With `--merge=NEWRUN` the experts become parameters of a new run instead, for everyone.

The teacher is the model as it was, the student the model as it wakes; both are compared on what the
teacher says by itself, before and after. With `--text=FILE` the loss of a text that has nothing to do
with it is told, too. A table and a picture are written beside the new state, with the endings `.md` and
`.png`, or in the new run's folder.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import flags
from jaxtyping import Int
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hope_jax.commands.config import (
    change_settings,
    config_table,
    define_config_flags,
    read_config,
)
from hope_jax.commands.evaluate import read_text
from hope_jax.commands.first_checkpoint import check_no_run, write_first_checkpoint
from hope_jax.commands.generate import check_states
from hope_jax.commands.trained_model import load_model, load_run_config
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.data.whole_file import write_whole
from hope_jax.data.whole_folder import check_writable
from hope_jax.inference.context_file import load_context, save_context
from hope_jax.inference.sampling import Context, read
from hope_jax.layers.experts import Experts
from hope_jax.models.language_model import LanguageModel, ModelState
from hope_jax.named import calling, find
from hope_jax.runs.checkpoint_reader import run_and_step
from hope_jax.settings import as_values, read_settings, setting
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.cycle import Night, sleep
from hope_jax.sleep.expansion import experts_of, last_active, pools_for
from hope_jax.sleep.seeding import SeedingStep
from hope_jax.sleep.sharing import share


@dataclasses.dataclass(frozen=True)
class NightConfig(SleepConfig):
    """A night that a command can order."""

    # Called as f(learning_rate).
    optimizer: Callable[..., Any] = setting("of the new expert, by its dotted name", "optax.adam")
    learning_rate: float = setting("of the optimiser", 1e-3, above=0)


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

    def step(self, number: int, found: SeedingStep) -> None:
        """Tells of a step of one reader's night."""
        said = f"divergence {float(found.divergence[0]):.4f}  reward {float(found.reward[0]):.3f}"
        self._progress.update(self._bar, completed=number, description=said)
        due = number % max(1, self._steps // 10) == 0 or number == self._steps
        if due and not self._console.is_terminal:
            self._console.print(f"step {number}/{self._steps}  {said}")


def table(night: Night) -> str:
    """What a night has done, as Markdown."""
    rows = [
        ("divergence from the teacher, nats per token", night.before, night.after),
        ("loss of the held-out text", night.held_out_before, night.held_out_after),
    ]
    lines = ["| | before | after |", "|---|---|---|"]
    for name, before, after in rows:
        if before is not None and after is not None:
            lines.append(f"| {name} | {before[0]:.4f} | {after[0]:.4f} |")
    rewards = night.steps.reward[:, 0]
    if rewards.size and rewards.any():
        tenth = max(1, len(rewards) // 10)
        first, last = rewards[:tenth].mean(), rewards[-tenth:].mean()
        lines.append(f"| reward, first and last tenth of the steps | {first:.4f} | {last:.4f} |")
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


def windows(
    ids: Int[np.ndarray, " T"], length: int = 257, most: int = 16
) -> Int[np.ndarray, "N C"]:
    """The beginning of a text in parts of equal length.

    Example:
      >>> windows(np.arange(7), length=3).tolist()
      [[0, 1, 2], [3, 4, 5]]
    """
    length = min(length, len(ids))
    count = min(most, len(ids) // length)
    return ids[: count * length].reshape(count, length)


def begin(model: LanguageModel, params: Any, tokenizer: Tokenizer, woken: Context) -> Context:
    """A reader who has forgotten the context, at the start of a new one, about to read or to speak.

    It has read what texts begin with: the tokenizer's first tokens or, without any, a new line.
    """
    opening = [*tokenizer.before] or [*tokenizer.encode("\n")] or [*tokenizer.encode("a")]
    return read(model, params, np.asarray([opening], np.int32), woken)


def in_use(model: LanguageModel, state: ModelState) -> str:
    """How many of a reader's experts are switched on, for each level whose knowledge they hold."""
    experts = experts_of(state)
    assert isinstance(experts, Experts)
    active, said = experts.active[:, 0], []
    for level in range(len(model.config.in_context_config.chunks)):
        used = 1 + int(last_active(active, pools_for(model.config, level)))
        said.append(f"level {level}: {used} of {active.shape[-1]}")
    return f"experts in use for what each level has learned: {', '.join(said)}"


UNEXPECTED = "states are given as --state_in=FILE and --state_out=FILE"


def define_flags() -> None:
    """Defines the command's flags."""
    define_config_flags()
    flags.DEFINE_string("workdir", None, "Folder of the training run.")
    flags.DEFINE_string("state_in", None, "File of what a reader has read.")
    flags.DEFINE_string("state_out", None, "File to write; it may be the same.")
    flags.DEFINE_string("merge", None, "Folder of a new run, in the place of --state_out.")
    flags.DEFINE_string("text", None, "Held-out text whose loss is told.")
    flags.DEFINE_integer("seed", 0, "Of the random draws.", lower_bound=0, upper_bound=2**32 - 1)
    flags.DEFINE_bool("print_config", False, "Print all settings of a night, and end.")


def run() -> None:
    """Runs the command."""
    given = flags.FLAGS
    config = ConfigDict() if given.config is None else read_config(given.config)
    changed = change_settings(NightConfig, config, given.set)
    settings = read_settings(NightConfig, changed)
    if given.print_config:
        print(config_table(NightConfig, ConfigDict(as_values(settings))), end="")
        return
    if not given.workdir:
        raise ValueError("give the folder of the run as --workdir=DIR")
    if not given.state_in or bool(given.state_out) == bool(given.merge):
        raise ValueError("give --state-in, and one of --state-out and --merge")
    check_states(given.state_in, given.state_out)
    if given.merge:
        check_no_run(given.merge, "--merge")
    with calling(str(settings.optimizer)):
        optimizer = find(str(settings.optimizer))(settings.learning_rate)
    text = None if given.text is None else read_text(given.text)
    model, params, tokenizer = load_model(given.workdir)
    texts = None
    if text is not None:
        ids = np.asarray([*tokenizer.before, *tokenizer.encode(text)], np.int32)
        if ids.size < 2:
            raise ValueError(f"--text={given.text} has fewer than two tokens")
        texts = jnp.asarray(windows(ids))
    context = load_context(given.state_in, model, params)
    console = Console(soft_wrap=True)
    with NightProgress(console, settings.steps) as progress:
        state, night = sleep(
            model,
            params,
            context,
            jax.random.split(jax.random.key(given.seed), context.logits.shape[0]),
            settings,
            optimizer,
            texts=texts,
            vocab_size=tokenizer.vocab_size,
            on_step=progress.step,
        )
    if not night.kept:
        raise RuntimeError(
            f"the loss of step {len(night.steps.loss)} is no finite number, so the night is dropped and "
            f"nothing is written; {given.state_in} is as it was: try a lower learning_rate"
        )
    if given.merge:
        write_merged(given.workdir, given.merge, model, params, state)
        report = Path(given.merge) / "sleep"
    else:
        woken = Context(state, context.logits)
        if not settings.keep_context:
            woken = begin(model, params, tokenizer, woken)
        save_context(given.state_out, woken, model, params)
        report = Path(given.state_out).with_suffix("")
    draw(night, report.with_name(report.name + ".png"))
    write_whole(report.with_name(report.name + ".md"), table(night))
    print(table(night) + in_use(model, state))


def write_merged(
    workdir: str, folder: str, model: LanguageModel, params: Any, state: ModelState
) -> None:
    """Makes a run at step 0 in which everyone has the experts of a state's first reader.

    Args:
      workdir: of the run that the state belongs to; nothing in it is changed.
      folder: of the new run.
      model: of the run.
      params: of the model.
      state: of a reader who has slept.
    """
    config = load_run_config(run_and_step(workdir)[0])
    shared, params = share(model, params, state)
    config.model.in_context = ConfigDict(dict(shared.in_context))
    check_writable(Path(folder) / "config.json", "--merge")
    write_first_checkpoint(folder, config, params)
