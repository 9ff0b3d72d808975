"""Knowledge seeding: one new expert learns from what its reader would have said before the night.

Teacher and student say the same things from two states. The teacher's is that of before, fast weights
included; the student's lacks what its level has given up, and has one expert more. Nothing but that
expert changes: their levels are held, and learn nothing from what is said. With F a divergence, d the
teacher's samples and d' the student's continuations of random prefixes of them,

    loss = a ((1 - lam) mean F(d) + lam mean F(d')) - (1 - a) E r(d', d)

where F(d') is taken of what the student has said, and the last term is descended by a policy gradient.
Texts may be rehearsed: their teacher is the student as the night begins, and `rehearsal` times the mean
divergence from it is added, so that what has nothing to do with the night stays as it was.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped

from hope_jax.inference.sampling import Context, read, sample
from hope_jax.models.language_model import LanguageModel, ModelState
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.expansion import (
    Expert,
    experts_of,
    last_active,
    pools_for,
    put,
    take,
    with_experts,
)
from hope_jax.sleep.imitation import policy_gradient_loss, reward
from hope_jax.sleep.layout import lay_out
from hope_jax.sleep.readers import Reader, as_batch, axes, equipped, readers_of
from hope_jax.sleep.samples import Openings, Samples, mean_of, say

_UNSEEN, _AHEAD = 2**31, 2**31 + 1  # no step has these numbers


class Kept(NamedTuple):
    """Samples that a teacher has made before the first step, and what does not change of them.

    Attributes:
      samples: in the order in which steps take them.
      taught: the teacher's final activations of all tokens but the last.
      below: what the student's blocks that do not adapt make of the same tokens.
    """

    samples: Samples
    taught: Float[Array, "*n T-1 D"]
    below: Float[Array, "*n T-1 D"]


class Lesson(NamedTuple):
    """Who teaches whom in a night, arrays throughout.

    Attributes:
      teacher: what the readers were before, with room for experts.
      student: the state they will wake with, from `student_of` and `expand`.
      keys: random keys, one for each reader.
      openings: of the teacher's samples, from `openings_of`; None for samples that go on from what the
        teacher has read.
      kept: what the teacher has said before the first step, from `keep_samples`; None if it says
        something new at each.
      rehearsed: texts on which the student is its own teacher, from `keep_texts`; None for none.
    """

    teacher: Context
    student: ModelState
    keys: Array
    openings: Openings | None = None
    kept: Kept | None = None
    rehearsed: Kept | None = None


class Seeding(NamedTuple):
    """A night so far; with its lesson, all that is needed to go on with it.

    Attributes:
      expert: the new one of each reader.
      optimizer: its state, of each reader by itself.
      step: steps taken.
    """

    expert: Expert
    optimizer: Any
    step: Int[Array, ""]


class SeedingStep(NamedTuple):
    """What one step has found.

    Attributes:
      loss: that was descended; the value of its policy gradient says nothing.
      divergence: on the teacher's samples, nats per token.
      reward: mean of the student's continuations; 0 where it makes none.
    """

    loss: Float[Array, " B"]
    divergence: Float[Array, " B"]
    reward: Float[Array, " B"]


def begin_seeding(
    model: LanguageModel,
    lesson: Lesson,
    settings: SleepConfig,
    optimizer: optax.GradientTransformation,
) -> Seeding:
    """A night of which no step has been taken.

    Args:
      model: that sleeps.
      lesson: whose student's newest expert is to be trained.
      settings: of the night.
      optimizer: that trains it, for each reader by itself.
    """
    expert = newest_expert(model, lesson.student, settings.level)
    state = jax.jit(jax.vmap(optimizer.init))(expert)
    return lay_out(Seeding(expert, state, jnp.zeros((), jnp.int32)))


@functools.partial(jax.jit, static_argnames=("model", "settings", "vocab_size"))
def keep_samples(
    model: LanguageModel,
    params: Any,
    lesson: Lesson,
    settings: SleepConfig,
    vocab_size: int | None = None,
) -> Lesson:
    """The lesson with all that its teacher will say, said before the first step.

    Samples of four steps are said at a time, with a cache of each in memory meanwhile. What steps would
    find out again and again is found out here.

    Args:
      model: that sleeps.
      params: of the model.
      lesson: of the night.
      settings: of the night, of which `kept_samples` is not 0.
      vocab_size: see `seed_step`.
    """

    def one(teacher: Reader, student: Reader, key: Array) -> Kept:
        def some(places: Int[Array, " m"]) -> Kept:
            own = jax.random.fold_in(jax.random.fold_in(key, _AHEAD), places[0])
            size = places.shape[0]
            said = _teach(model, params, teacher, size, own, settings, lesson.openings, vocab_size)
            return _read_by_both(model, params, teacher, student, said)

        return _few_at_a_time(some, jnp.arange(settings.kept_samples), settings)

    mapped = jax.vmap(one, in_axes=(axes(model), axes(model), 0))
    return lesson._replace(kept=mapped(*both_readers(lesson), lesson.keys))


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def keep_texts(
    model: LanguageModel,
    params: Any,
    lesson: Lesson,
    texts: Int[Array, "N T"],
    settings: SleepConfig,
) -> Lesson:
    """The lesson with texts that each student should go on reading as it does now.

    Args:
      model: that sleeps.
      params: of the model.
      lesson: of the night, whose new experts change nothing yet.
      texts: ids, of which each row is read from its beginning; all but its first token count.
      settings: of the night.
    """

    def one(student: Reader) -> Kept:
        def some(texts: Int[Array, "m T"]) -> Kept:
            count, length = texts.shape
            whole = Samples(texts, jnp.ones(count, jnp.int32), jnp.full(count, length))
            return _read_by_both(model, params, student, student, whole)

        return _few_at_a_time(some, texts, settings)

    _, student = both_readers(lesson)
    return lesson._replace(rehearsed=jax.vmap(one, in_axes=(axes(model),))(student))


@functools.partial(jax.jit, static_argnames=("model", "settings", "optimizer", "vocab_size"))
def seed_step(
    model: LanguageModel,
    params: Any,
    lesson: Lesson,
    seeding: Seeding,
    settings: SleepConfig,
    optimizer: optax.GradientTransformation,
    vocab_size: int | None = None,
) -> tuple[Seeding, SeedingStep]:
    """One step of the night of each reader, compiled once for all steps of all nights.

    Args:
      model: that sleeps.
      params: of the model.
      lesson: of the night.
      seeding: so far.
      settings: of the night.
      optimizer: the one that `begin_seeding` was given; another object is compiled anew.
      vocab_size: only ids below are spoken, where a model has more than its tokenizer; None for all.
    """
    openings, here = lesson.openings, pools_for(model.config, settings.level)

    def one(
        teacher: Reader,
        student: Reader,
        expert: Expert,
        state: Any,
        key: Array,
        kept: Kept | None,
        rehearsed: Kept | None,
    ) -> tuple[Expert, Any, SeedingStep]:
        for_samples, *keys = jax.random.split(jax.random.fold_in(key, seeding.step), 3)
        having = lambda expert: equipped(student, expert, here)
        if kept is None:
            size = settings.samples
            original = _teach(
                model, params, teacher, size, for_samples, settings, openings, vocab_size
            )
            taught = below = None
        else:
            original, taught, below = _in_turn(kept, seeding.step, settings.samples)
        first = 0 if openings is None else openings.first.shape[1]
        said = _imitated(model, params, having(expert), original, first, keys, settings, vocab_size)
        inputs = said.tokens[:, :-1]
        taught = _rest(functools.partial(_taught, model, params, teacher), inputs, taught)
        below = _rest(functools.partial(_below, model, params, student), inputs, below)

        def loss(expert: Expert) -> tuple[Array, Array]:
            now, step = having(expert), seeding.step
            mine = _above(model, params, now, below)
            compared = _compare(model, params, taught, mine, said.tokens, settings, vocab_size)
            value, divergence = _loss(said, *compared, settings)
            if rehearsed is None:
                return value, divergence
            moved = moved_on(model, params, now, rehearsed, step, settings, vocab_size)
            return value + settings.rehearsal * moved, divergence

        (value, divergence), gradient = jax.value_and_grad(loss, has_aux=True)(expert)
        updates, state = optimizer.update(gradient, state, expert)
        found = SeedingStep(value, divergence, jnp.mean(said.rewards))
        return optax.apply_updates(expert, updates), state, found

    mapped = jax.vmap(one, in_axes=(axes(model), axes(model), 0, 0, 0, 0, 0))
    so_far, given = (seeding.expert, seeding.optimizer), (lesson.kept, lesson.rehearsed)
    expert, state, found = mapped(*both_readers(lesson), *so_far, lesson.keys, *given)
    return lay_out(Seeding(expert, state, seeding.step + 1)), found


def moved_on(
    model: LanguageModel,
    params: Any,
    student: Reader,
    rehearsed: Kept,
    step: Int[Array, ""],
    settings: SleepConfig,
    vocab_size: int | None,
) -> Float[Array, ""]:
    """How far one student has moved from what it was, on the texts that a step rehearses.

    Args:
      model: that sleeps.
      params: of the model.
      student: as it is now.
      rehearsed: of this reader.
      step: whose turn it is.
      settings: of the night.
      vocab_size: see `seed_step`.

    Returns:
      The mean divergence, in nats per token.
    """
    texts, as_before, under = _in_turn(rehearsed, step, settings.samples)
    mine = _above(model, params, student, under)
    moved, _ = _compare(model, params, as_before, mine, texts.tokens, settings, vocab_size)
    return jnp.mean(moved)


@functools.partial(jax.jit, static_argnames=("model", "settings", "vocab_size"))
def measure(
    model: LanguageModel,
    params: Any,
    lesson: Lesson,
    expert: Expert,
    settings: SleepConfig,
    vocab_size: int | None = None,
) -> Float[Array, " B"]:
    """How far each student with such an expert is from its teacher, on samples that no step sees.

    They are the same for every expert.

    Args:
      model: that sleeps.
      params: of the model.
      lesson: of the night.
      expert: of each reader.
      settings: of the night.
      vocab_size: see `seed_step`.

    Returns:
      Divergences, in nats per token.
    """
    openings, here = lesson.openings, pools_for(model.config, settings.level)

    def one(teacher: Reader, student: Reader, expert: Expert, key: Array) -> Array:
        key = jax.random.fold_in(key, _UNSEEN)
        size = settings.samples
        said = _teach(model, params, teacher, size, key, settings, openings, vocab_size)
        inputs = said.tokens[:, :-1]
        taught = _taught(model, params, teacher, inputs)
        below = _below(model, params, student, inputs)
        mine = _above(model, params, equipped(student, expert, here), below)
        divergence, _ = _compare(model, params, taught, mine, said.tokens, settings, vocab_size)
        return mean_of(divergence, said.spoken[:, 1:])

    mapped = jax.vmap(one, in_axes=(axes(model), axes(model), 0, 0))
    return mapped(*both_readers(lesson), expert, lesson.keys)


@functools.partial(jax.jit, static_argnames=("model", "level"))
def with_expert(
    model: LanguageModel, student: ModelState, expert: Expert, level: int
) -> ModelState:
    """The student's state with what its newest experts have become."""
    here = pools_for(model.config, level)
    one = lambda experts, expert: put(experts, expert, here, last_active(experts.active, here))
    experts = jax.vmap(one, in_axes=(1, 0), out_axes=1)(experts_of(student), expert)
    return with_experts(student, experts)


@functools.partial(jax.jit, static_argnames=("model", "level"))
def newest_expert(model: LanguageModel, student: ModelState, level: int) -> Expert:
    """What `with_expert` sets."""
    here = pools_for(model.config, level)
    one = lambda experts: take(experts, here, last_active(experts.active, here))
    return jax.vmap(one, in_axes=1)(experts_of(student))


def both_readers(lesson: Lesson) -> tuple[Reader, Reader]:
    """Teacher and student."""
    # The student's samples begin with what the teacher has said; its first logits are never read.
    student = Context(lesson.student, lesson.teacher.logits)
    return readers_of(lesson.teacher), readers_of(student)


class _Said(NamedTuple):
    """What both have said in a step: the teacher's samples, then their imitations, if there are any.

    Attributes:
      tokens: ids, prompts and prefixes included.
      counted: which of them the speaker has drawn.
      rewards: of each sample's imitations.
    """

    tokens: Int[Array, "m T"]
    counted: Bool[Array, "m T"]
    rewards: Float[Array, "n K"]


def _few_at_a_time(
    some: Callable[[Array], Kept], rows: Shaped[Array, " N *s"], settings: SleepConfig
) -> Kept:
    """What a function makes of all rows, of so many as four steps take at a time."""
    count, most = rows.shape[0], 4 * settings.samples
    whole = count // most
    parts = []
    if whole:
        made = jax.lax.map(some, rows[: whole * most].reshape(whole, most, *rows.shape[1:]))
        parts.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), made))
    if count % most:
        parts.append(some(rows[whole * most :]))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _read_by_both(
    model: LanguageModel, params: Any, teacher: Reader, student: Reader, samples: Samples
) -> Kept:
    inputs = samples.tokens[:, :-1]
    return Kept(
        samples, _taught(model, params, teacher, inputs), _below(model, params, student, inputs)
    )


def _in_turn(kept: Kept, step: Int[Array, ""], size: int) -> Kept:
    """Those of a step, where each goes on behind those of the step before, round and round."""
    count = kept.samples.tokens.shape[0]
    # Of the step first, so that no product outgrows its integers.
    places = (step % count * size + jnp.arange(size)) % count
    return jax.tree.map(lambda leaf: leaf[places], kept)


def _imitated(
    model: LanguageModel,
    params: Any,
    student: Reader,
    original: Samples,
    first: int,
    keys: Sequence[Array],
    settings: SleepConfig,
    vocab_size: int | None,
) -> _Said:
    """What the teacher has said, and how the student goes on from random prefixes of it."""
    for_prefixes, for_imitations = keys
    size = original.tokens.shape[0]
    if not settings.student_speaks:
        return _Said(original.tokens, original.spoken, jnp.zeros((size, 1)))
    least = jnp.maximum(original.start, 1)  # behind the opening, and after a token at least
    starts = jax.random.randint(for_prefixes, (size,), least, original.end)
    repeat = lambda x: jnp.repeat(x, settings.continuations, 0)
    (tokens, _, end), starts = jax.tree.map(repeat, original), repeat(starts)
    imitation = _imitate(model, params, student, tokens, starts, first, for_imitations, vocab_size)
    rewards = reward(
        imitation,
        tokens,
        end,
        end,
        gam=settings.gam,
        z0=settings.largest_distance,
        judge=settings.judge_function,
    )
    its_own = Samples(imitation, starts, end).spoken
    return _Said(
        jnp.concatenate([original.tokens, imitation]),
        jnp.concatenate([original.spoken, its_own]),
        rewards.reshape(size, settings.continuations),
    )


def _loss(
    said: _Said,
    divergence: Float[Array, "m T-1"],
    log_probability: Float[Array, "m T-1"],
    settings: SleepConfig,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The loss of a step, and the mean divergence on the teacher's samples."""
    size, counted = said.rewards.shape[0], said.counted[:, 1:]
    of_teacher = mean_of(divergence[:size], counted[:size])
    if not settings.student_speaks:
        return of_teacher, of_teacher
    mine = counted[size:]
    of_student = mean_of(divergence[size:], mine)
    distilled = (1 - settings.lam) * of_teacher + settings.lam * of_student
    summed = jnp.sum(log_probability[size:] * mine, 1).reshape(said.rewards.shape)
    imitated = policy_gradient_loss(summed, said.rewards)
    return settings.a * distilled + (1 - settings.a) * imitated, of_teacher


def _teach(
    model: LanguageModel,
    params: Any,
    teacher: Reader,
    size: int,
    key: Array,
    settings: SleepConfig,
    openings: Openings | None,
    vocab_size: int | None,
) -> Samples:
    """So many samples of what the teacher says, behind its openings."""
    return say(
        model,
        params,
        as_batch(model, teacher, size),
        key,
        openings,
        num_tokens=settings.tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        vocab_size=vocab_size,
    )


def _imitate(
    model: LanguageModel,
    params: Any,
    student: Reader,
    original: Int[Array, "m T"],
    starts: Int[Array, " m"],
    first: int,
    key: Array,
    vocab_size: int | None,
) -> Int[Array, "m T"]:
    """How the student goes on from the first tokens of each original, of which all have `first`."""
    context = as_batch(model, student, starts.shape[0])
    given, rest = original[:, :first], original[:, first:]
    if first:
        context = read(model, params, given, context)
    tokens, _ = sample(
        model,
        params,
        context,
        key,
        num_tokens=rest.shape[1],
        vocab_size=vocab_size,
        given=rest,
        given_length=starts - first,
    )
    return jnp.concatenate([given, tokens], 1)


def _taught(
    model: LanguageModel, params: Any, teacher: Reader, inputs: Int[Array, "m T"]
) -> Float[Array, "m T D"]:
    """The teacher's final activations, which no step changes."""
    return _read_by(model, params, teacher, inputs, "hidden")


def _below(
    model: LanguageModel, params: Any, student: Reader, inputs: Int[Array, "m T"]
) -> Float[Array, "m T D"]:
    """What the student's blocks without experts make, which no step changes either."""
    return _read_by(model, params, student, inputs, "below")


def _read_by(
    model: LanguageModel, params: Any, reader: Reader, inputs: Int[Array, "m T"], method: str
) -> Float[Array, "m T D"]:
    state = as_batch(model, reader, inputs.shape[0]).state
    return cast(Array, model.apply({"params": params}, inputs, state, method=method)[0])


def _above(
    model: LanguageModel, params: Any, student: Reader, below: Float[Array, "m T D"]
) -> Float[Array, "m T D"]:
    """The student's final activations."""
    state = as_batch(model, student, below.shape[0]).state
    return cast(Array, model.apply({"params": params}, below, state, method="hidden_above"))


def _rest(
    made: Callable[[Array], Array], inputs: Int[Array, "m T"], known: Float[Array, "n T D"] | None
) -> Float[Array, "m T D"]:
    """What is made of inputs, of which the first are known, or none."""
    if known is None:
        return made(inputs)
    rest = inputs[known.shape[0] :]
    return jnp.concatenate([known, made(rest)]) if len(rest) else known


def _compare(
    model: LanguageModel,
    params: Any,
    taught: Float[Array, "m T-1 D"],
    mine: Float[Array, "m T-1 D"],
    tokens: Int[Array, "m T"],
    settings: SleepConfig,
    vocab_size: int | None,
) -> tuple[Float[Array, "m T-1"], Float[Array, "m T-1"]]:
    """Divergence before each token but the first, and the student's log-probability of it.

    Logits exist for `loss_chunk` tokens of each sequence at a time, as in the loss of training.
    """
    following = tokens[:, 1:]
    apply: Any = functools.partial(model.apply, {"params": params})

    def compared(part: Any) -> tuple[Array, Array]:
        *both, following = part
        theirs, mine = (apply(h, method="logits")[..., :vocab_size] for h in both)
        log_probability = jax.nn.log_softmax(mine)
        at_token = jnp.take_along_axis(log_probability, following[..., None], -1)[..., 0]
        return settings.divergence_function(theirs, mine), at_token

    parts = taught, mine, following
    length, chunk = following.shape[1], model.config.loss_chunk
    if length <= chunk:
        return compared(parts)
    pieces = -(-length // chunk)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, pieces * chunk - length)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], pieces, chunk, *x.shape[2:]), 1, 0)

    def joined(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :length]

    found = jax.lax.map(jax.checkpoint(compared), tuple(cut(part) for part in parts))
    return joined(found[0]), joined(found[1])
