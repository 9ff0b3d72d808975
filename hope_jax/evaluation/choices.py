"""Which of several answers a model holds for likeliest."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from hope_jax.data.tokenizers import Tokenizer
from hope_jax.inference.sampling import score_segment
from hope_jax.models.language_model import LanguageModel, ModelState


def log_likelihoods(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    answers: Sequence[Sequence[str]],
    state: ModelState | None = None,
    *,
    batch_size: int = 64,
    length: int | None = None,
) -> Float[np.ndarray, "N K"]:
    """How likely each answer is after its prompt, in nats, summed over its tokens.

    Prompts of many lengths are read at a time, each from the same state, as if it were alone.

    Args:
      model: that is asked.
      params: of the model.
      tokenizer: of the model; prompts and answers are encoded apart.
      prompts: N texts, none of them empty.
      answers: K to each of them, none of them empty.
      state: of one sequence, from which every prompt goes on; None starts a context.
      batch_size: answers that are scored at a time.
      length: tokens that none is longer than with its prompt, so that calls share one program; None for
        those of the longest.

    Raises:
      ValueError: for a text without a token, and where numbers of answers differ.
    """
    if len({len(some) for some in answers}) != 1 or len(answers) != len(prompts):
        raise ValueError("each prompt needs answers, and as many as every other")
    rows, told = [], []
    for prompt, some in zip(prompts, answers, strict=True):
        before = np.asarray(tokenizer.encode(prompt))
        if state is None:
            before = np.concatenate([np.asarray(tokenizer.before, np.int32), before])
        for one in some:
            after = np.asarray(tokenizer.encode(one))
            if not len(before) or not len(after):
                raise ValueError(f"prompt {prompt!r} or answer {one!r} has no token")
            rows.append(np.concatenate([before, after]))
            told.append(len(after))
    length = max(map(len, rows)) if length is None else length
    tokens = np.stack([np.pad(row, (0, length - len(row))) for row in rows])
    likelihoods: list[float] = []
    for first in range(0, len(rows), batch_size):
        part = tokens[first : first + batch_size]
        part = np.pad(part, ((0, min(batch_size, len(rows)) - len(part)), (0, 0)))  # one program
        losses = np.asarray(row_losses(model, params, part[:, :-1], part[:, 1:], state))
        for row, count, loss in zip(rows[first:], told[first:], losses, strict=False):
            likelihoods.append(-float(loss[len(row) - 1 - count : len(row) - 1].sum()))
    return np.array(likelihoods).reshape(len(prompts), -1)


@functools.partial(jax.jit, static_argnames="model")
def row_losses(
    model: LanguageModel,
    params: Any,
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    state: ModelState | None,
) -> Float[Array, "B T"]:
    """Losses of each row's targets, read by itself from the state of one sequence."""

    def one(tokens: Array, targets: Array) -> Array:
        return score_segment(model, params, tokens[None], targets[None], state)[0][0]

    return jax.vmap(one)(tokens, targets)


def share_won(likelihoods: Float[np.ndarray, "N K"]) -> float:
    """The share of questions whose first answer is likelier than every other; a tie is lost.

    Example:
      >>> share_won(np.array([[-1.0, -2.0, -3.0], [-1.0, -1.0, -3.0]]))
      0.5
    """
    return float((likelihoods[:, :1] > likelihoods[:, 1:]).all(axis=1).mean())
