"""Samples from a trained model: `hope generate --workdir=DIR --prompt="def "`.

The text appears as it is made, in memory and time per token that do not grow. What the model has
read and written can be kept with `--state_out=FILE` and taken up again with `--state_in=FILE`.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from hope_jax.commands.trained_model import load_model
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.data.whole_folder import check_writable
from hope_jax.inference.context_file import load_context, save_context
from hope_jax.inference.sampling import Context, check_sampling, generate, read
from hope_jax.inference.text_stream import TextStream, show_controls
from hope_jax.models.language_model import LanguageModel
from hope_jax.runs.fetch import fetch_run


def read_prompt(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    prompt: str,
    context: Context | None = None,
) -> tuple[Context, Sequence[int]]:
    """Reads a prompt, which may be empty if there is a context to go on from.

    Where nothing was read before, the tokenizer's first tokens stand in front of it.

    Returns:
      The context, and ids before whatever comes now, for `stream_text`.

    Raises:
      ValueError: if there is neither.
    """
    ids = np.asarray(tokenizer.encode(prompt), np.int32)
    if ids.size:
        if context is None:
            ids = np.concatenate([np.asarray(tokenizer.before, np.int32), ids])
        return read(model, params, ids[None], context), ids.tolist()
    if context is None:
        raise ValueError("nothing to continue: give --prompt, or --state_in, or both")
    # Of what was read before, only that it was something is known.
    return context, tokenizer.encode("a").tolist()


def stream_text(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    context: Context,
    before: Sequence[int] = (),
    *,
    write: Callable[[str], None],
    num_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> Context:
    """Samples a continuation and hands over its text as it is made, up to one of the tokenizer's ends.

    Args:
      model: that speaks.
      params: of the model.
      tokenizer: of the model.
      context: of one sequence; its buffers are reused.
      before: ids that came before, from `read_prompt`.
      write: called with each piece of text.
      num_tokens: how many to draw.
      temperature: see `sample_token`.
      top_p: see `sample_token`.
      seed: of the random draws.

    Returns:
      The context that has read all that was written.
    """
    text = TextStream(tokenizer.decode, before)

    def show(token: np.ndarray) -> None:
        if int(token[0]) not in tokenizer.end_ids:
            write(text.push(int(token[0])))

    _, context = generate(
        model,
        params,
        context,
        jax.random.key(seed),
        num_tokens=num_tokens,
        temperature=temperature,
        top_p=top_p,
        vocab_size=tokenizer.vocab_size,
        end_ids=tokenizer.end_ids,
        on_token=show,
    )
    write(text.flush())
    return context


def check_states(state_in: str | None, state_out: str | None) -> None:
    """Raises ValueError, before anything is loaded, for state files that cannot be read or written."""
    if state_in and not Path(state_in).is_file():
        raise ValueError(f"--state_in={state_in} is no file in {os.getcwd()}")
    if state_out:
        check_writable(state_out, "--state_out")


UNEXPECTED = "put a prompt of several words in quotes"


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", None, "Folder of the training run.", required=True)
    flags.DEFINE_string("prompt", "", "Text to be continued.")
    flags.DEFINE_integer("num_tokens", 256, "Tokens to draw.", lower_bound=0)
    flags.DEFINE_float("temperature", 0.8, "0 is greedy.", lower_bound=0.0)
    flags.DEFINE_float(
        "top_p", 1.0, "Draw from the likeliest tokens that hold this probability.", upper_bound=1.0
    )
    flags.DEFINE_integer("seed", 0, "Of the random draws.", lower_bound=0, upper_bound=2**32 - 1)
    flags.DEFINE_string("state_in", None, "File to take up what an earlier call has read.")
    flags.DEFINE_string("state_out", None, "File to keep what this call has read.")


def run() -> None:
    """Runs the command."""
    given = flags.FLAGS
    check_sampling(given.temperature, given.top_p)
    if not given.prompt and not given.state_in:
        raise ValueError("nothing to continue: give --prompt, or --state_in, or both")
    check_states(given.state_in, given.state_out)
    model, params, tokenizer = load_model(fetch_run(given.workdir))
    context = load_context(given.state_in, model, params) if given.state_in else None
    context, before = read_prompt(model, params, tokenizer, given.prompt, context)
    context = stream_text(
        model,
        params,
        tokenizer,
        context,
        before,
        write=lambda text: print(show_controls(text), end="", flush=True),
        num_tokens=given.num_tokens,
        temperature=given.temperature,
        top_p=given.top_p,
        seed=given.seed,
    )
    print()
    if given.state_out:
        save_context(given.state_out, context, model, params)
