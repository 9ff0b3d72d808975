"""Samples from a trained model: `python -m hope_jax.generate --workdir=DIR --prompt="def "`.

The text appears as it is made, in memory and time per token that do not grow. What the model has
read and written can be kept with `--state_out=FILE` and taken up again with `--state_in=FILE`.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags

from hope_jax.models.context_file import load_context, save_context
from hope_jax.models.language_model import LanguageModel
from hope_jax.models.sampling import Context, generate, read
from hope_jax.models.text_stream import TextStream
from hope_jax.training.checkpoint import load_model
from hope_jax.training.tokenizers import Tokenizer

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training run.", required=True)
_PROMPT = flags.DEFINE_string("prompt", "", "Text to be continued.")
_NUM_TOKENS = flags.DEFINE_integer("num_tokens", 256, "Tokens to draw.", lower_bound=0)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 is greedy.", lower_bound=0.0)
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Draw from the likeliest tokens that hold this probability.", upper_bound=1.0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the random draws.")
_STATE_IN = flags.DEFINE_string("state_in", None, "File to take up what an earlier call has read.")
_STATE_OUT = flags.DEFINE_string("state_out", None, "File to keep what this call has read.")


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
        raise ValueError("nothing to continue: give --prompt, or --state_in, or both")
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


def main(arguments: list[str]) -> None:
    """Runs the command."""
    if len(arguments) > 1:
        raise app.UsageError(
            f"unexpected {arguments[1]!r}; put a prompt of several words in quotes"
        )
    # Orbax says a dozen lines a checkpoint at the level of information.
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        _run()
    except ValueError as error:
        print(f"ValueError: {error}", file=sys.stderr)
        sys.exit(1)


def _run() -> None:
    model, params, tokenizer = load_model(_WORKDIR.value)
    context = None
    if _STATE_IN.value:
        context = load_context(_STATE_IN.value, model, params)
    context = read_prompt(model, params, tokenizer, _PROMPT.value, context)
    context = stream_text(
        model,
        params,
        tokenizer,
        context,
        write=lambda text: print(text, end="", flush=True),
        num_tokens=_NUM_TOKENS.value,
        temperature=_TEMPERATURE.value,
        top_p=_TOP_P.value,
        seed=_SEED.value,
    )
    print()
    if _STATE_OUT.value:
        save_context(_STATE_OUT.value, context, model, params)


if __name__ == "__main__":
    # Either spelling: --state_in or --state-in.
    app.run(main, [a.replace("--state-", "--state_", 1) for a in sys.argv])
