"""A night: compute, consolidate, update, in that order; and then dreams."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from hope_jax.inference.sampling import Context
from hope_jax.layers.experts import Experts
from hope_jax.models.language_model import LanguageModel, ModelState, init_state
from hope_jax.sleep.config import DreamConfig, SleepConfig
from hope_jax.sleep.dreams import Dreams, ReaderScore, dream
from hope_jax.sleep.expansion import expand, experts_of, make_room, with_experts
from hope_jax.sleep.layout import lay_out
from hope_jax.sleep.samples import Openings, openings_of
from hope_jax.sleep.seeding import (
    Lesson,
    Seeding,
    SeedingStep,
    begin_seeding,
    keep_samples,
    keep_texts,
    measure,
    newest_expert,
    seed_step,
    with_expert,
)
from hope_jax.sleep.student import student_of


class NightSoFar(NamedTuple):
    """Where a night is between two of its steps; with what it was begun with, it can go on from there.

    Attributes:
      seeding: after the last step.
      steps: what each step has found, arrays (steps, B).
    """

    seeding: Seeding
    steps: SeedingStep


OnStep = Callable[[NightSoFar], None]


class Night(NamedTuple):
    """What a night has done, for each reader.

    Attributes:
      kept: False if a loss was no finite number; then the night is dropped, for all readers of the batch.
      steps: what each step has found, arrays (steps, B).
      before: divergence before the first step, on samples that no step has seen.
      after: the same after the last, on the same samples.
      held_out_before: mean loss of the held-out texts, read without context; None if there are none.
      held_out_after: likewise.
      dreams: what came of them; None for a night without.
      after_dreams: divergence after them, on the same samples; None likewise.
    """

    kept: bool
    steps: SeedingStep
    before: Float[np.ndarray, " B"]
    after: Float[np.ndarray, " B"]
    held_out_before: Float[np.ndarray, " B"] | None = None
    held_out_after: Float[np.ndarray, " B"] | None = None
    dreams: Dreams | None = None
    after_dreams: Float[np.ndarray, " B"] | None = None


def sleep(
    model: LanguageModel,
    params: Any,
    context: Context,
    keys: Array,
    settings: SleepConfig,
    optimizer: optax.GradientTransformation,
    *,
    prompts: Int[Array, "N P"] | Int[np.ndarray, "N P"] | None = None,
    prompt_lengths: Int[np.ndarray, " N"] | None = None,
    rehearsed: Int[Array, "N T"] | Int[np.ndarray, "N T"] | None = None,
    texts: Int[Array, "N T"] | None = None,
    vocab_size: int | None = None,
    begun: Any = None,
    on_step: OnStep = lambda so_far: None,
    dreaming: DreamConfig | None = None,
    score: ReaderScore | None = None,
    on_trial: Callable[[int], None] = lambda tried: None,
) -> tuple[ModelState, Night]:
    """Lets every reader of a batch sleep, each by itself.

    Args:
      model: whose levels learn in context.
      params: of the model; they do not change.
      context: what the readers have read.
      keys: random keys, one for each reader.
      settings: of the night.
      optimizer: of the new experts, any of Optax's or `hope_jax.optim`. Keep one object for all nights:
        another is compiled anew.
      prompts: openings of the teacher's samples, of which each takes one at random; None for samples
        that go on from what the teacher has read.
      prompt_lengths: how many tokens of each opening count, from its start; None for all.
      rehearsed: ids of texts that who wakes should go on reading as before, of which each step takes as
        many as samples; None for none.
      texts: held-out ids whose loss is measured before and after, each from a fresh context.
      vocab_size: see `seed_step`.
      begun: what `on_step` was given by the same night before it was stopped, or the leaves of that; it
        goes on from there to the same bits.
      on_step: called after each step with the night so far. Dreams are not among its steps: a night that
        is stopped after the last of them dreams from the beginning.
      dreaming: of the dreams that follow; None for a night without.
      score: by which they are tried, see `hope_jax.sleep.dreams.dream`.
      on_trial: see there.

    Returns:
      The readers' state as they wake, in which nothing has been read unless the settings keep the
      context; and what happened. Of a night that is dropped, the state that was given.

    Raises:
      ValueError: if the model has no such level, there is no room for another expert, or there are dreams
        and nothing to try them by.
    """
    if dreaming is not None and dreaming.dreams and score is None:
        raise ValueError(
            f"dreams={dreaming.dreams} are tried by a score, and there is none; give one, or dreams=0"
        )
    openings = None if prompts is None else openings_of(prompts, prompt_lengths)
    # Compute: the new weights, applied to the student alone.
    lesson = begin_lesson(model, params, context, keys, settings, openings)
    # Consolidate: the teacher is still whole.
    if settings.kept_samples:
        lesson = keep_samples(model, params, lesson, settings, vocab_size)
    if rehearsed is not None:
        lesson = keep_texts(model, params, lesson, jnp.asarray(rehearsed, jnp.int32), settings)
    look = functools.partial(
        measure, model, params, lesson, settings=settings, vocab_size=vocab_size
    )
    seeding = begin_seeding(model, lesson, settings, optimizer)
    before = np.asarray(look(expert=seeding.expert))
    none: Any = np.zeros((0, len(keys)), np.float32)
    so_far = NightSoFar(seeding, SeedingStep(none, none, none))
    if begun is not None:
        so_far = jax.tree.unflatten(jax.tree.structure(so_far), jax.tree.leaves(begun))
        so_far = so_far._replace(seeding=lay_out(so_far.seeding))
    so_far, finite = seed_knowledge(
        model, params, lesson, so_far, settings, optimizer, vocab_size, on_step
    )
    (expert, *_), steps = so_far
    after = np.asarray(look(expert=expert)) if len(steps.loss) else before
    # Update: the student, with what it has learned, is who wakes.
    woken = with_expert(model, lesson.student, expert, settings.level)
    kept = finite and bool(np.isfinite(after).all())
    night = Night(kept, steps, before, after)
    if kept and dreaming is not None and dreaming.dreams and score is not None:
        woken, dreams = dream(
            model,
            params,
            lesson._replace(student=woken),
            settings,
            dreaming,
            score,
            vocab_size=vocab_size,
            on_trial=on_trial,
        )
        after = np.asarray(look(expert=newest_expert(model, woken, settings.level)))
        kept = bool(np.isfinite(dreams.losses).all() and np.isfinite(after).all())
        night = night._replace(kept=kept, dreams=dreams, after_dreams=after)
    if texts is not None:
        losses = (
            np.asarray(_held_out(model, params, experts_of(s), texts))
            for s in (lesson.teacher.state, woken)
        )
        night = night._replace(held_out_before=next(losses), held_out_after=next(losses))
    return (woken if kept else context.state), night


def begin_lesson(
    model: LanguageModel,
    params: Any,
    context: Context,
    keys: Array,
    settings: SleepConfig,
    openings: Openings | None = None,
) -> Lesson:
    """Who teaches whom, before anything is said: the readers as they are, and as they will wake.

    Args:
      model: whose levels learn in context.
      params: of the model.
      context: what the readers have read.
      keys: random keys, one for each reader.
      settings: of the night.
      openings: of the teacher's samples.

    Raises:
      ValueError: if the model has no such level, or there is no room for another expert.
    """
    state = make_room(model, context.state, settings.experts, settings.expert_width)
    lesson_keys, expert_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    student = student_of(model, params, state, settings)
    student = expand(model, student, settings.level, expert_keys)
    return lay_out(Lesson(Context(state, context.logits), student, lesson_keys, openings))


def seed_knowledge(
    model: LanguageModel,
    params: Any,
    lesson: Lesson,
    so_far: NightSoFar,
    settings: SleepConfig,
    optimizer: optax.GradientTransformation,
    vocab_size: int | None = None,
    on_step: OnStep = lambda so_far: None,
) -> tuple[NightSoFar, bool]:
    """Takes the steps of a night that are left; arguments are those of `seed_step` and `sleep`.

    Returns:
      The night after its last step; and whether all losses were finite. The step of the first that was
      not is the last.
    """
    while (finite := _is_finite(so_far)) and int(so_far.seeding.step) < settings.steps:
        seeding, found = seed_step(
            model, params, lesson, so_far.seeding, settings, optimizer, vocab_size
        )
        both = zip(so_far.steps, found, strict=True)
        joined: Any = [np.concatenate([old, np.asarray(new)[None]]) for old, new in both]
        steps = SeedingStep(*joined)
        so_far = NightSoFar(seeding, steps)
        on_step(so_far)
    return so_far, finite


def _is_finite(so_far: NightSoFar) -> bool:
    return bool(np.isfinite(so_far.steps.loss).all())


@functools.partial(jax.jit, static_argnames="model")
def _held_out(
    model: LanguageModel, params: Any, experts: Experts, texts: Int[Array, "N T"]
) -> Float[Array, " B"]:
    """Mean loss of texts under each reader's experts, with nothing read before."""
    fresh = init_state(model, params, texts.shape[0])

    def one(experts: Experts) -> Array:
        state = with_experts(fresh, experts)
        inputs = texts[:, :-1], texts[:, 1:], state
        losses, _ = model.apply({"params": params}, *inputs, method="score")
        return jnp.mean(losses)

    return jax.vmap(one, in_axes=1)(experts)
