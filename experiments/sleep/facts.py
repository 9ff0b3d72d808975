"""What is left of the facts of a world after a night, beside what other ways of learning them leave.

    python experiments/sleep/words.py runs/facts/words.json
    python experiments/sleep/facts_pretrain.py --workdir=runs/facts/model
    python experiments/sleep/facts.py --run=runs/facts/model --workdir=experiments/sleep/facts
"""

import argparse
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from facts_pretrain import CHUNK, FIRST_NEW, LENGTH, PHRASINGS, TRAINED, batches, document, facts_of, whole_chunks

from hope_jax.commands.trained_model import load_model
from hope_jax.data.json_lines import add_json_line, read_json_lines
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.evaluation.choices import log_likelihoods, row_losses, share_won
from hope_jax.evaluation.world import KINDS, Question, ask, tell
from hope_jax.inference.level_tools import learnt_in
from hope_jax.inference.sampling import Context, read, sample
from hope_jax.models import LanguageModel
from hope_jax.models.in_context import HeldState
from hope_jax.models.language_model import ModelState, init_state
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.cycle import sleep
from hope_jax.sleep.imitation import policy_gradient_loss, reward
from hope_jax.sleep.readers import Reader, as_batch, axes, readers_of
from hope_jax.sleep.samples import Samples, mean_of, openings_of
from hope_jax.sleep.seeding import Lesson, keep_samples

OWN = 96  # pieces of the text, nearly all that there are
LONGEST = 40  # of openings
OTHERS = 1_000_000  # a seed of documents that is not one of training's
PEOPLE, KINDS_EACH = 4, 4  # facts of a world: one of each kind about each
OPENING = 8  # tokens of the text with which each sample begins
SELECTION = (1000, 1001)  # seeds that choose rates, and are not reported
SEEDS = (0, 1, 2)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
NIGHT: dict[str, Any] = {
    "steps": 100,
    "samples": 16,
    "kept_samples": 256,
    "tokens": 24,
    "lam": 0.5,
    "a": 0.9,
    "experts": 1,
    "expert_width": 64,
}


class Model(NamedTuple):
    """A trained model."""

    model: LanguageModel
    params: Any
    tokenizer: Tokenizer


class World(NamedTuple):
    """What is read, and what is asked.

    Attributes:
      ids: of the text, whole chunks of it.
      begin: of its first token that is not blank.
      questions: each fact, asked for as it was not told.
    """

    ids: np.ndarray
    begin: int
    questions: list[Question]


class Learnt(NamedTuple):
    """Who is asked: parameters, and a state in which nothing is read, or the text."""

    params: Any
    state: ModelState | None


def world_of(tokenizer: Tokenizer, seed: int) -> World:
    """A world for which nothing was trained."""
    random = np.random.default_rng([seed, 4])
    facts = facts_of(FIRST_NEW + seed, PEOPLE, KINDS_EACH)
    ways = random.integers(PHRASINGS, size=len(facts))
    lines = [tell(fact, int(way)) for fact, way in zip(facts, ways, strict=True)]
    text = "".join(f"{line}\n" for line in lines) + "\n"
    ids = whole_chunks(tokenizer, text)
    questions = []
    for question, way in zip(ask(facts, random), ways, strict=True):
        (fact,) = question.facts
        for other in range(PHRASINGS):
            if other != way:
                prompt = KINDS[fact.kind].asked[other].format(name=fact.name)
                questions.append(question._replace(prompt=prompt))
    return World(ids, len(ids) - len(tokenizer.encode(text)), questions)


def openings_from(
    tokenizer: Tokenizer, world: World, seed: int, others: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of the text, and how other documents begin, of any length.

    Returns:
      Rows, filled up at their ends, and how much of each counts.
    """
    own = np.lib.stride_tricks.sliding_window_view(world.ids, OPENING)[-OWN:]
    rows = np.zeros((len(own) + others, LONGEST), np.int32)
    rows[: len(own), :OPENING] = own
    lengths = np.full(len(rows), OPENING)
    random = np.random.default_rng([seed, 5])
    for place in range(len(own), len(rows)):
        rows[place] = beginning(tokenizer, random, LONGEST)
        lengths[place] = random.integers(OPENING, LONGEST + 1)
    lengths[len(own) :][:1] = LONGEST  # so that all seeds share a program
    return rows, lengths


def beginning(tokenizer: Tokenizer, random: np.random.Generator, length: int) -> np.ndarray:
    """So many tokens from the beginning of another document, one of the training's worlds."""
    while True:
        ids, known = document(tokenizer, int(random.integers(TRAINED)), LENGTH, seed=OTHERS)
        (blank,) = tokenizer.encode("\n")
        first = int(np.flatnonzero(ids != blank)[0])
        if first and known.any():
            return ids[max(0, first - int(random.integers(1, 9))) :][:length]


def measured(
    reader: Model, learnt: Learnt, questions: Sequence[Question]
) -> dict[str, float]:
    """Share of questions won, and mean log-likelihood of the right answers."""
    found = log_likelihoods(
        reader.model,
        learnt.params,
        reader.tokenizer,
        [f"\n{question.prompt}" for question in questions],
        [(question.answer, *question.wrong) for question in questions],
        learnt.state,
        batch_size=128,
        length=12,
    )
    return {
        "won": round(share_won(found), 4),
        "log_likelihood": round(float(found[:, 0].mean()), 3),
    }


def held_out(reader: Model, learnt: Learnt) -> dict[str, float]:
    """Mean losses of other worlds' documents, of all tokens and of answers told before."""
    batch = next(batches(reader.tokenizer, TRAINED, 64, 64))
    state = learnt.state or init_state(reader.model, learnt.params, 1)
    losses = np.asarray(row_losses(reader.model, learnt.params, batch["tokens"], batch["targets"], state))
    answers = batch["answers"] > 0
    return {"loss": float(losses.mean()), "answers": float(losses[answers].mean())}


# Ways to learn.


def night_of(
    reader: Model, world: World, seed: int, rate: float, settings: SleepConfig, others: int = OWN
) -> tuple[Learnt, dict[str, Any]]:
    """A night."""
    prompts, lengths = openings_from(reader.tokenizer, world, seed, others)
    context = read(reader.model, reader.params, world.ids[None])
    state, night = sleep(
        reader.model,
        reader.params,
        context,
        jax.random.split(jax.random.key(seed), 1),
        settings,
        optimizer_of(rate),
        prompts=prompts,
        prompt_lengths=lengths,
    )
    found = {"divergence": [round(float(x[0]), 4) for x in (night.before, night.after)]}
    return Learnt(reader.params, state), found


@functools.lru_cache
def optimizer_of(rate: float) -> optax.GradientTransformation:
    """One object for each rate, so that nothing is compiled again."""
    return optax.adam(rate)


def receiver_of(model: LanguageModel, params: Any) -> Any:
    """1 for what a night without expansion trains: the MLPs beside which experts would lie; else 0."""
    first = model.config.num_layers - model.config.adapting_blocks

    def mask(path: tuple[Any, ...], leaf: Any) -> Any:
        mine = "'level_0'" in jax.tree_util.keystr(path)
        return jnp.full_like(leaf, mine) if not mine else jnp.zeros_like(leaf).at[first:].set(1)

    return jax.tree_util.tree_map_with_path(mask, params)


def everything(model: LanguageModel, params: Any) -> Any:
    """1 for all."""
    return jax.tree.map(jnp.ones_like, params)


def dense_night_of(
    reader: Model, world: World, seed: int, rate: float, settings: SleepConfig, others: int = OWN
) -> tuple[Learnt, dict[str, Any]]:
    """The night without an expert: the receiving MLPs themselves learn the same, of the same samples."""
    model, params = reader.model, reader.params
    context = read(model, params, world.ids[None])
    lesson_key, key = jax.random.split(jax.random.key(seed))
    openings = openings_of(*openings_from(reader.tokenizer, world, seed, others))
    lesson = Lesson(context, context.state, lesson_key[None], openings)
    lesson = keep_samples(model, params, lesson, settings)
    kept = jax.tree.map(lambda leaf: leaf[0], lesson.kept)
    mask, optimizer = receiver_of(model, params), optimizer_of(rate)
    state, learnt = jax.jit(optimizer.init)(params), params
    for step in range(settings.steps):
        learnt, state, divergence = dense_step(
            model, params, learnt, context, kept, state, mask, key, step, settings, optimizer
        )
    return Learnt(learnt, None), {"divergence": [round(float(divergence), 4)]}


def fresh(model: LanguageModel, params: Any, size: int) -> ModelState:
    """A batch that has read nothing, and whose levels are held."""
    state = init_state(model, params, size)
    adapting, continuum = learnt_in(state)
    weights = tuple(jax.tree.map(lambda w: w[:, 0], level.weights) for level in continuum.levels)
    return state._replace(adapting=HeldState(adapting.blocks.sequence, weights, ()))


@functools.partial(jax.jit, static_argnames=("model", "settings", "optimizer"))
def dense_step(
    model: LanguageModel,
    params: Any,
    learnt: Any,
    context: Context,
    kept: Samples,
    state: Any,
    mask: Any,
    key: Any,
    step: Any,
    settings: SleepConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[Any, Any, Any]:
    """One step: parameters, the optimiser's state, and the divergence."""
    count, size = kept.tokens.shape[0], settings.samples
    places = (step % count * size + jnp.arange(size)) % count
    original = jax.tree.map(lambda leaf: leaf[places], kept)
    tokens, spoken, rewards = original.tokens, original.spoken, jnp.zeros((size, 1))
    if settings.student_speaks:
        for_starts, for_tokens = jax.random.split(jax.random.fold_in(key, step))
        starts = jax.random.randint(for_starts, (size,), original.start, original.end)
        many = lambda leaf: jnp.repeat(leaf, settings.continuations, 0)
        given, starts, end = many(tokens), many(starts), many(original.end)
        speaker = Context(fresh(model, learnt, len(given)), jnp.zeros(()))
        speaker = read(model, learnt, given[:, :OPENING], speaker)
        said, _ = sample(
            model,
            learnt,
            speaker,
            for_tokens,
            num_tokens=given.shape[1] - OPENING,
            given=given[:, OPENING:],
            given_length=starts - OPENING,
        )
        said = jnp.concatenate([given[:, :OPENING], said], 1)
        rewards = reward(said, given, end, end, gam=0, z0=settings.largest_distance)
        rewards = rewards.reshape(size, settings.continuations)
        tokens = jnp.concatenate([tokens, said])
        spoken = jnp.concatenate([spoken, Samples(said, starts, end).spoken])
    inputs, following, counted = tokens[:, :-1], tokens[:, 1:], spoken[:, 1:]

    def taught(teacher: Reader) -> Any:
        state = as_batch(model, teacher, len(tokens)).state
        return model.apply({"params": params}, inputs, state)[0]

    (theirs,) = jax.vmap(taught, in_axes=(axes(model),))(readers_of(context))

    def loss(learnt: Any) -> tuple[Any, Any]:
        mine = model.apply({"params": learnt}, inputs, fresh(model, learnt, len(tokens)))[0]
        divergence = settings.divergence_function(theirs, mine)
        of_teacher = mean_of(divergence[:size], counted[:size])
        if not settings.student_speaks:
            return of_teacher, of_teacher
        of_student = mean_of(divergence[size:], counted[size:])
        logs = jnp.take_along_axis(jax.nn.log_softmax(mine), following[..., None], -1)[..., 0]
        summed = jnp.sum(logs[size:] * counted[size:], 1).reshape(rewards.shape)
        distilled = (1 - settings.lam) * of_teacher + settings.lam * of_student
        imitated = policy_gradient_loss(summed, rewards)
        return settings.a * distilled + (1 - settings.a) * imitated, of_teacher

    (_, divergence), gradient = jax.value_and_grad(loss, has_aux=True)(learnt)
    gradient = jax.tree.map(jnp.multiply, gradient, mask)
    updates, state = optimizer.update(gradient, state, learnt)
    return optax.apply_updates(learnt, updates), state, divergence


def fine_tuned(
    reader: Model,
    world: World,
    seed: int,
    rate: float,
    settings: SleepConfig,
    trains: Callable[..., Any] = everything,
    others: int = 0,
) -> tuple[Learnt, dict[str, Any]]:
    """Trained on pieces of the text, as many and as long as the sequences of a night.

    With `others`, half of them are beginnings of so many other documents.
    """
    random, learnt = np.random.default_rng([seed, 6]), reader.params
    length = LONGEST + settings.tokens
    size = settings.samples * (1 + settings.student_speaks * settings.continuations)
    text = world.ids[world.begin - 1 :]
    pieces = np.lib.stride_tricks.sliding_window_view(text, length)
    rest = [beginning(reader.tokenizer, random, length) for _ in range(others)]
    mask, optimizer = trains(reader.model, reader.params), optimizer_of(rate)
    state = jax.jit(optimizer.init)(learnt)
    for _ in range(settings.steps):
        rows = pieces[random.integers(len(pieces), size=size)]
        if others:
            rows[::2] = np.stack(rest)[random.integers(others, size=len(rows[::2]))]
        learnt, state, loss = tuning_step(reader.model, learnt, state, mask, rows, optimizer)
    return Learnt(learnt, None), {"loss": round(float(loss), 4)}


@functools.partial(jax.jit, static_argnames=("model", "optimizer"))
def tuning_step(
    model: LanguageModel,
    learnt: Any,
    state: Any,
    mask: Any,
    rows: Any,
    optimizer: optax.GradientTransformation,
) -> tuple[Any, Any, Any]:
    def loss(learnt: Any) -> Any:
        variables, pair = {"params": learnt}, (rows[:, :-1], rows[:, 1:])
        return jnp.mean(model.apply(variables, *pair, method="token_losses"))

    value, gradient = jax.value_and_grad(loss)(learnt)
    gradient = jax.tree.map(jnp.multiply, gradient, mask)
    updates, state = optimizer.update(gradient, state, learnt)
    return optax.apply_updates(learnt, updates), state, value
