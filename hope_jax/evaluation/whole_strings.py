"""The strictest score of labelled strings: one counts if the class of every position is right."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from hope_jax.data.examples import Examples
from hope_jax.models import LanguageModel

Predict = Callable[[Int[np.ndarray, "B T"]], Any]


def are_right(predict: Predict, examples: Examples, batch_size: int = 50) -> Bool[np.ndarray, "N"]:
    """Which strings are right at every position that counts.

    Args:
      predict: gives the class it holds for likeliest at each position of a batch of ids.
      examples: to be told.
      batch_size: strings at a time, at most; the last batch is filled up.

    Example:
      >>> from hope_jax.data.examples import pad_examples
      >>> examples = pad_examples([[1, 1], [1]], [[0, 1], [0]])
      >>> are_right(lambda tokens: np.zeros_like(tokens), examples).tolist()
      [False, True]
    """
    count = len(examples.tokens)
    size = min(batch_size, count)
    right = np.zeros(count, bool)
    for first in range(0, count, size or 1):
        tokens, targets, weights = (values[first : first + size] for values in examples)
        filled = np.pad(tokens, ((0, size - len(tokens)), (0, 0)))  # one shape, one program
        classes = np.asarray(predict(filled))[: len(tokens)]
        right[first : first + size] = ((classes == targets) | (weights == 0)).all(axis=1)
    return right


def likeliest_classes(model: LanguageModel) -> Callable[[Any, Any], jax.Array]:
    """`classes(params, tokens)` of a model whose logits are those of classes, compiled on first use.

    A tie, as between logits that are no numbers, is an answer too: that of the first class.
    """
    return jax.jit(lambda params, tokens: model.apply({"params": params}, tokens)[0].argmax(-1))
