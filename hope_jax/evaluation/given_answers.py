"""How likely a model holds given answers to be, as one compiled function of its state."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from hope_jax.data.tokenizers import Tokenizer
from hope_jax.evaluation.choices import row_losses
from hope_jax.models.language_model import LanguageModel, ModelState


class Answers(NamedTuple):
    """Prompts with their answers behind them, in batches.

    Attributes:
      tokens: ids, filled up at the end of each row.
      told: which of them belong to an answer; none in rows that fill up the last batch.
    """

    tokens: Int[np.ndarray, "n B T"]
    told: Bool[np.ndarray, "n B T"]


def answers_of(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    answers: Sequence[str],
    opening: Sequence[int] = (),
    *,
    batch_size: int = 16,
) -> Answers:
    """Rows of prompts and answers, encoded apart.

    Args:
      tokenizer: of the model.
      prompts: texts, none of them empty.
      answers: one to each, none of them empty.
      opening: ids before each prompt.
      batch_size: rows that are read at a time.

    Raises:
      ValueError: where there are none, and for a text without a token.
    """
    if not prompts:
        raise ValueError("there is no question")
    rows, starts = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        before, after = (np.asarray(tokenizer.encode(text), np.int32) for text in (prompt, answer))
        if not len(before) or not len(after):
            raise ValueError(f"prompt {prompt!r} or answer {answer!r} has no token")
        before = np.concatenate([np.asarray(opening, np.int32), before])
        rows.append(np.concatenate([before, after]))
        starts.append(len(before))
    size = min(batch_size, len(rows))
    shape = -(-len(rows) // size) * size, max(map(len, rows))
    tokens, told = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
        tokens[place, : len(row)] = row
        told[place, start : len(row)] = True
    return Answers(*(array.reshape(-1, size, shape[1]) for array in (tokens, told)))


def mean_log_probability(
    answers: Answers, model: LanguageModel, params: Any, state: ModelState | None
) -> Float[Array, ""]:
    """The log-probability of an answer, in nats, summed over its tokens; the mean of all answers.

    Args:
      answers: from `answers_of`.
      model: that is asked.
      params: of the model.
      state: of one sequence, from which every prompt goes on; None starts a context.
    """

    def batch(rows: Answers) -> Array:
        inputs, targets = rows.tokens[:, :-1], rows.tokens[:, 1:]
        losses = row_losses(model, params, inputs, targets, state)
        return jnp.sum(losses * rows.told[:, 1:])

    asked = jnp.sum(jnp.any(answers.told, axis=-1))
    return -jnp.sum(jax.lax.map(batch, answers)) / asked
