"""A trained model that is trained on what comes in stages, one after the other, by gradient descent."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from hope_jax.models.language_model import LanguageModel
from hope_jax.optim import consolidate, diagonal_fisher, elastic_weights


class Windows(NamedTuple):
    """A text cut into pieces of one length.

    Attributes:
      tokens: that are read, int32.
      targets: that follow each, int32.
      weights: 0 behind the end of the text, else 1.
    """

    tokens: Int[np.ndarray, "N W"]
    targets: Int[np.ndarray, "N W"]
    weights: Float[np.ndarray, "N W"]


class Training(NamedTuple):
    """How a model is trained on each stage.

    Attributes:
      rate: of Adam, whose state begins anew with each stage.
      readings: passes over as many tokens as the stage has.
      window: tokens of a piece, each of which is read from a fresh context.
      batch: pieces of a step.
      memory: pieces of earlier stages that are kept, of each as many; half of every batch is drawn from
        them, so that as many tokens are read and half as many are new. 0 for none.
      strength: of `hope_jax.optim.elastic_weights`, with a Fisher of each stage's own pieces; 0 for none.
    """

    rate: float
    readings: int = 1
    window: int = 32
    batch: int = 2
    memory: int = 0
    strength: float = 0.0


def windows(tokens: Int[np.ndarray, " T"], length: int) -> Windows:
    """Cuts a text, so that each token but its first is a target once.

    Example:
      >>> pieces = windows(np.arange(6), 3)
      >>> pieces.tokens.tolist(), pieces.targets.tolist()
      ([[0, 1, 2], [3, 4, 0]], [[1, 2, 3], [4, 5, 0]])
    """
    count = len(tokens) - 1
    pad = lambda part: np.pad(part, (0, -count % length)).reshape(-1, length)
    return Windows(pad(tokens[:-1]), pad(tokens[1:]), pad(np.ones(count, np.float32)))


def train_in_stages(
    model: LanguageModel,
    params: Any,
    stages: Sequence[Int[np.ndarray, " T"]],
    training: Training,
    seed: int = 0,
) -> Iterator[Any]:
    """Trains a model on each stage in turn: by itself, rehearsing earlier ones, or held to what it was.

    Args:
      model: that is trained.
      params: of the model; they stay usable.
      stages: tokens of each.
      training: how.
      seed: of the order of pieces, which is another one at each reading, and of what is kept.

    Yields:
      The parameters after each stage.

    Raises:
      ValueError: for numbers that do not fit.
    """
    if training.readings < 1 or training.batch < 1 or training.window < 1:
        raise ValueError(
            f"readings={training.readings}, batch={training.batch} and window={training.window} must "
            f"be at least 1"
        )
    if training.memory and training.batch % 2:
        raise ValueError(
            f"batch={training.batch} has no half to be drawn from memory; make it even, or memory 0"
        )
    random = np.random.default_rng(seed)
    numbers = jnp.float32(training.rate), jnp.float32(training.strength)
    held, *_ = _optimizer(*numbers).init(params)
    kept: list[Windows] = []
    for stage in stages:
        new = windows(np.asarray(stage, np.int32), training.window)
        total = training.readings * len(new.tokens)
        fresh = _turns(random, len(new.tokens))
        rehearsed = [pieces for pieces in kept if len(pieces.tokens)]
        state = (held, *_optimizer(*numbers).init(params)[1:])
        for _ in range(-(-total // training.batch)):
            old = training.batch // 2 if rehearsed else 0
            batch = _take(new, [next(fresh) for _ in range(training.batch - old)])
            if old:
                batch = _joined([batch, *(_any_of(random, rehearsed) for _ in range(old))])
            params, state = _step(model, params, state, batch, *numbers)
        held = state[0]
        if training.strength:
            held = consolidate(held, params, _fisher(model, params, new))
        if training.memory:
            kept.append(new)
            share = training.memory // len(kept)
            kept = [_some_of(random, pieces, share) for pieces in kept]
        yield params


def _turns(random: np.random.Generator, count: int) -> Iterator[int]:
    """All numbers below `count` in some order, again and again."""
    while True:
        yield from random.permutation(count).tolist()


def _take(pieces: Windows, places: Sequence[int]) -> Windows:
    return Windows(*(part[list(places)] for part in pieces))


def _joined(several: Sequence[Windows]) -> Windows:
    return Windows(*(np.concatenate(parts) for parts in zip(*several, strict=True)))


def _any_of(random: np.random.Generator, kept: Sequence[Windows]) -> Windows:
    pieces = kept[int(random.integers(len(kept)))]
    return _take(pieces, [int(random.integers(len(pieces.tokens)))])


def _some_of(random: np.random.Generator, pieces: Windows, count: int) -> Windows:
    count = min(count, len(pieces.tokens))
    return _take(pieces, random.permutation(len(pieces.tokens))[:count].tolist())


def _optimizer(rate: Any, strength: Any) -> optax.GradientTransformationExtraArgs:
    return optax.chain(elastic_weights(strength), optax.adam(rate))


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def _step(
    model: LanguageModel, params: Any, state: Any, batch: Windows, rate: Array, strength: Array
) -> tuple[Any, Any]:
    mean_loss = lambda params: _summed(model, params, batch) / jnp.sum(batch.weights)
    updates, state = _optimizer(rate, strength).update(jax.grad(mean_loss)(params), state, params)
    return optax.apply_updates(params, updates), state


@functools.partial(jax.jit, static_argnames="model")
def _fisher(model: LanguageModel, params: Any, pieces: Windows) -> Any:
    """Of pieces as examples: what is squared is the gradient of one's summed loss."""

    def loss(params: Any, piece: Windows) -> Array:
        return _summed(model, params, jax.tree.map(lambda part: part[None], piece))

    return diagonal_fisher(loss, params, pieces)


def _summed(model: LanguageModel, params: Any, pieces: Windows) -> Array:
    variables = {"params": params}
    losses = model.apply(variables, pieces.tokens, pieces.targets, method="token_losses")
    return jnp.sum(cast(Array, losses) * pieces.weights)
