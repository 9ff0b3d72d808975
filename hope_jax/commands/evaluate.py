"""Measures a text under a trained model: `hope evaluate --workdir=DIR --text=FILE`.

The text is read in segments, in memory that does not grow with it. As in `hope generate`, what the
model has read can be kept with `--state_out=FILE` and taken up again with `--state_in=FILE`.
"""

import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import flags

from hope_jax.commands.generate import check_states
from hope_jax.commands.trained_model import load_model
from hope_jax.inference.context_file import load_context, save_context
from hope_jax.inference.sampling import score


def read_text(path: str) -> str:
    """The text of a file.

    Raises:
      ValueError: if there is no such file, or nothing or no UTF-8 text in it.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"--text={path} is no file")
    try:
        text = file.read_bytes().decode()
    except OSError as error:
        raise ValueError(f"--text={path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--text={path} is not UTF-8 text ({error})") from error
    if not text:
        raise ValueError(f"--text={path} is empty")
    return text


UNEXPECTED = "give the file as --text=FILE"


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", None, "Folder of the training run.", required=True)
    flags.DEFINE_string("text", None, "File to read.", required=True)
    flags.DEFINE_integer("segment", 512, "Tokens of a call.", lower_bound=1)
    flags.DEFINE_string("state_in", None, "File to take up what an earlier call has read.")
    flags.DEFINE_string("state_out", None, "File to keep what this call has read.")


def run() -> None:
    """Runs the command."""
    given = flags.FLAGS
    text = read_text(given.text)
    check_states(given.state_in, given.state_out)
    model, params, tokenizer = load_model(given.workdir)
    context = load_context(given.state_in, model, params) if given.state_in else None
    ids = np.asarray(tokenizer.encode(text), np.int32)
    if not ids.size:
        raise ValueError(f"--text={given.text} gives no token; the tokenizer drops all of it")
    told = len(text.encode())
    if context is None:
        before = np.asarray(tokenizer.before, np.int32)
        # Without a token in front nothing foretells the first one.
        told -= 0 if before.size else tokenizer.bytes_of_first(text)
        ids = np.concatenate([before, ids])
        marks = max(before.size - 1, 0)  # foretold themselves, but no text
    else:
        marks = 0
    tokens = jnp.asarray(ids, jnp.int32)[None]
    losses, context = score(model, params, tokens, context, segment=given.segment)
    losses = losses[:, marks:]
    nats = float(losses.sum())
    print(f"{losses.size:,} tokens of {told:,} bytes")
    if losses.size:
        print(f"{nats / losses.size:.4f} nats per token")
        if told > 0:
            print(f"{nats / math.log(2) / told:.4f} bits per byte")
    if given.state_out:
        save_context(given.state_out, context, model, params)
