"""The second stage of a night: a reader dreams, tries what it has dreamt, and learns what helps.

The dreams are what the model says as it was before the night, each with a random expert of every router
opened fully. Those are tried that would change the newest expert most, and some others: a copy of that
expert is trained on each alone, and the reader is scored with it. On the dreams by which the score has
risen the expert itself is trained, where texts are rehearsed beside them, as in the night's steps.
Nothing else changes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from hope_jax.models.language_model import LanguageModel, ModelState
from hope_jax.sleep.config import DreamConfig, SleepConfig
from hope_jax.sleep.dreaming import choose_dreams, gradient_norms, learn_from, rewards
from hope_jax.sleep.expansion import Expert, pools_for
from hope_jax.sleep.random_expert import everyones, open_random_expert
from hope_jax.sleep.readers import Reader, as_batch, axes, equipped, newest
from hope_jax.sleep.samples import Samples, mean_of, say, without_openings
from hope_jax.sleep.seeding import (
    Kept,
    Lesson,
    both_readers,
    moved_on,
    newest_expert,
    with_expert,
)

_DREAMS = 2**31 + 1  # neither a step nor what no step sees has that number

# Of a model, its parameters and the state of one sequence; a scalar, higher where better.
ReaderScore = Callable[[LanguageModel, Any, ModelState], Float[Array, ""]]


class Dreams(NamedTuple):
    """What each reader has dreamt, and what came of it.

    Attributes:
      samples: all m dreams, arrays (B, m, ...).
      norms: of the gradient of each.
      tried: which of them, those of the largest norm first.
      scores: of each trial.
      reward: 1 for those that helped.
      losses: of each step on these; zeros where none has helped.
      before: score without them.
      after: score of who has learned from them.
    """

    samples: Samples
    norms: Float[np.ndarray, "B m"]
    tried: Int[np.ndarray, "B n"]
    scores: Float[np.ndarray, "B n"]
    reward: Float[np.ndarray, "B n"]
    losses: Float[np.ndarray, "B steps"]
    before: Float[np.ndarray, " B"]
    after: Float[np.ndarray, " B"]


def dream(
    model: LanguageModel,
    params: Any,
    lesson: Lesson,
    settings: SleepConfig,
    dreaming: DreamConfig,
    score: ReaderScore,
    *,
    vocab_size: int | None = None,
    on_trial: Callable[[int], None] = lambda tried: None,
) -> tuple[ModelState, Dreams]:
    """Lets every reader of a batch dream, each by itself.

    It may also be called by itself: the teacher is who dreams, the student, with an expert from `expand`,
    who learns.

    Args:
      model: that dreams.
      params: of the model; they do not change.
      lesson: of the night, in which the student has learned what seeding teaches; with texts from
        `keep_texts`, they are rehearsed where it learns from dreams, not in trials.
      settings: of the night.
      dreaming: how many dreams, and what is made of them.
      score: `(model, params, state) -> number`, higher where better, compiled with the rest; its
        state is of one sequence. One with arrays of its own is a `jax.tree_util.Partial`. Keep one
        function for all nights: another is compiled anew.
      vocab_size: see `seed_step`.
      on_trial: called after each trial, with how many there were.

    Returns:
      The student's state, in which only its newest expert differs, and what happened.
    """
    score = score if isinstance(score, jax.tree_util.Partial) else jax.tree_util.Partial(score)
    level = settings.level
    dreamt = _dreamt(model, params, lesson, settings, dreaming, vocab_size)
    samples, norms, tried = jax.tree.map(np.asarray, dreamt)
    readers = np.arange(len(tried))[:, None]
    chosen = jax.tree.map(lambda leaf: leaf[readers, tried], samples)
    look = functools.partial(_scored, model, params, lesson, level=level, score=score)
    train = functools.partial(_trained, model, params, settings=settings, vocab_size=vocab_size)
    alone = lesson._replace(rehearsed=None)
    before = np.asarray(look(newest_expert(model, lesson.student, level)))
    scores = np.zeros(tried.shape, np.float32)
    for number in range(tried.shape[1]):
        one = jax.tree.map(lambda leaf, number=number: leaf[:, number, None], chosen)
        all_of_it = np.ones((len(tried), 1), np.float32)
        copy, _ = train(alone, one, all_of_it, rate=dreaming.trial_rate, steps=dreaming.trial_steps)
        scores[:, number] = look(copy)
        on_trial(number + 1)
    reward = np.asarray(rewards(jnp.asarray(before[:, None]), jnp.asarray(scores)))
    expert, losses = train(
        lesson, chosen, reward, rate=dreaming.dream_rate, steps=dreaming.dream_steps
    )
    after = np.asarray(look(expert))
    dreams = Dreams(samples, norms, tried, scores, reward, np.asarray(losses), before, after)
    return with_expert(model, lesson.student, expert, level), dreams


@functools.partial(jax.jit, static_argnames=("model", "settings", "dreaming", "vocab_size"))
def _dreamt(
    model: LanguageModel,
    params: Any,
    lesson: Lesson,
    settings: SleepConfig,
    dreaming: DreamConfig,
    vocab_size: int | None,
) -> tuple[Samples, Float[Array, "B m"], Int[Array, "B n"]]:
    """All dreams, their norms, and which are tried."""
    here = pools_for(model.config, settings.level)

    def one(teacher: Reader, student: Reader, key: Array) -> Any:
        key = jax.random.fold_in(key, _DREAMS)
        for_dreams, for_experts, for_choice = jax.random.split(key, 3)
        if dreaming.random_expert:
            keys = jax.random.split(for_experts, dreaming.dreams)
            opened = jax.vmap(open_random_expert, in_axes=(0, None, None), out_axes=1)
            known = everyones(model.config, params)
            teacher = teacher._replace(experts=opened(keys, teacher.experts, known))
        samples = say(
            model,
            params,
            as_batch(model, teacher, dreaming.dreams),
            for_dreams,
            lesson.openings,
            num_tokens=dreaming.dream_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            vocab_size=vocab_size,
        )
        if dreaming.without_openings:
            samples = without_openings(samples, dreaming.dream_tokens)
        expert = newest(student, here)
        norms = gradient_norms(_loss_of(model, params, student, here), expert, samples)
        return samples, norms, choose_dreams(for_choice, norms, dreaming.best, dreaming.others)

    readers = both_readers(lesson)
    return jax.vmap(one, in_axes=(axes(model), axes(model), 0))(*readers, lesson.keys)


@functools.partial(jax.jit, static_argnames=("model", "level"))
def _scored(
    model: LanguageModel,
    params: Any,
    lesson: Lesson,
    expert: Expert,
    level: int,
    score: ReaderScore,
) -> Float[Array, " B"]:
    """The score of each student with such an expert."""
    here = pools_for(model.config, level)

    def one(student: Reader, expert: Expert) -> Array:
        reader = equipped(student, expert, here)
        alone = jax.tree.map(lambda leaf: leaf[:, None], reader.experts)
        state = as_batch(model, reader._replace(experts=alone), 1).state
        return jnp.asarray(score(model, params, state), jnp.float32)

    return jax.vmap(one, in_axes=(axes(model), 0))(both_readers(lesson)[1], expert)


@functools.partial(jax.jit, static_argnames=("model", "settings", "vocab_size", "rate", "steps"))
def _trained(
    model: LanguageModel,
    params: Any,
    lesson: Lesson,
    dreams: Samples,
    reward: Float[Array, "B n"],
    settings: SleepConfig,
    vocab_size: int | None,
    rate: float,
    steps: int,
) -> tuple[Expert, Float[Array, "B steps"]]:
    """Each newest expert after training on the dreams that are rewarded, and the losses."""
    here, optimizer = pools_for(model.config, settings.level), optax.adam(rate)

    def one(
        student: Reader, dreams: Samples, reward: Array, rehearsed: Kept | None
    ) -> tuple[Expert, Array]:
        expert, loss = newest(student, here), _loss_of(model, params, student, here)
        besides = None
        if rehearsed is not None:

            def besides(expert: Expert, step: Array) -> Array:
                having = equipped(student, expert, here)
                moved = moved_on(model, params, having, rehearsed, step, settings, vocab_size)
                return settings.rehearsal * moved

        return learn_from(loss, expert, dreams, reward, optimizer, steps=steps, besides=besides)

    mapped = jax.vmap(one, in_axes=(axes(model), 0, 0, 0))
    return mapped(both_readers(lesson)[1], dreams, reward, lesson.rehearsed)


def _loss_of(
    model: LanguageModel, params: Any, student: Reader, here: Bool[np.ndarray, "A P"]
) -> Callable[[Expert, Samples], Float[Array, ""]]:
    """The mean loss of a dream's tokens, in nats, of one student with such an expert."""

    def loss(expert: Expert, dream: Samples) -> Array:
        state = as_batch(model, equipped(student, expert, here), 1).state
        tokens = dream.tokens[None]
        inputs = tokens[:, :-1], tokens[:, 1:], state
        losses, _ = model.apply({"params": params}, *inputs, method="score")
        return mean_of(losses[0], dream.spoken[1:])

    return loss
