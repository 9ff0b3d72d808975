"""Dreams of two readers, against one reader after the other in plain loops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from hope_jax.inference.sampling import Context, generate, read, score_segment
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.sleep.config import DreamConfig, SleepConfig
from hope_jax.sleep.dreams import _DREAMS, dream
from hope_jax.sleep.expansion import Expert, experts_of, make_room, with_experts
from hope_jax.sleep.random_expert import open_random_expert
from hope_jax.sleep.samples import openings_of
from hope_jax.sleep.seeding import Lesson, keep_texts, newest_expert
from tests.sleep.reader import assert_same

READERS, VOCAB, LENGTH = 2, 7, 5
CONFIG = LanguageModelConfig(
    vocab_size=VOCAB,
    width=4,
    num_layers=1,
    num_heads=1,
    mlp_width=6,
    sequence_layer="attention",
    attention_window=4,
    tie_embeddings=False,  # else it says one token over and over
    in_context={"chunks": (4,), "blocks": 1},
)
# The same model in a chunk that does not end: asleep, no level learns.
STILL = LanguageModel(dataclasses.replace(CONFIG, in_context={"chunks": (64,), "blocks": 1}))
SETTINGS = SleepConfig(experts=3, expert_width=3, temperature=0.0)
DREAMING = DreamConfig(
    dreams=4,
    dream_tokens=LENGTH,
    best=2,
    others=1,
    trial_steps=2,
    trial_rate=0.1,
    dream_steps=3,
    dream_rate=0.05,
)
RANDOM = np.random.default_rng(0)
TEXT = RANDOM.integers(VOCAB, size=(READERS, 3))
OPENINGS, LENGTHS = RANDOM.integers(VOCAB, size=(2, 3)), np.array([3, 2])
TASK = RANDOM.integers(VOCAB, size=3 + LENGTH)
KEYS = jax.random.split(jax.random.key(5), READERS)


@functools.cache
def made():
    """The model, and a lesson whose readers have two older experts, the student one more."""
    model = LanguageModel(CONFIG)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), TEXT)["params"])
    context = read(model, params, TEXT)
    room = make_room(model, context.state, 3, 3)
    empty = experts_of(room)
    full = [jnp.asarray(2 * RANDOM.normal(size=leaf.shape), jnp.float32) for leaf in empty[:3]]

    def having(number):
        active = jnp.arange(3) < number
        held = [jnp.where(active.reshape(3, *(1,) * (w.ndim - 4)), w, 0) for w in full]
        return with_experts(
            room,
            empty._replace(
                **dict(zip(empty._fields, held, strict=False)),
                active=jnp.broadcast_to(active, empty.active.shape),
            ),
        )

    teacher = Context(having(2), context.logits)
    return model, params, Lesson(teacher, having(3), KEYS, openings_of(OPENINGS, LENGTHS))


def score(model, params, state):
    """How likely a text is."""
    losses, _ = model.apply(
        {"params": params}, TASK[None, :-1], TASK[None, 1:], state, method="score"
    )
    return -losses.mean()


@functools.cache
def dreamt():
    model, params, lesson = made()
    return dream(model, params, lesson, SETTINGS, DREAMING, score)


def student(reader):
    """One reader's own: the newest expert, and the state with another in its place."""
    _, params, lesson = made()
    state = read(STILL, params, TEXT[reader : reader + 1]).state
    older = jax.tree.map(lambda leaf: leaf[:, reader : reader + 1], experts_of(lesson.student))
    expert = Expert(*(leaf[:, 0, 0, 2] for leaf in older[:3]))

    def having(expert):
        new = (old.at[0, 0, 0, 2].set(leaf[0]) for old, leaf in zip(older, expert, strict=False))
        return with_experts(state, older._replace(**dict(zip(Expert._fields, new, strict=True))))

    return expert, having


def alone(reader):
    """One reader's own: the newest expert, and loss and gradient of it by a text."""
    _, params, _ = made()
    expert, having = student(reader)

    def loss(expert, text, counted):
        state = having(expert)
        losses = score_segment(STILL, params, text[None, :-1], text[None, 1:], state)[0][0]
        return jnp.sum(losses * counted) / jnp.sum(counted)

    compiled = jax.jit(jax.value_and_grad(loss))

    def of(expert, text, start=1):
        """The mean from a token to the last that was drawn, in plain counting."""
        place = np.arange(1, len(text))
        end = start + LENGTH if text is not TASK else len(text)
        return compiled(expert, text, (place >= start) & (place < end))

    return expert, of


def trained(loss, expert, texts, rate, steps, besides=None):
    """After steps by the mean of some texts and what is added to it, and the losses of the texts."""
    optimizer, losses = optax.adam(rate), []
    state = optimizer.init(expert)
    for step in range(steps):
        found = [loss(expert, *text) for text in texts]
        losses.append(np.mean([value for value, _ in found]))
        mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *(g for _, g in found))
        if besides is not None:
            mean = jax.tree.map(jnp.add, mean, jax.grad(besides)(expert, step))
        updates, state = optimizer.update(mean, state, expert)
        expert = optax.apply_updates(expert, updates)
    return expert, losses


@pytest.mark.parametrize("reader", range(READERS))
def test_what_is_chosen_tried_and_learnt_is_that_of_each_reader_alone(reader):
    model, _, _ = made()
    woken, dreams = dreamt()
    expert, loss = alone(reader)
    texts = [*zip(dreams.samples.tokens[reader], dreams.samples.start[reader], strict=True)]
    near = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-5)
    norms = [np.sqrt(sum((w**2).sum() for w in loss(expert, *text)[1])) for text in texts]
    near(dreams.norms[reader], norms)
    tried = dreams.tried[reader]
    np.testing.assert_array_equal(tried[:2], np.argsort(-np.array(norms), kind="stable")[:2])
    assert len(set(tried)) == 3
    before = -loss(expert, TASK)[0]
    near(dreams.before[reader], before)
    scores = [-loss(trained(loss, expert, [texts[n]], 0.1, 2)[0], TASK)[0] for n in tried]
    near(dreams.scores[reader], scores)
    np.testing.assert_array_equal(dreams.reward[reader], np.array(scores) > before)
    helped = [texts[n] for n, reward in zip(tried, dreams.reward[reader], strict=True) if reward]
    learnt, losses = trained(loss, expert, helped, 0.05, 3) if helped else (expert, [0] * 3)
    assert 0 < dreams.reward.sum() < dreams.reward.size
    near(dreams.losses[reader], losses)
    near(dreams.after[reader], -loss(learnt, TASK)[0])
    mine = jax.tree.map(lambda leaf: leaf[reader], newest_expert(model, woken, 0))
    jax.tree.map(near, mine, learnt)


def test_texts_are_rehearsed_where_dreams_are_learned_and_not_in_trials():
    model, params, lesson = made()
    texts = np.random.default_rng(1).integers(VOCAB, size=(3, 5))
    settings = dataclasses.replace(SETTINGS, samples=2, rehearsal=100.0)
    lesson = keep_texts(model, params, lesson, jnp.asarray(texts), settings)
    woken, dreams = dream(model, params, lesson, settings, DREAMING, score)
    freely, free = dreamt()
    for name in ("tried", "scores", "reward", "before"):
        np.testing.assert_array_equal(getattr(dreams, name), getattr(free, name))
    for reader in range(READERS):
        expert, having = student(reader)

        def likely(expert, rows, having=having):
            state = having(expert)
            said = [STILL.apply({"params": params}, row[None, :-1], state)[0][0] for row in rows]
            return jax.nn.log_softmax(jnp.stack(said))

        def besides(now, step, likely=likely, expert=expert):
            rows = texts[(2 * step + np.arange(2)) % 3]
            before, after = (likely(one, rows) for one in (expert, now))
            return 100 * jnp.mean(jnp.sum(jnp.exp(before) * (before - after), -1))

        said = zip(dreams.samples.tokens[reader], dreams.samples.start[reader], strict=True)
        said = [*said]
        tried = zip(dreams.tried[reader], dreams.reward[reader], strict=True)
        helped = [said[number] for number, reward in tried if reward]
        if not helped:
            continue
        learnt, losses = trained(alone(reader)[1], expert, helped, 0.05, 3, besides)
        near = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-4)
        near(dreams.losses[reader], losses)
        mine, other = (
            jax.tree.map(lambda leaf, reader=reader: leaf[reader], newest_expert(model, state, 0))
            for state in (woken, freely)
        )
        jax.tree.map(near, mine, learnt)
        assert max(np.abs(a - b).max() for a, b in zip(mine, other, strict=True)) > 0.01


def test_without_openings_what_was_said_behind_them_is_learned_alone():
    model, params, lesson = made()
    bare = dataclasses.replace(DREAMING, without_openings=True)
    _, dreams = dream(model, params, lesson, SETTINGS, bare, score)
    _, whole = dreamt()
    for reader in range(READERS):
        expert, loss = alone(reader)
        for number in range(DREAMING.dreams):
            start = int(whole.samples.start[reader, number])
            said = whole.samples.tokens[reader, number, start : start + LENGTH]
            np.testing.assert_array_equal(dreams.samples.tokens[reader, number], said)
            gradient = loss(expert, said, 0)[1]
            norm = np.sqrt(sum((w**2).sum() for w in gradient))
            np.testing.assert_allclose(dreams.norms[reader, number], norm, rtol=2e-3, atol=1e-5)


def test_all_but_the_newest_expert_stays_to_the_bit():
    _, _, lesson = made()
    woken, _ = dreamt()
    ours, theirs = (experts_of(state) for state in (woken, lesson.student))
    assert_same(*(with_experts(state, ()) for state in (woken, lesson.student)))
    assert_same(*(jax.tree.map(lambda w: w[:, :, :, :2], experts) for experts in (ours, theirs)))
    for new, old in zip(ours[:3], theirs[:3], strict=True):
        assert (new[:, :, :, 2] != old[:, :, :, 2]).any()


def test_each_dream_is_spoken_with_another_expert_opened():
    _, params, lesson = made()
    _, dreams = dreamt()
    found = set()
    for reader in range(READERS):
        alone = read(STILL, params, TEXT[reader : reader + 1])
        own = experts_of(lesson.teacher.state)
        own = own._replace(**{name: leaf[:, reader] for name, leaf in own._asdict().items()})
        key = jax.random.split(jax.random.fold_in(KEYS[reader], _DREAMS), 3)[1]
        keys = jax.random.split(key, DREAMING.dreams)
        for number in range(DREAMING.dreams):
            opened = jax.tree.map(lambda leaf: leaf[:, None], open_random_expert(keys[number], own))
            state = jax.tree.map(jnp.copy, with_experts(alone.state, opened))  # is reused
            context = Context(state, lesson.teacher.logits[reader, None])
            start = int(dreams.samples.start[reader, number])
            text = dreams.samples.tokens[reader, number]
            opening = OPENINGS[LENGTHS.tolist().index(start), :start]
            np.testing.assert_array_equal(text[:start], opening)
            for token in opening:
                context = read(STILL, params, token[None, None], context)
            said, _ = generate(STILL, params, context, keys[0], num_tokens=LENGTH, temperature=0)
            np.testing.assert_array_equal(text[start : start + LENGTH], said[0])
            found.add((start, *said[0].tolist()))
    assert len(found) > 3 and {start for start, *_ in found} == {2, 3}
    assert (dreams.samples.start[0] != dreams.samples.start[1]).any()  # by keys of their own
