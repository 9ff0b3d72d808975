"""Measures a text under a trained model, or asks it the questions of a suite or the harness.

    hope evaluate --workdir=DIR --text=FILE
    hope evaluate --workdir=DIR --suite=needles --set=lengths=1024,16384 --set=kinds=S-1,MQ
    hope evaluate --workdir=DIR --harness=arc_easy,hellaswag

The text is read in segments, in memory that does not grow with it. As in `hope generate`, what the
model has read can be kept with `--state_out=FILE` and taken up again with `--state_in=FILE`. With
`--every=1024` the loss is told of every 1,024 tokens, too.

A suite writes its answers, a table and a picture to `--output`, and goes on where it was stopped.
`needles` hides sentences in generated prose, or in that of `--text`, and asks for them; `facts` scatters
facts there, of which one to three are needed for the answer. `classes` and `languages` are streams: the
model reads labelled texts whose classes come in turn, or two languages one after the other, and is asked
about all of them in between. `--harness` asks tasks of EleutherAI's
lm-evaluation-harness (`pip install 'hope_jax[eval]'`), which fetches their data.
"""

import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags

from hope_jax.commands.config import define_set_flag
from hope_jax.commands.evaluate_harness import run_harness
from hope_jax.commands.evaluate_suite import run_suite
from hope_jax.commands.generate import check_states
from hope_jax.commands.trained_model import load_model
from hope_jax.counts import count
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.evaluation.suites import SUITES
from hope_jax.inference.context_file import load_context, save_context
from hope_jax.inference.sampling import Context, score
from hope_jax.models.language_model import LanguageModel
from hope_jax.runs.fetch import fetch_run


def read_text(path: str, flag: str = "--text") -> str:
    """The text of a file that a flag has given.

    Raises:
      ValueError: if there is no such file, or nothing or no UTF-8 text in it.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{flag}={path} is no file")
    try:
        text = file.read_bytes().decode()
    except OSError as error:
        raise ValueError(f"{flag}={path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{flag}={path} is not UTF-8 text ({error})") from error
    if not text:
        raise ValueError(f"{flag}={path} is empty")
    return text


def measure(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    text: str,
    context: Context | None = None,
    segment: int = 512,
) -> tuple[np.ndarray, int, Context]:
    """How well a text was foretold.

    Where nothing was read before, the tokenizer's first tokens stand in front of the text; if it has
    none, nothing foretells the text's first token.

    Args:
      model: that reads.
      params: of the model.
      tokenizer: of the model.
      text: to read.
      context: to continue from; None starts a new one.
      segment: tokens of a call; the result does not depend on it.

    Returns:
      Losses in nats of the tokens that were foretold, how many of the text's own bytes those stand for,
      and the context that has read all.

    Raises:
      ValueError: if the text has no token.
    """
    ids = np.asarray(tokenizer.encode(text), np.int32)
    if not ids.size:
        raise ValueError("the text has no token: the tokenizer drops all of it")
    told, count = len(text.encode()), ids.size
    if context is None:
        if tokenizer.before:
            ids = np.concatenate([np.asarray(tokenizer.before, np.int32), ids])
        else:
            told, count = told - tokenizer.bytes_of_first(text), count - 1
    losses, context = score(model, params, jnp.asarray(ids)[None], context, segment=segment)
    return losses[0, losses.shape[1] - count :], told, context


UNEXPECTED = "give the file as --text=FILE"


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", None, "Folder of the training run.", required=True)
    flags.DEFINE_string("text", None, "File to read.")
    flags.DEFINE_string("suite", None, f"Questions to ask: {', '.join(SUITES)}.")
    flags.DEFINE_string("harness", None, "Tasks of the lm-evaluation-harness to ask.")
    flags.DEFINE_string("harness_folder", None, "Folder of task files of your own.")
    flags.DEFINE_integer("shots", None, "Examples before each of the harness's questions.", 0)
    flags.DEFINE_integer("limit", None, "Questions of each of the harness's tasks.", 1)
    flags.DEFINE_string(
        "output",
        None,
        "Folder of a suite's answers (default: WORKDIR/SUITE) or the harness's (WORKDIR).",
    )
    define_set_flag()
    flags.DEFINE_integer("segment", 512, "Tokens of a call.", lower_bound=1)
    flags.DEFINE_integer("every", None, "Tokens whose mean loss is told, too.", lower_bound=1)
    flags.DEFINE_string("state_in", None, "File to take up what an earlier call has read.")
    flags.DEFINE_string("state_out", None, "File to keep what this call has read.")


def run() -> None:
    """Runs the command."""
    given = flags.FLAGS
    if given.harness is not None:
        run_harness(
            given.harness,
            fetch_run(given.workdir),
            given.output,
            given.harness_folder,
            given.shots,
            given.limit,
            given.segment,
        )
        return
    if given.suite is not None:
        text = None if given.text is None else read_text(given.text)
        run_suite(given.suite, fetch_run(given.workdir), given.output, text, given.set)
        return
    if given.text is None:
        raise ValueError("give what to read as --text=FILE, or --suite=NAME, or --harness=TASK")
    for name in ("output", "set"):
        if given[name].value:
            raise ValueError(f"--{name} is of a suite; give --suite=NAME, or leave it out")
    text = read_text(given.text)
    check_states(given.state_in, given.state_out)
    model, params, tokenizer = load_model(fetch_run(given.workdir))
    context = load_context(given.state_in, model, params) if given.state_in else None
    losses, told, context = measure(model, params, tokenizer, text, context, given.segment)
    nats = float(losses.sum())
    print(f"{count(losses.size, 'token')} of {count(told, 'byte')}")
    if losses.size:
        print(f"{nats / losses.size:.4f} nats per token")
        if told > 0:
            print(f"{nats / math.log(2) / told:.4f} bits per byte")
    for start in range(0, losses.size, given.every) if given.every else ():
        part = losses[start : start + given.every]
        print(f"{start + 1:,} to {start + part.size:,}: {part.mean():.4f}")
    if given.state_out:
        save_context(given.state_out, context, model, params)
