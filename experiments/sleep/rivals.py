"""Other ways to make a text part of a model, at the steps and tokens of a night."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from hope_jax.inference.sampling import Context
from hope_jax.models import LanguageModel
from hope_jax.models.in_context import slow_weights
from hope_jax.models.language_model import ModelState
from hope_jax.models.stack import with_held
from hope_jax.sleep.expansion import pools_for
from hope_jax.sleep.readers import Reader, as_batch, axes, equipped, newest, readers_of
from hope_jax.sleep.seeding import Lesson, with_expert


class Sequences(NamedTuple):
    """What is trained on.

    Attributes:
      tokens: that are read, by who has read nothing before.
      wanted: ids that follow, or final activations of a teacher whose probabilities are to be had.
      counted: which of them are trained on.
    """

    tokens: Int[Array, "n T"]
    wanted: Int[Array, "n T"] | Float[Array, "n T D"]
    counted: Bool[Array, "n T"]


class Training(NamedTuple):
    """How.

    Attributes:
      optimizer: any.
      steps: of it.
      size: sequences of a step, taken in turn.
    """

    optimizer: optax.GradientTransformation
    steps: int
    size: int


def from_text(ids: Int[np.ndarray, " N"], length: int, seed: int) -> Sequences:
    """All parts of a text that have such a length, in an order drawn by a seed."""
    parts = np.lib.stride_tricks.sliding_window_view(ids, length)
    parts = jnp.asarray(np.random.default_rng(seed).permutation(parts))
    return Sequences(parts[:, :-1], parts[:, 1:], jnp.ones(parts[:, 1:].shape, bool))


def from_teacher(lesson: Lesson) -> Sequences:
    """What the teacher of a night with kept samples has said to its only reader."""
    assert lesson.kept is not None
    samples, taught, _ = jax.tree.map(lambda leaf: leaf[0], lesson.kept)
    return Sequences(samples.tokens[:, :-1], taught, samples.spoken[:, 1:])


def train_expert(
    model: LanguageModel, params: Any, lesson: Lesson, sequences: Sequences, training: Training
) -> ModelState:
    """The student of a night, its new expert trained."""
    here, student = pools_for(model.config, 0), _only_student(model, lesson)

    def having(expert: Any, size: int) -> ModelState:
        return as_batch(model, equipped(student, expert, here), size).state

    expert = _descend(model, params, newest(student, here), having, sequences, training)
    return with_expert(model, lesson.student, jax.tree.map(lambda leaf: leaf[None], expert), 0)


def train_mlps(
    model: LanguageModel, params: Any, lesson: Lesson, sequences: Sequences, training: Training
) -> Any:
    """The parameters of the model, the MLPs trained beside which the new expert would be."""
    student = _only_student(model, lesson)

    def having(weights: Any, size: int) -> ModelState:
        state = as_batch(model, student, size).state
        adapting: Any = state.adapting
        return state._replace(adapting=adapting._replace(weights=weights, experts=()))

    weights = slow_weights(model.config, params)
    weights = _descend(model, params, weights, having, sequences, training)
    still = model.config.num_layers - model.config.adapting_blocks
    upper = with_held(jax.tree.map(lambda w: w[still:], params["blocks"]), weights)
    put = lambda whole, part: whole.at[still:].set(part.astype(whole.dtype))
    return {**params, "blocks": jax.tree.map(put, params["blocks"], upper)}


def _only_student(model: LanguageModel, lesson: Lesson) -> Reader:
    """The student of a night with one reader, as functions that are mapped over readers see it."""
    student, places = readers_of(Context(lesson.student, lesson.teacher.logits)), axes(model)
    take = lambda leaf, axis: leaf if axis is None else jnp.squeeze(leaf, axis)
    leaves = [take(*pair) for pair in zip(student.leaves, places.leaves, strict=True)]
    experts = jax.tree.map(lambda leaf: take(leaf, places.experts), student.experts)
    return Reader(leaves, experts, take(student.logits, places.logits))


def _descend(
    model: LanguageModel,
    params: Any,
    trained: Any,
    having: Callable[[Any, int], ModelState],
    sequences: Sequences,
    training: Training,
) -> Any:
    """What is trained, after all steps; `having` makes a batch of readers who have it."""

    def apply(params: Any, method: str, *inputs: Any) -> Any:
        return model.apply({"params": params}, *inputs, method=method)

    @jax.jit
    def below_of(params: Any, tokens: Array) -> Array:
        return cast(Array, apply(params, "below", tokens, having(trained, len(tokens)))[0])

    @jax.jit
    def step(params: Any, trained: Any, state: Any, below: Array, some: Sequences) -> Any:
        def loss(trained: Any) -> Array:
            hidden = apply(params, "hidden_above", below, having(trained, len(below)))
            said = jax.nn.log_softmax(apply(params, "logits", hidden))
            if jnp.issubdtype(some.wanted.dtype, jnp.integer):
                losses = -jnp.take_along_axis(said, some.wanted[..., None], -1)[..., 0]
            else:  # forward KL, but for what training cannot change
                theirs = jax.nn.softmax(apply(params, "logits", some.wanted))
                losses = -jnp.sum(theirs * said, -1)
            return jnp.sum(losses * some.counted) / jnp.sum(some.counted)

        updates, state = training.optimizer.update(jax.grad(loss)(trained), state, trained)
        return optax.apply_updates(trained, updates), state

    count, size = len(sequences.tokens), training.size
    parts = np.array_split(np.arange(count), -(-count // (2 * size)))
    below = jnp.concatenate([below_of(params, sequences.tokens[part]) for part in parts])
    state = jax.jit(training.optimizer.init)(trained)
    for number in range(training.steps):
        places = (number * size + np.arange(size)) % count
        some = Sequences(*(leaf[places] for leaf in sequences))
        trained, state = step(params, trained, state, below[places], some)
    return trained
