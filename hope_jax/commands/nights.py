"""What `hope sleep` and `hope live` have in common: settings and flags of nights, and their ends."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Int

from hope_jax.commands.night_inputs import windows_of
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.exit_codes import DIVERGED, SAVED
from hope_jax.inference.sampling import Context, read
from hope_jax.layers.experts import Experts
from hope_jax.models.language_model import LanguageModel, ModelState
from hope_jax.named import calling, find
from hope_jax.settings import as_values, setting
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.cycle import Night
from hope_jax.sleep.expansion import experts_of, last_active, pools_for
from hope_jax.sleep.progress_file import ProgressFile
from hope_jax.training.processes import StopRequest

MOST_REHEARSED = 1024  # parts of a text, whose activations lie in memory


@dataclasses.dataclass(frozen=True)
class NightConfig(SleepConfig):
    """A night that a command can order."""

    # Called as f(learning_rate).
    optimizer: Callable[..., Any] = setting("of the new expert, by its dotted name", "optax.adam")
    learning_rate: float = setting("of the optimiser", 1e-2, above=0)


class NightDroppedError(RuntimeError):
    """Raised when a loss is no finite number; the state is as it was before the night."""

    exit_code = DIVERGED


class StoppedError(RuntimeError):
    """Raised when the command was asked to stop, and has saved."""

    exit_code = SAVED


def begin(model: LanguageModel, params: Any, tokenizer: Tokenizer, woken: Context) -> Context:
    """A reader who has forgotten the context, at the start of a new one, about to read or to speak.

    It has read what texts begin with: the tokenizer's first tokens or, without any, a new line.
    """
    return read(model, params, np.asarray([opening_of(tokenizer)], np.int32), woken)


def opening_of(tokenizer: Tokenizer) -> list[int]:
    """What a reader who begins a context has read."""
    return [*tokenizer.before] or [*tokenizer.encode("\n")] or [*tokenizer.encode("a")]


def in_use(model: LanguageModel, state: ModelState) -> str:
    """How many of a reader's experts are switched on, for each level whose knowledge they hold."""
    experts = experts_of(state)
    assert isinstance(experts, Experts)
    active, said = experts.active[:, 0], []
    for level in range(len(model.config.in_context_config.chunks)):
        used = 1 + int(last_active(active, pools_for(model.config, level)))
        said.append(f"level {level}: {used} of {active.shape[-1]}")
    return f"experts in use for what each level has learned: {', '.join(said)}"


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


def define_night_flags() -> None:
    """Defines the flags of every command in which there are nights."""
    flags.DEFINE_integer("seed", 0, "Of the random draws.", lower_bound=0, upper_bound=2**32 - 1)
    flags.DEFINE_float("save_every", 30.0, "Seconds after which progress is saved.", lower_bound=0)
    flags.DEFINE_bool("print_config", False, "Print all settings of a night, and end.")
    flags.DEFINE_string("rehearse", None, "File of other text, which should be read as before.")


def rehearsed_of(
    text: str | None, path: str | None, tokenizer: Tokenizer, settings: SleepConfig
) -> Int[np.ndarray, "N T"] | None:
    """The parts of a file's text that nights rehearse, as long as what the teacher says."""
    if text is None:
        return None
    return windows_of(text, f"--rehearse={path}", tokenizer, settings.tokens + 1, MOST_REHEARSED)


def plain(settings: Any) -> dict[str, Any]:
    """Settings as a file holds them, but for the mesh: a night may go on on other devices."""
    values = json.loads(json.dumps(as_values(settings)))
    del values["mesh"]
    return values


def dropped(night: Night) -> str:
    """Which number it was for which a night is dropped."""
    finite = lambda numbers: bool(np.isfinite(np.asarray(numbers)).all())
    if not finite(night.steps.loss):
        which = f"the loss of step {len(night.steps.loss)}"
    elif not finite(night.after):
        which = "the divergence at its end"
    elif night.dreams is not None and not finite(night.dreams.losses):
        which = "a loss of learning from its dreams"
    else:
        which = "the divergence after its dreams"
    return f"{which} is no finite number, so the night is dropped"
