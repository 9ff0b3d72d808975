"""What a model tells at each position, and how much of it is right."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from hope_jax.data.examples import Examples
from hope_jax.models import LanguageModel

Predict = Callable[[Int[np.ndarray, "B T"]], Any]


def positions_right(
    predict: Predict, examples: Examples, batch_size: int = 50
) -> Bool[np.ndarray, "N T"]:
    """At which positions the class is told.

    Args:
      predict: gives the class it holds for likeliest at each position of a batch of ids.
      examples: to be told.
      batch_size: strings at a time, at most; the last batch is filled up.

    Example:
      >>> from hope_jax.data.examples import pad_examples
      >>> examples = pad_examples([[1, 1]], [[0, 1]])
      >>> positions_right(lambda tokens: np.zeros_like(tokens), examples).tolist()
      [[True, False]]
    """
    size = min(batch_size, len(examples.tokens))
    right = np.zeros(examples.tokens.shape, bool)
    for first in range(0, len(right), size or 1):
        tokens, targets, _ = (values[first : first + size] for values in examples)
        filled = np.pad(tokens, ((0, size - len(tokens)), (0, 0)))  # one shape, one program
        right[first : first + size] = np.asarray(predict(filled))[: len(tokens)] == targets
    return right


def share_of_positions(predict: Predict, examples: Examples) -> float:
    """The share of positions that count whose class is told."""
    counts = examples.weights > 0
    return float(positions_right(predict, examples)[counts].mean())


def strings_right(
    predict: Predict, examples: Examples, batch_size: int = 50
) -> Bool[np.ndarray, " N"]:
    """Which strings are right at every position that counts: the strictest score.

    Args:
      predict: as for `positions_right`.
      examples: to be told.
      batch_size: as for `positions_right`.

    Example:
      >>> from hope_jax.data.examples import pad_examples
      >>> examples = pad_examples([[1, 1], [1]], [[0, 1], [0]])
      >>> strings_right(lambda tokens: np.zeros_like(tokens), examples).tolist()
      [False, True]
    """
    return (positions_right(predict, examples, batch_size) | (examples.weights == 0)).all(axis=1)


def share_of_strings(predict: Predict, examples: Examples) -> float:
    """The share of strings that are right at every position that counts."""
    return float(strings_right(predict, examples).mean())


def likeliest_classes(model: LanguageModel) -> Callable[[Any, Any], jax.Array]:
    """`classes(params, tokens)` of a model whose logits are those of classes, compiled on first use.

    A tie, as between logits that are no numbers, is an answer too: that of the first class.
    """
    return jax.jit(lambda params, tokens: model.apply({"params": params}, tokens)[0].argmax(-1))
