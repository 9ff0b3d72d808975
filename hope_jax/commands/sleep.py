"""Lets a reader sleep: `hope sleep --workdir=DIR --state_in=FILE --state_out=FILE`.

What the model's fastest level has learned from what was read moves into a new expert beside the next
slower one, and the level is fresh again. `hope generate` and `hope evaluate` take the new state like any
other. With `--merge=NEWRUN` the experts become parameters of a new run instead, for everyone.

The teacher is the model as it was, the student the model as it wakes; both are compared on what the
teacher says by itself, before and after. With `--text=FILE` the loss of a text that has nothing to do
with it is told, too. A table and a picture are written beside the new state, with the endings `.md` and
`.png`, or in the new run's folder.

With `--rehearse=FILE`, the new expert also learns to leave another text as it is: the student should go
on reading it as it does when the night begins.

With `--config.dreams=20` dreams follow: of what the reader says by itself, that is learned which helps it
to answer the questions of `--questions=FILE`, lines of `{"prompt": ..., "answer": ...}`.

A night that is stopped or killed goes on when the same command is given again, to the same bits. How far
it has come is in the file `FILE.night` beside the new state, or `sleep.night` in the new run's folder.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict
from rich.console import Console

from hope_jax.commands.config import (
    change_settings,
    config_table,
    define_config_flags,
    read_config,
)
from hope_jax.commands.evaluate import read_text
from hope_jax.commands.first_checkpoint import check_no_run, write_first_checkpoint
from hope_jax.commands.generate import check_states
from hope_jax.commands.night_inputs import read_prompts, read_questions, windows_of
from hope_jax.commands.night_report import NightProgress, draw, table
from hope_jax.commands.nights import (
    NightConfig,
    NightDroppedError,
    begin,
    define_night_flags,
    digest_of,
    dropped,
    in_use,
    opening_of,
    optimizer_of,
    plain,
    rehearsed_of,
    stopping,
)
from hope_jax.commands.trained_model import load_model, load_run_config
from hope_jax.data.bucket import refuse_address
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.data.whole_file import write_whole
from hope_jax.evaluation.given_answers import mean_log_probability
from hope_jax.inference.context_file import context_content, load_context
from hope_jax.inference.sampling import Context
from hope_jax.models.language_model import LanguageModel, ModelState
from hope_jax.named import find
from hope_jax.runs.checkpoint_reader import checkpoint_steps, run_and_step
from hope_jax.runs.fetch import fetch_run
from hope_jax.settings import as_values, read_settings, setting
from hope_jax.sleep.config import DreamConfig
from hope_jax.sleep.cycle import NightSoFar, sleep
from hope_jax.sleep.dreams import ReaderScore
from hope_jax.sleep.progress_file import ProgressFile, leaves_of, numbered
from hope_jax.sleep.sharing import share
from hope_jax.training.config import MeshSizes
from hope_jax.training.sharding import make_mesh, on_mesh


@dataclasses.dataclass(frozen=True)
class SleepNightConfig(DreamConfig, NightConfig):
    """A night that `hope sleep` can order, and its dreams."""

    # Called as f(model, params, state), with the state of one sequence; compiled.
    score: Callable[..., Any] | None = setting(
        "by which dreams are tried, higher where better; None for --questions", None
    )
    mesh: MeshSizes = setting("the devices", MeshSizes())

    def __post_init__(self) -> None:
        NightConfig.__post_init__(self)
        DreamConfig.__post_init__(self)


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
    flags.DEFINE_string("questions", None, "File of questions by which dreams are tried.")
    define_night_flags()


def run() -> None:
    """Runs the command."""
    given = flags.FLAGS
    config = ConfigDict() if given.config is None else read_config(given.config)
    changed = change_settings(SleepNightConfig, config, given.set)
    settings = read_settings(SleepNightConfig, changed)
    if given.print_config:
        print(config_table(SleepNightConfig, ConfigDict(as_values(settings))), end="")
        return
    if not given.workdir:
        raise ValueError("give the folder of the run as --workdir=DIR")
    if not given.state_in or bool(given.state_out) == bool(given.merge):
        raise ValueError("give --state-in, and one of --state-out and --merge")
    check_states(given.state_in, given.state_out)
    if given.merge:
        refuse_address(given.merge, "--merge")
    report = Path(given.merge) / "sleep" if given.merge else Path(given.state_out).with_suffix("")
    beside = f"{report}.night" if given.merge else f"{given.state_out}.night"
    progress = ProgressFile(Path(beside), given.save_every)
    if progress.held is not None and is_over(progress.held, given.state_out, given.merge):
        progress.delete()
        print(f"this night was over, and only its progress was left; see {report}.md")
        return
    if given.merge and progress.held is None:
        check_no_run(given.merge, "--merge")
    check_score(settings, given.questions)
    optimizer, mesh = optimizer_of(settings), make_mesh(**dataclasses.asdict(settings.mesh))
    text = None if given.text is None else read_text(given.text)
    other = None if given.rehearse is None else read_text(given.rehearse, "--rehearse")
    workdir = fetch_run(given.workdir)
    model, params, tokenizer = load_model(workdir, mesh)
    texts = None
    if text is not None:
        texts = jnp.asarray(windows_of(text, f"--text={given.text}", tokenizer))
    rehearsed = rehearsed_of(other, given.rehearse, tokenizer, settings)
    prompts, lengths = None, None
    if given.prompts is not None:
        prompts, lengths = read_prompts(given.prompts, tokenizer)
    score = score_of(settings, given.questions, tokenizer)
    context = load_context(given.state_in, model, params)
    # The state's file says of which parameters it is.
    arguments = {
        "--state-in": digest_of(given.state_in),
        "--text": digest_of(given.text),
        "--prompts": digest_of(given.prompts),
        "--rehearse": digest_of(given.rehearse),
        "--questions": digest_of(given.questions),
        "--seed": given.seed,
        **plain(settings),
    }
    held = progress.go_on(arguments)
    console = Console(soft_wrap=True)
    if held is not None:
        console.print(f"going on with {progress.path}")
    begun = None if held is None else leaves_of(held["arrays"], "night ")
    last: Any = () if begun is None else begun
    with (
        on_mesh(mesh),
        NightProgress(console, settings.steps) as bar,
        stopping(progress) as keep,
    ):

        def write() -> None:
            progress.keep(arguments, {}, numbered(last, "night "))

        def on_step(so_far: NightSoFar) -> None:
            nonlocal last
            last = so_far
            bar.step(so_far)
            if settings.dreams and int(so_far.seeding.step) == settings.steps:
                write()  # what follows is begun anew where it is stopped
            keep(write)

        def on_trial(tried: int) -> None:
            bar.trial(tried, settings.best + settings.others)
            keep(write)

        state, night = sleep(
            model,
            params,
            context,
            jax.random.split(jax.random.key(given.seed), context.logits.shape[0]),
            settings,
            optimizer,
            prompts=prompts,
            prompt_lengths=lengths,
            rehearsed=rehearsed,
            texts=texts,
            vocab_size=tokenizer.vocab_size,
            begun=begun,
            on_step=on_step,
            dreaming=settings,
            score=score,
            on_trial=on_trial,
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
        write_merged(workdir, given.merge, model, params, state)
    else:
        woken = Context(state, context.logits)
        if not settings.keep_context:
            with on_mesh(mesh):
                woken = begin(model, params, tokenizer, woken)
        content = context_content(woken, model, params)
        # Where the state takes its own place, it is known afterwards that it has slept.
        woken_as = {"woken": hashlib.sha256(content).hexdigest()}
        progress.keep(arguments, woken_as, numbered(last, "night "))
        write_whole(given.state_out, content)
    progress.delete()
    print(table(night) + in_use(model, state))


def check_score(settings: SleepNightConfig, questions: str | None) -> None:
    """Raises ValueError unless there is a score where there are dreams, and one alone."""
    if questions is not None and not settings.dreams:
        raise ValueError("--questions is what dreams are tried by; give --config.dreams=20, or so")
    if settings.dreams and (questions is None) == (settings.score is None):
        raise ValueError(
            f"dreams={settings.dreams} are tried by one score; give --questions=FILE, or score as your "
            f"own function by its name"
        )


def score_of(
    settings: SleepNightConfig, questions: str | None, tokenizer: Tokenizer
) -> ReaderScore | None:
    """By what dreams are tried; None where there are none."""
    if questions is not None:
        opening = [] if settings.keep_context else opening_of(tokenizer)
        asked = read_questions(questions, tokenizer, opening)
        return jax.tree_util.Partial(mean_log_probability, asked)
    return find(str(settings.score)) if settings.dreams else None


def is_over(held: dict[str, Any], state_out: str | None, merge: str | None) -> bool:
    """Whether a night that has left its progress behind has also left its result."""
    if merge:
        return held.get("merged", False) and bool(checkpoint_steps(Path(merge)))
    there = state_out is not None and Path(state_out).is_file()
    return there and held.get("woken") == digest_of(state_out)


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
    write_first_checkpoint(folder, config, params)
