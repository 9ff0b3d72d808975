"""Samples from a trained model: `hope generate --workdir=DIR --prompt="def "`.

The text appears as it is made, in memory and time per token that do not grow. What the model has
read and written can be kept with `--state_out=FILE` and taken up again with `--state_in=FILE`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from hope_jax.commands.paths import check_state_files
from hope_jax.commands.trained_model import load_model
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.inference.context_file import load_context, save_context
from hope_jax.inference.sampling import Context, generate, read
from hope_jax.inference.text_stream import TextStream
from hope_jax.models.language_model import LanguageModel


def read_prompt(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    prompt: str,
    context: Context | None = None,
) -> Context:
    """Reads a prompt, which may be empty if there is a context to go on from.

    Raises:
      ValueError: if there is neither.
    """
    ids = np.asarray(tokenizer.encode(prompt), np.int32)
    if ids.size:
        return read(model, params, ids[None], context)
    if context is None:
        raise ValueError(NOTHING)
    return context


def stream_text(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    context: Context,
    *,
    write: Callable[[str], None],
    num_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> Context:
    """Samples a continuation and hands over its text as it is made.

    Args:
      model: that speaks.
      params: of the model.
      tokenizer: of the model.
      context: of one sequence; its buffers are reused.
      write: called with each piece of text.
      num_tokens: how many to draw.
      temperature: see `sample_token`.
      top_p: see `sample_token`.
      seed: of the random draws.

    Returns:
      The context that has read all that was written.
    """
    text = TextStream(tokenizer.decode)
    _, context = generate(
        model,
        params,
        context,
        jax.random.key(seed),
        num_tokens=num_tokens,
        temperature=temperature,
        top_p=top_p,
        on_token=lambda token: write(text.push(int(token[0]))),
    )
    write(text.flush())
    return context


NOTHING = "nothing to continue: give --prompt, or --state_in, or both"
UNEXPECTED = "put a prompt of several words in quotes"


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", None, "Folder of the training run.", required=True)
    flags.DEFINE_string("prompt", "", "Text to be continued.")
    flags.DEFINE_integer("num_tokens", 256, "Tokens to draw.", lower_bound=0)
    flags.DEFINE_float("temperature", 0.8, "0 is greedy.")
    flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens that hold this probability.")
    # Bounds that Python's comparisons give, no number is outside.
    flags.register_validator("temperature", lambda t: 0 <= t < math.inf, "must be finite, from 0")
    flags.register_validator("top_p", lambda p: 0 < p <= 1, "must be above 0 and at most 1")
    flags.DEFINE_integer("seed", 0, "Of the random draws.", lower_bound=0, upper_bound=2**32 - 1)
    flags.DEFINE_string("state_in", None, "File to take up what an earlier call has read.")
    flags.DEFINE_string("state_out", None, "File to keep what this call has read.")


def run() -> None:
    """Runs the command."""
    given = flags.FLAGS
    if not given.prompt and not given.state_in:
        raise ValueError(NOTHING)
    check_state_files(given.state_in, given.state_out)
    model, params, tokenizer = load_model(given.workdir)
    context = None
    if given.state_in:
        context = load_context(given.state_in, model, params)
    context = read_prompt(model, params, tokenizer, given.prompt, context)
    context = stream_text(
        model,
        params,
        tokenizer,
        context,
        write=lambda text: print(text, end="", flush=True),
        num_tokens=given.num_tokens,
        temperature=given.temperature,
        top_p=given.top_p,
        seed=given.seed,
    )
    print()
    if given.state_out:
        save_context(given.state_out, context, model, params)
