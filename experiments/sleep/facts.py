"""What is left of the facts of a world after a night, beside what other ways of learning them leave.

    python experiments/sleep/words.py runs/facts/words.json
    python experiments/sleep/facts_pretrain.py --workdir=runs/facts/model
    python experiments/sleep/facts.py --run=runs/facts/model --workdir=experiments/sleep/facts
    python experiments/sleep/facts.py --table --workdir=experiments/sleep/facts  # runs nothing

A model that was trained on other worlds (facts_pretrain.py) reads sixteen facts about four people once.
It is asked for each without the text, in the two phrasings that do not go with how it was told, with four
answers to choose from, which are true of others as far as there are any: before, with the text, and after
it has learned by one of `ARMS`, in `STEPS` steps each.

A night's samples begin as the lines of the text do, or as questions do, up to the name; so whom they are
about is the teacher's choice. Beginnings of documents that the model was trained on are rehearsed, and
fine-tuning is given as many of them. Documents of worlds on which nobody was trained tell what it has
cost, in nats a token: of all tokens, of facts as they are told, of what is then said of them, and of the
answers.

An arm's rate is that at which the right answers of a world that is not reported are likeliest, of those
which cost other documents 1% at most: rates on a grid of factor 3 are followed until both neighbours are
worse. A trial that has ended is a line of WORKDIR/trials.jsonl, so
that a command that is stopped and given again goes on.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from facts_pretrain import (
    FIRST_NEW,
    PHRASINGS,
    TOLD,
    TRAINED,
    batches,
    document,
    facts_of,
    whole_chunks,
)
from words import USED

from hope_jax.commands.trained_model import load_model
from hope_jax.data.json_lines import add_json_line, find_json_lines
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.data.whole_file import write_whole
from hope_jax.evaluation.choices import log_likelihoods, row_losses, share_won
from hope_jax.evaluation.grid import climb
from hope_jax.evaluation.world import KINDS, Fact, Question, ask, tell
from hope_jax.inference.sampling import Context, read, sample
from hope_jax.models import LanguageModel
from hope_jax.models.language_model import ModelState, init_state
from hope_jax.optim import diagonal_fisher, elastic_weights
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.cycle import begin_lesson
from hope_jax.sleep.imitation import policy_gradient_loss, reward
from hope_jax.sleep.readers import Reader, as_batch, axes, held, readers_of
from hope_jax.sleep.samples import Samples, in_rows, mean_of, openings_of
from hope_jax.sleep.seeding import (
    Kept,
    Lesson,
    begin_seeding,
    keep_samples,
    keep_texts,
    seed_step,
    with_expert,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STEPS = 400
DOCUMENTS, PART = 1024, 112  # other documents, and how much of each is given
PIECE = 60  # tokens of the text that are tuned on at a time
PEOPLE, KINDS_EACH = 4, 4  # facts of a world: one of each kind about each
MOST_LOST = 0.01  # of the loss of other documents
SELECTION = (1000,)  # seeds that choose rates, and are not reported
SEEDS = (0, 1, 2)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # of Adam
NIGHT: dict[str, Any] = {
    "steps": STEPS,
    "samples": 16,
    "kept_samples": 2048,
    "tokens": 12,
    "lam": 0.5,
    "a": 0.9,
    "experts": 1,
    "expert_width": 256,
    "rehearsal": 10.0,
}


T = TypeVar("T")


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
      lines: of the text.
      questions: each fact, asked for as it was not told.
    """

    ids: np.ndarray
    begin: int
    lines: list[str]
    questions: list[Question]


class Learnt(NamedTuple):
    """Who is asked: parameters, and a state in which nothing is read, or the text."""

    params: Any
    state: ModelState | None


def world_of(tokenizer: Tokenizer, seed: int) -> World:
    """A world for which nothing was trained."""
    facts = facts_of(FIRST_NEW + seed, PEOPLE, KINDS_EACH)
    return world_with(tokenizer, facts, np.random.default_rng([seed, 4]))


def world_with(tokenizer: Tokenizer, facts: Sequence[Fact], random: np.random.Generator) -> World:
    """The world of some facts, each told in a random way."""
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
    return World(ids, len(ids) - len(tokenizer.encode(text)), lines, questions)


def openings_from(tokenizer: Tokenizer, world: World) -> tuple[np.ndarray, np.ndarray]:
    """How lines of the text begin, at any length, and how questions do, up to whom they are about.

    Returns:
      Rows, filled up at their ends, and how much of each counts.
    """
    lines = [tokenizer.encode(line) for line in world.lines]
    begun = [ids[:size] for ids in lines for size in range(1, len(ids))]
    about = {(question.facts[0].kind, question.facts[0].name) for question in world.questions}
    people = len({name for _, name in about})
    begun += questions_begun(tokenizer, {kind for kind, _ in about}) * people
    return in_rows(begun)


def questions_begun(tokenizer: Tokenizer, kinds: Collection[str] = USED) -> list[np.ndarray]:
    """All ways to begin a question for facts of some kinds, up to whom it is about."""
    ways = [way for name, kind in KINDS.items() if name in kinds for way in kind.asked]
    return [tokenizer.encode(way.split("{name}")[0]) for way in ways]


def openings_within(tokenizer: Tokenizer, world: World) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of the text from anywhere, as long as the longest of `openings_from`, and that length."""
    longest = openings_from(tokenizer, world)[0].shape[1]
    rows = np.lib.stride_tricks.sliding_window_view(world.ids[world.begin :], longest)
    return rows, np.full(len(rows), longest)


def other_documents(
    tokenizer: Tokenizer,
    seed: int,
    count: int | None = None,
    length: int | None = None,
    document_of: Callable[..., tuple[np.ndarray, Any]] = document,
) -> np.ndarray:
    """Beginnings of the training's documents, `DOCUMENTS` of `PART` if nothing else is said."""
    random = np.random.default_rng([seed, 5])
    drawn = random.integers(TRAINED, size=(count or DOCUMENTS, 2)).tolist()
    made = [document_of(tokenizer, number, length or PART, another) for number, another in drawn]
    return np.stack([ids for ids, _ in made]).astype(np.int32)


def measured(reader: Model, learnt: Learnt, questions: Sequence[Question]) -> dict[str, float]:
    """Share of questions won, and mean log-likelihood of the right answers."""
    found = log_likelihoods(
        reader.model,
        learnt.params,
        reader.tokenizer,
        [question.prompt for question in questions],
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
    """Mean losses of other worlds' documents, and of parts of them."""
    batch = next(batches(reader.tokenizer, TRAINED, FIRST_NEW - TRAINED, 64))
    state = learnt.state or init_state(reader.model, learnt.params, 1)
    losses = row_losses(reader.model, learnt.params, batch["tokens"], batch["targets"], state)
    parts = {
        "loss": np.ones_like(batch["answers"]),
        "told": batch["weights"] == np.float32(TOLD),  # for the first time
        "said": (batch["weights"] == 1) & ~batch["answers"],
        "answers": batch["answers"],
    }
    return {name: float(np.asarray(losses)[part].mean()) for name, part in parts.items()}


@functools.partial(jax.jit, static_argnames=("model", "temperature"))
def say_after(
    model: LanguageModel,
    params: Any,
    context: Context,
    given: Any,
    lengths: Any,
    key: Any,
    temperature: float,
) -> Any:
    """Rows of ids, of which each begins with so many of a given one, and goes on as a reader says."""

    def one(reader: Any) -> Any:
        batch = as_batch(model, reader, len(given))
        said, _ = sample(
            model,
            params,
            batch,
            key,
            num_tokens=given.shape[1],
            temperature=temperature,
            given=given,
            given_length=lengths,
        )
        return said

    return jax.vmap(one, in_axes=(axes(model),))(readers_of(context))[0]


# Ways to learn.


Begins = Callable[[Tokenizer, World], tuple[np.ndarray, np.ndarray]]


def night_of(
    reader: Model,
    world: World,
    seed: int,
    rate: float,
    settings: SleepConfig,
    others: bool,
    begins: Begins = openings_from,
) -> tuple[Learnt, dict[str, Any]]:
    """A night; `begins` says how its samples begin."""
    model, params = reader.model, reader.params
    lesson = lesson_of(reader, world, seed, settings, others, begins)
    seeding = begin_seeding(model, lesson, settings, OPTIMIZER)
    seeding = seeding._replace(optimizer=with_rate(seeding.optimizer, rate))
    found = []
    for _ in range(settings.steps):
        seeding, step = seed_step(model, params, lesson, seeding, settings, OPTIMIZER)
        found.append(step.divergence[0])
    state = with_expert(model, lesson.student, seeding.expert, settings.level)
    return Learnt(params, state), {"divergence": ends(found)}


def lesson_of(
    reader: Model,
    world: World,
    seed: int,
    settings: SleepConfig,
    others: bool,
    begins: Begins = openings_from,
) -> Lesson:
    """What the teacher says, who has read the text, to a student who has not, with an expert more."""
    model, params = reader.model, reader.params
    context = read(model, params, world.ids[None])
    openings = openings_of(*begins(reader.tokenizer, world))
    lesson = begin_lesson(model, params, context, jax.random.key(seed)[None], settings, openings)
    lesson = keep_samples(model, params, lesson, settings)
    if others:
        rehearsed = jnp.asarray(other_documents(reader.tokenizer, seed))
        lesson = keep_texts(model, params, lesson, rehearsed, settings)
    return lesson


def falling_adam(learning_rate: Any, steps: int) -> optax.GradientTransformation:
    """Adam, whose rate falls to 0 in so many steps."""
    falling = optax.scale_by_schedule(optax.linear_schedule(1, 0, steps))
    return optax.chain(optax.adam(learning_rate), falling)


@functools.cache
def sleeper(rate: float, steps: int) -> optax.GradientTransformation:
    """One object for all nights of a rate, so that only the first compiles."""
    return falling_adam(rate, steps)


@functools.cache
def elastic_adam(steps: int) -> optax.GradientTransformation:
    """Adam and elastic weights; its rate and its strength are part of its state."""
    return optax.inject_hyperparams(
        lambda learning_rate, strength: optax.chain(
            elastic_weights(strength), falling_adam(learning_rate, steps)
        )
    )(learning_rate=0.0, strength=0.0)


# Its rate is part of its state, so that another compiles nothing.
OPTIMIZER = optax.inject_hyperparams(falling_adam, static_args="steps")(0.0, steps=STEPS)


def with_rate(state: Any, rate: float, **others: float) -> Any:
    """The optimiser's state with another rate, and maybe other numbers of other names."""
    given, old = {"learning_rate": rate, **others}, state.hyperparams
    new = {name: jnp.full_like(old[name], value) for name, value in given.items()}
    return state._replace(hyperparams={**old, **new})


def ends(values: Sequence[Any]) -> list[float]:
    """The first and the last."""
    return [round(float(values[place]), 4) for place in (0, -1)]


def receiver_of(model: LanguageModel, params: Any) -> Any:
    """1 for what a night without expansion trains: the MLPs beside which experts would lie; else 0."""
    first = model.config.num_layers - model.config.adapting_blocks

    def mask(path: tuple[Any, ...], leaf: Any) -> Any:
        mine = "'level_0'" in jax.tree_util.keystr(path)
        return jnp.full_like(leaf, mine) if not mine else jnp.zeros_like(leaf).at[first:].set(1)

    return jax.tree_util.tree_map_with_path(mask, params)


def dense_night_of(
    reader: Model, world: World, seed: int, rate: float, settings: SleepConfig, others: bool
) -> tuple[Learnt, dict[str, Any]]:
    """The night without an expert: the receiving MLPs themselves learn the same, of the same samples."""
    model, params = reader.model, reader.params
    lesson = lesson_of(reader, world, seed, settings, others)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    mask, learnt, found = receiver_of(model, params), params, []
    state = with_rate(jax.jit(OPTIMIZER.init)(params), rate)
    for step in range(settings.steps):
        learnt, state, divergence = dense_step(
            model, params, learnt, lesson, state, mask, key, step, settings
        )
        found.append(divergence)
    return Learnt(learnt, None), {"divergence": ends(found)}


def fresh(model: LanguageModel, params: Any, size: int) -> ModelState:
    """A batch that has read nothing, and whose levels are held."""
    return held(init_state(model, params, size))


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def dense_step(
    model: LanguageModel,
    params: Any,
    learnt: Any,
    lesson: Lesson,
    state: Any,
    mask: Any,
    key: Any,
    step: Any,
    settings: SleepConfig,
) -> tuple[Any, Any, Any]:
    """One step: parameters, the optimiser's state, and the divergence."""
    size = settings.samples

    def in_turn(kept: Kept) -> Kept:
        count = kept.samples.tokens.shape[1]
        places = (step % count * size + jnp.arange(size)) % count
        return jax.tree.map(lambda leaf: leaf[0, places], kept)

    def reads(weights: Any, tokens: Any) -> Any:
        state = fresh(model, weights, len(tokens))
        return model.apply({"params": weights}, tokens[:, :-1], state)[0]

    assert lesson.kept is not None and lesson.openings is not None
    original, known, _ = in_turn(lesson.kept)
    tokens, spoken, rewards = original.tokens, original.spoken, jnp.zeros((size, 1))
    theirs = model.apply({"params": params}, known, method="logits")
    if settings.student_speaks:
        for_starts, for_tokens = jax.random.split(jax.random.fold_in(key, step))
        first = lesson.openings.first.shape[1]
        starts = jax.random.randint(for_starts, (size,), original.start, original.end)
        many = lambda leaf: jnp.repeat(leaf, settings.continuations, 0)
        given, starts, end = many(tokens), many(starts), many(original.end)
        speaker = Context(fresh(model, learnt, len(given)), jnp.zeros(()))
        said, _ = sample(
            model,
            learnt,
            read(model, learnt, given[:, :first], speaker),
            for_tokens,
            num_tokens=given.shape[1] - first,
            given=given[:, first:],
            given_length=starts - first,
        )
        said = jnp.concatenate([given[:, :first], said], 1)
        rewards = reward(said, given, end, end, gam=0, z0=settings.largest_distance)
        rewards = rewards.reshape(size, settings.continuations)
        tokens = jnp.concatenate([tokens, said])
        spoken = jnp.concatenate([spoken, Samples(said, starts, end).spoken])

        def taught(teacher: Reader) -> Any:
            state = as_batch(model, teacher, len(said)).state
            return model.apply({"params": params}, said[:, :-1], state)[0]

        (more,) = jax.vmap(taught, in_axes=(axes(model),))(readers_of(lesson.teacher))
        theirs = jnp.concatenate([theirs, more])
    following, counted = tokens[:, 1:], spoken[:, 1:]

    def loss(learnt: Any) -> tuple[Any, Any]:
        mine = reads(learnt, tokens)
        divergence = settings.divergence_function(theirs, mine)
        of_teacher = total = mean_of(divergence[:size], counted[:size])
        if settings.student_speaks:
            of_student = mean_of(divergence[size:], counted[size:])
            logs = jnp.take_along_axis(jax.nn.log_softmax(mine), following[..., None], -1)[..., 0]
            summed = jnp.sum(logs[size:] * counted[size:], 1).reshape(rewards.shape)
            distilled = (1 - settings.lam) * of_teacher + settings.lam * of_student
            imitated = policy_gradient_loss(summed, rewards)
            total = settings.a * distilled + (1 - settings.a) * imitated
        if lesson.rehearsed is not None:
            texts, before, _ = in_turn(lesson.rehearsed)
            before = model.apply({"params": params}, before, method="logits")
            moved = settings.divergence_function(before, reads(learnt, texts.tokens))
            total += settings.rehearsal * jnp.mean(moved)
        return total, of_teacher

    (_, divergence), gradient = jax.value_and_grad(loss, has_aux=True)(learnt)
    gradient = jax.tree.map(jnp.multiply, gradient, mask)
    updates, state = OPTIMIZER.update(gradient, state, learnt)
    return optax.apply_updates(learnt, updates), state, divergence


def fine_tuned(
    reader: Model, world: World, seed: int, rate: float, settings: SleepConfig, others: bool
) -> tuple[Learnt, dict[str, Any]]:
    """All weights are trained on pieces of the text, and with `others` on as many of other documents."""
    random = np.random.default_rng([seed, 6])
    kinds = [pieces_of(world, PIECE), other_documents(reader.tokenizer, seed)[:, :PIECE]]
    state = with_rate(jax.jit(OPTIMIZER.init)(reader.params), rate)
    kinds = kinds if others else kinds[:1]
    learnt, _, found = tune(reader, reader.params, state, kinds, random, settings)
    return Learnt(learnt, None), {"loss": found}


def pieces_of(world: World, size: int) -> np.ndarray:
    """Pieces of the text from anywhere, and of a blank line before it, if there is one."""
    return np.lib.stride_tricks.sliding_window_view(world.ids[max(world.begin - 1, 0) :], size)


def tune(
    reader: Model,
    params: Any,
    state: Any,
    kinds: Sequence[np.ndarray],
    random: np.random.Generator,
    settings: SleepConfig,
    optimizer: optax.GradientTransformation = OPTIMIZER,
) -> tuple[Any, Any, list[float]]:
    """Trains all weights, at each step on as many rows of each kind as a night has samples.

    Returns:
      Parameters, the optimiser's state, and the first and the last loss.
    """
    found = []
    some = lambda rows: rows[random.integers(len(rows), size=settings.samples)]
    for _ in range(settings.steps):
        rows = np.concatenate([some(rows) for rows in kinds])
        params, state, loss = tuning_step(reader.model, params, state, rows, optimizer)
        found.append(loss)
    return params, state, ends(found)


@functools.partial(jax.jit, static_argnames=("model", "optimizer"))
def tuning_step(
    model: LanguageModel,
    learnt: Any,
    state: Any,
    rows: Any,
    optimizer: optax.GradientTransformation,
) -> tuple[Any, Any, Any]:
    """One step: parameters, the optimiser's state, and the loss."""

    def loss(learnt: Any) -> Any:
        variables, pair = {"params": learnt}, (rows[:, :-1], rows[:, 1:])
        return jnp.mean(model.apply(variables, *pair, method="token_losses"))

    value, gradient = jax.value_and_grad(loss)(learnt)
    updates, state = optimizer.update(gradient, state, learnt)
    return optax.apply_updates(learnt, updates), state, value


@functools.partial(jax.jit, static_argnames="model")
def fisher(model: LanguageModel, params: Any, rows: Any) -> Any:
    """How much each weight matters for some rows, for elastic weights."""

    def loss(params: Any, row: Any) -> Any:
        pair = row[None, :-1], row[None, 1:]
        return jnp.sum(model.apply({"params": params}, *pair, method="token_losses"))

    return diagonal_fisher(loss, params, rows)


class Arm(NamedTuple):
    """A way to learn.

    Attributes:
      learn: `(reader, world, seed, rate, settings, others)`.
      first: rate that is tried first, of `RATES`.
      changes: of the night's settings.
      others: whether other documents are rehearsed, or trained on.
    """

    learn: Callable[..., tuple[Learnt, dict[str, Any]]]
    first: float
    changes: Mapping[str, Any] = {}
    others: bool = True


SILENT = {"lam": 0.0, "a": 1.0}  # the student says nothing, and a step costs less
ARMS = {
    "sleep by the teacher's words": Arm(night_of, 1e-1, SILENT),
    "fine-tuning with other documents": Arm(fine_tuned, 1e-3, SILENT),
    "the same night without expansion": Arm(dense_night_of, 3e-3, SILENT),
    "the same night without rehearsal": Arm(night_of, 1e-1, SILENT, others=False),
    "the same night, samples begin anywhere": Arm(
        functools.partial(night_of, begins=openings_within), 1e-1, SILENT
    ),
    "fine-tuning": Arm(fine_tuned, 1e-3, SILENT, others=False),
    "sleep": Arm(night_of, 1e-1),
    "sleep without imitation": Arm(night_of, 1e-1, {"a": 1.0}),
    "sleep without distillation": Arm(night_of, 3e-2, {"a": 1e-3}),
    "sleep without expansion": Arm(dense_night_of, 3e-3),
    "on-policy self-distillation": Arm(dense_night_of, 3e-3, {"a": 1.0, "lam": 1.0}),
}


class Experiment(NamedTuple):
    """All that trials need.

    Attributes:
      reader: who learns.
      path: of the file of trials.
    """

    reader: Model
    path: Path

    def trial(self, name: str, seed: int, rate: float) -> dict[str, Any]:
        """Runs a trial, if it is not there."""
        arm, (model, params, tokenizer) = ARMS[name], self.reader
        night = {**NIGHT, **arm.changes}
        key = {"arm": name, "seed": seed, "rate": rate, "night": night}
        for row in find_json_lines(self.path, key):
            return row
        settings = SleepConfig(**night)
        world = world_of(tokenizer, seed)
        unread = Learnt(params, None)
        text = read(model, params, world.ids[None])
        begun = time.monotonic()
        learnt, found = arm.learn(self.reader, world, seed, rate, settings, arm.others)
        row: dict[str, Any] = {**key, **found, "seconds": round(time.monotonic() - begun, 1)}
        asked = {"before": unread, "read": Learnt(params, text.state), "after": learnt}
        for when, who in asked.items():
            row[when] = measured(self.reader, who, world.questions)
        row["unrelated"] = {when: held_out(self.reader, who) for when, who in asked.items()}
        add_json_line(self.path, row)
        print({name: row[name] for name in row if name != "night"}, flush=True)
        return row

    def chosen(self, name: str) -> float:
        """The rate of an arm: rates are followed until both neighbours are worse."""

        def score(rate: float) -> float:
            trials = [self.trial(name, seed, rate) for seed in SELECTION]
            lost = statistics.fmean(rise(trial) for trial in trials)
            likely = statistics.fmean(trial["after"]["log_likelihood"] for trial in trials)
            # Where all cost too much, the one that costs least.
            return likely if lost <= MOST_LOST else -1000 - lost

        return climb(RATES, ARMS[name].first, score)[0]


def kept_share(row: Mapping[str, Any], when: str = "after") -> float:
    """What is won, of what is won with the text."""
    return row[when]["won"] / row["read"]["won"]


def added(row: Mapping[str, Any], when: str, of: str) -> float:
    """To a loss of other documents."""
    return row["unrelated"][when][of] - row["unrelated"]["before"][of]


def rise(row: Mapping[str, Any], when: str = "after") -> float:
    """Of the loss of other documents, as a share of it."""
    return added(row, when, "loss") / row["unrelated"]["before"]["loss"]


COLUMNS: dict[str, Callable[[Mapping[str, Any], str], float]] = {
    "right, %": lambda row, when: 100 * row[when]["won"],
    "of what it knew with the text, %": lambda row, when: 100 * kept_share(row, when),
    "log-likelihood": lambda row, when: row[when]["log_likelihood"],
    "loss of other documents, + %": lambda row, when: 100 * rise(row, when),
    "of what they tell, + nats": lambda row, when: added(row, when, "told"),
    "of what they say of it, + nats": lambda row, when: added(row, when, "said"),
    "of their answers, + nats": lambda row, when: added(row, when, "answers"),
}


def table(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Means over seeds and standard deviations, in Markdown."""
    lines = []

    def line(name: str, group: Sequence[Mapping[str, Any]], when: str, *more: str) -> None:
        cells = [spread([column(row, when) for row in group]) for column in COLUMNS.values()]
        lines.append(f"| {' | '.join([name, *cells, *more])} |")

    any_group = next(iter(groups.values()))
    line("before, without the text", any_group, "before", "", "")
    line("before, with the text", any_group, "read", "", "")
    for name, group in groups.items():
        seconds = spread([row["seconds"] for row in group])
        line(name, group, "after", seconds, f"{group[0]['rate']:g}")
    head = ["way to learn", *COLUMNS, "seconds", "rate"]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]) + "\n"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; of a single value, that."""
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{statistics.fmean(values):.3g} ± {statistics.stdev(values):.2g}"


def draw(groups: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """What is right after each way to learn, and what it costs elsewhere; a point for each seed."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    names = list(groups)
    some = next(iter(groups.values()))
    for when, color in (("before", "gray"), ("read", "black")):
        value = 100 * statistics.fmean(row[when]["won"] for row in some)
        label = "with the text" if when == "read" else "before"
        left.axvline(value, color=color, linestyle=":", label=label)
    for place, name in enumerate(names):
        for half, column in ((left, "right, %"), (right, "loss of other documents, + %")):
            values = [COLUMNS[column](row, "after") for row in groups[name]]
            half.barh(place, statistics.fmean(values), color="C0", alpha=0.6)
            half.plot(values, [place] * len(values), "k.", markersize=4)
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.invert_yaxis()
    left.set_xlabel("questions right without the text, %", fontsize=8)
    right.axvline(1, color="gray", linestyle=":")
    right.set_xlabel("loss of other documents, + %", fontsize=8)
    left.legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def reported(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The trials of each arm that has all seeds, in the order of `ARMS`."""
    groups: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for row in find_json_lines(path, {}):
        night = {**NIGHT, **ARMS[row["arm"]].changes} if row["arm"] in ARMS else None
        if row["seed"] in SEEDS and row["night"] == night:
            groups.setdefault((row["arm"], row["rate"]), {})[row["seed"]] = row
    whole = {arm: rows for (arm, _), rows in groups.items() if len(rows) == len(SEEDS)}
    return {arm: [whole[arm][seed] for seed in SEEDS] for arm in ARMS if arm in whole}


def parser_of(about: str, arms: Collection[str]) -> argparse.ArgumentParser:
    """The flags of an experiment, of which the first paragraph says what it is."""
    parser = argparse.ArgumentParser(description=about.split("\n\n")[0])
    parser.add_argument("--run", help="folder of the model's run")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the trials")
    parser.add_argument("--arms", nargs="+", choices=arms, metavar="ARM", default=list(arms))
    parser.add_argument("--table", action="store_true", help="run nothing")
    return parser


def report(
    workdir: Path, groups: T, table: Callable[[T], str], draw: Callable[[T, Path], None]
) -> None:
    """Writes the table and the picture of the trials that are reported."""
    made = table(groups)
    write_whole(workdir / "results.md", made)
    draw(groups, workdir / "results.png")
    print(made)


def main() -> None:
    parser = parser_of(__doc__, ARMS)
    given = parser.parse_args()
    path = given.workdir / "trials.jsonl"
    if not given.table:
        given.workdir.mkdir(parents=True, exist_ok=True)
        experiment = Experiment(Model(*load_model(given.run)), path)
        for name in given.arms:
            rate = experiment.chosen(name)
            for seed in SEEDS:
                experiment.trial(name, seed, rate)
    groups = reported(path)
    if not groups:
        parser.error(f"{path} has no way to learn with all seeds")
    report(given.workdir, groups, table, draw)


if __name__ == "__main__":
    main()
