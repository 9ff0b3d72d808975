"""Lets a reader sleep: `hope sleep --workdir=DIR --state_in=FILE --state_out=FILE`.

What the model's fastest level has learned from what was read moves into a new expert beside the next
slower one, and the level is fresh again. `hope generate` and `hope evaluate` take the new state like any
other. With `--merge=NEWRUN` the experts become parameters of a new run instead, for everyone.

The teacher is the model as it was, the student the model as it wakes; both are compared on what the
teacher says by itself, before and after. With `--text=FILE` the loss of a text that has nothing to do
with it is told, too. A table and a picture are written beside the new state, with the endings `.md` and
`.png`, or in the new run's folder.

A night that is stopped or killed goes on when the same command is given again, to the same bits. How far
it has come is in the file `FILE.night` beside the new state, or `sleep.night` in the new run's folder.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
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
from hope_jax.exit_codes import DIVERGED, SAVED
from hope_jax.inference.context_file import context_content, load_context
from hope_jax.inference.sampling import Context, read
from hope_jax.layers.experts import Experts
from hope_jax.models.language_model import LanguageModel, ModelState
from hope_jax.named import calling, find
from hope_jax.runs.checkpoint_reader import checkpoint_steps, run_and_step
from hope_jax.settings import as_values, read_settings, setting
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.cycle import Night, NightSoFar, sleep
from hope_jax.sleep.expansion import experts_of, last_active, pools_for
from hope_jax.sleep.progress_file import ProgressFile, leaves_of, numbered
from hope_jax.sleep.seeding import SeedingStep
from hope_jax.sleep.sharing import share
from hope_jax.training.processes import StopRequest


@dataclasses.dataclass(frozen=True)
class NightConfig(SleepConfig):
    """A night that a command can order."""

    # Called as f(learning_rate).
    optimizer: Callable[..., Any] = setting("of the new expert, by its dotted name", "optax.adam")
    learning_rate: float = setting("of the optimiser", 1e-3, above=0)


class NightDroppedError(RuntimeError):
    """Raised when a loss is no finite number; the state is as it was before the night."""

    exit_code = DIVERGED


class StoppedError(RuntimeError):
    """Raised when the command was asked to stop, and has saved."""

    exit_code = SAVED


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


def read_prompts(path: str, tokenizer: Tokenizer) -> Int[np.ndarray, "N P"]:
    """The ids of a file's lines, of which each opens a sample of the teacher.

    Raises:
      ValueError: if there are none, or not all are equally long.
    """
    lines = [line for line in read_text(path, "--prompts").splitlines() if line]
    rows = [[*tokenizer.before, *tokenizer.encode(line)] for line in lines]
    if not rows or not rows[0]:
        raise ValueError(f"--prompts={path} has no line with a token")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"--prompts={path}: opening {number} has {len(row)} tokens and the first "
                f"{len(rows[0])}; all must be equally long: cut them from the front, or fill them up"
            )
    return np.asarray(rows, np.int32)


def digest_of(path: str | None) -> str | None:
    """Of a file's content."""
    return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()


def optimizer_of(settings: NightConfig) -> Any:
    """The optimiser of a night's settings.

    Raises:
      ValueError: if it cannot be made.
    """
    with calling(str(settings.optimizer)):
        return find(str(settings.optimizer))(settings.learning_rate)


@contextlib.contextmanager
def stopping(progress: ProgressFile) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Lends a function that keeps what is due, or ends the command if it was asked to.

    It is called, after each step, with what keeps how far it has come.

    Raises:
      StoppedError: from within, when SIGINT or SIGTERM have come.
    """
    with StopRequest() as stop:

        def keep(write: Callable[[], None]) -> None:
            if progress.due or stop.noted:
                write()
            if stop.noted:
                raise StoppedError(
                    f"stopped and saved in {progress.path}; the same command goes on"
                )

        yield keep


UNEXPECTED = "states are given as --state_in=FILE and --state_out=FILE"


def define_flags() -> None:
    """Defines the command's flags."""
    define_config_flags()
    flags.DEFINE_string("workdir", None, "Folder of the training run.")
    flags.DEFINE_string("state_in", None, "File of what a reader has read.")
    flags.DEFINE_string("state_out", None, "File to write; it may be the same.")
    flags.DEFINE_string("merge", None, "Folder of a new run, in the place of --state_out.")
    flags.DEFINE_string("text", None, "Held-out text whose loss is told.")
    flags.DEFINE_string("prompts", None, "File of openings of the teacher's samples, one a line.")
    define_night_flags()


def define_night_flags() -> None:
    """Defines the flags of every command in which there are nights."""
    flags.DEFINE_integer("seed", 0, "Of the random draws.", lower_bound=0, upper_bound=2**32 - 1)
    flags.DEFINE_float("save_every", 30.0, "Seconds after which progress is saved.", lower_bound=0)
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
    report = Path(given.merge) / "sleep" if given.merge else Path(given.state_out).with_suffix("")
    beside = f"{report}.night" if given.merge else f"{given.state_out}.night"
    progress = ProgressFile(Path(beside), given.save_every)
    if progress.held is not None and is_over(progress.held, given.state_out, given.merge):
        progress.delete()
        print(f"this night was over, and only its progress was left; see {report}.md")
        return
    if given.merge and progress.held is None:
        check_no_run(given.merge, "--merge")
    optimizer = optimizer_of(settings)
    text = None if given.text is None else read_text(given.text)
    model, params, tokenizer = load_model(given.workdir)
    texts = None
    if text is not None:
        ids = np.asarray([*tokenizer.before, *tokenizer.encode(text)], np.int32)
        if ids.size < 2:
            raise ValueError(f"--text={given.text} has fewer than two tokens")
        texts = jnp.asarray(windows(ids))
    prompts = None if given.prompts is None else read_prompts(given.prompts, tokenizer)
    context = load_context(given.state_in, model, params)
    # The state's file says of which parameters it is.
    arguments = {
        "--state-in": digest_of(given.state_in),
        "--text": digest_of(given.text),
        "--prompts": digest_of(given.prompts),
        "--seed": given.seed,
        **plain(settings),
    }
    held = progress.go_on(arguments)
    console = Console(soft_wrap=True)
    if held is not None:
        console.print(f"going on with {progress.path}")
    begun = None if held is None else leaves_of(held["arrays"], "night ")
    last: Any = () if begun is None else begun
    with NightProgress(console, settings.steps) as bar, stopping(progress) as keep:

        def on_step(so_far: NightSoFar) -> None:
            nonlocal last
            last = so_far
            bar.step(so_far)
            keep(lambda: progress.keep(arguments, {}, numbered(so_far, "night ")))

        state, night = sleep(
            model,
            params,
            context,
            jax.random.split(jax.random.key(given.seed), context.logits.shape[0]),
            settings,
            optimizer,
            prompts=None if prompts is None else jnp.asarray(prompts),
            texts=texts,
            vocab_size=tokenizer.vocab_size,
            begun=begun,
            on_step=on_step,
        )
    if not night.kept:
        progress.delete()
        raise NightDroppedError(
            f"{dropped(night)} and nothing is written; {given.state_in} is as it was: try a lower "
            f"learning_rate"
        )
    report.parent.mkdir(parents=True, exist_ok=True)
    draw(night, report.with_name(report.name + ".png"))
    write_whole(report.with_name(report.name + ".md"), table(night))
    if given.merge:
        # What is in the folder is then known to be this night's, whatever of it is there.
        progress.keep(arguments, {"merged": True}, numbered(last, "night "))
        write_merged(given.workdir, given.merge, model, params, state)
    else:
        woken = Context(state, context.logits)
        if not settings.keep_context:
            woken = begin(model, params, tokenizer, woken)
        content = context_content(woken, model, params)
        # Where the state takes its own place, it is known afterwards that it has slept.
        woken_as = {"woken": hashlib.sha256(content).hexdigest()}
        progress.keep(arguments, woken_as, numbered(last, "night "))
        write_whole(given.state_out, content)
    progress.delete()
    print(table(night) + in_use(model, state))


def is_over(held: dict[str, Any], state_out: str | None, merge: str | None) -> bool:
    """Whether a night that has left its progress behind has also left its result."""
    if merge:
        return held.get("merged", False) and bool(checkpoint_steps(Path(merge)))
    there = state_out is not None and Path(state_out).is_file()
    return there and held.get("woken") == digest_of(state_out)


def plain(settings: Any) -> dict[str, Any]:
    """Settings as a file holds them."""
    return json.loads(json.dumps(as_values(settings)))


def dropped(night: Night) -> str:
    """Which loss it was for which a night is dropped."""
    finite = np.isfinite(np.asarray(night.steps.loss)).all(axis=1)
    which = (
        f"the loss of step {len(night.steps.loss)}"
        if not finite.all()
        else "the divergence at its end"
    )
    return f"{which} is no finite number, so the night is dropped"


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
