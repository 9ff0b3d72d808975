"""Nights of a small model: their order, what they change, and that they are each reader's own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope_jax.inference import context_file
from hope_jax.inference.context_file import load_context, save_context
from hope_jax.inference.level_tools import learnt_in
from hope_jax.inference.sampling import Context, read
from hope_jax.sleep import cycle
from hope_jax.sleep.config import DreamConfig
from hope_jax.sleep.cycle import sleep
from hope_jax.sleep.dreams import Dreams
from hope_jax.sleep.expansion import expand, experts_of, make_room, pools_for
from hope_jax.sleep.readers import as_batch, axes, equipped, readers_of
from hope_jax.sleep.seeding import (
    Lesson,
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
from tests.sleep.reader import OPTIMIZER, READERS, SETTINGS, TEXT, VOCAB, assert_same, made

KEYS = jax.random.split(jax.random.key(5), READERS)
PROGRAMS = (seed_step, measure, student_of, with_expert, cycle._held_out)


def counts():
    return [program._cache_size() for program in PROGRAMS]


@functools.cache
def nights():
    """Two nights with a text between them, and how many programs there were after each."""
    model, params, context = made()
    first = sleep(model, params, context, KEYS, SETTINGS, OPTIMIZER, texts=jnp.asarray(TEXT))
    after_first = counts()
    awake = read(model, params, TEXT[:, ::-1], Context(first[0], context.logits))
    second = sleep(model, params, awake, KEYS, SETTINGS, OPTIMIZER, texts=jnp.asarray(TEXT))
    return first, after_first, awake, second, counts()


def test_a_night_trains_the_new_expert_alone_and_brings_the_student_nearer():
    model, params, context = made()
    (state, night), *_ = nights()
    assert night.kept and night.steps.loss.shape == (2, READERS)
    assert (night.before > 1e-4).all() and (night.after != night.before).all()
    assert ((night.steps.reward > 0) & (night.steps.reward <= 1)).all()
    experts = experts_of(state)
    np.testing.assert_array_equal(experts.active[0], [[[1, 0], [0, 0]]] * READERS)
    for leaf in experts[:3]:
        assert leaf[:, :, 0, 0].any() and not leaf[:, :, 0, 1].any() and not leaf[:, :, 1].any()
    # All else is the student's, to the bit.
    room = make_room(model, context.state, 2, 3)
    student = student_of(model, params, room, SETTINGS)
    assert_same(
        state._replace(adapting=state.adapting._replace(experts=())),
        student._replace(adapting=student.adapting._replace(experts=())),
    )
    assert night.held_out_before.shape == night.held_out_after.shape == (READERS,)
    assert (night.held_out_before != night.held_out_after).all()


def test_a_night_goes_on_from_where_it_was_to_the_same_bits():
    model, params, context = made()
    (state, night), *_ = nights()
    seen = []
    more = {"texts": jnp.asarray(TEXT), "on_step": seen.append}
    sleep(model, params, context, KEYS, SETTINGS, OPTIMIZER, **more)
    kept = [np.asarray(leaf) for leaf in jax.tree.leaves(seen[0])]  # as a file has them
    before = counts()
    again = sleep(model, params, context, KEYS, SETTINGS, OPTIMIZER, begun=kept, **more)
    assert len(seen) == 3 and counts() == before
    assert_same(again, (state, night))


def test_the_next_night_compiles_nothing_and_leaves_older_experts_as_they_are():
    (first, _), after_first, awake, (second, night), after_second = nights()
    assert after_second == after_first
    old, new = experts_of(awake.state), experts_of(second)
    np.testing.assert_array_equal(new.active[0], [[[1, 1], [0, 0]]] * READERS)
    assert_same(*(jax.tree.map(lambda w: w[:, :, 0, 0], e) for e in (new, old)))
    assert_same(old, experts_of(first))
    assert new.up[:, :, 0, 1].any() and night.kept


def test_two_readers_in_a_batch_sleep_as_each_alone():
    model, params, _ = made()
    (together, night), *_ = nights()
    alone = read(model, params, TEXT[1:])
    state, mine = sleep(model, params, alone, KEYS[1:], SETTINGS, OPTIMIZER)
    np.testing.assert_allclose(mine.before, night.before[1:], rtol=1e-4)
    np.testing.assert_allclose(mine.after, night.after[1:], rtol=1e-4)
    for ours, theirs in zip(mine.steps, night.steps, strict=True):
        np.testing.assert_allclose(ours[:, 0], theirs[:, 1], rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(experts_of(state), experts_of(together), strict=True):
        np.testing.assert_allclose(ours[:, 0], theirs[:, 1], rtol=1e-3, atol=1e-5)


def test_a_step_descends_the_measured_divergence():
    """One step of size 1 against differences; the teacher is greedy, so that its samples are the same."""
    model, params, context = made()
    settings = dataclasses.replace(SETTINGS, lam=0.0, a=1.0)
    sgd = optax.sgd(1.0)
    room = make_room(model, context.state, 2, 3)
    student = expand(model, student_of(model, params, room, settings), 0, KEYS)
    lesson = Lesson(Context(room, context.logits), student, KEYS)
    seeding = begin_seeding(model, lesson, settings, sgd)
    begun = seeding.expert._replace(up=0.3 * jnp.ones_like(seeding.expert.up))
    after, found = seed_step(model, params, lesson, seeding._replace(expert=begun), settings, sgd)
    here = functools.partial(measure, model, params, lesson, settings=SETTINGS)
    np.testing.assert_allclose(found.divergence, here(expert=begun), rtol=1e-5)
    for name in begun._fields:
        weights = getattr(begun, name)
        way = jnp.asarray(np.random.default_rng(2).normal(size=weights.shape), weights.dtype)
        near = [begun._replace(**{name: weights + size * way}) for size in (0.02, -0.02)]
        slope = (here(expert=near[0]) - here(expert=near[1])) / 0.04
        moved = getattr(after.expert, name) - weights
        axes = tuple(range(1, weights.ndim))
        np.testing.assert_allclose(-jnp.sum(moved * way, axes), slope, rtol=0.03, atol=2e-4)


def test_samples_that_are_kept_are_those_that_steps_learn_from():
    model, params, context = made()
    settings = dataclasses.replace(SETTINGS, lam=0.0, a=1.0, temperature=1.0, kept_samples=4)
    room = make_room(model, context.state, 2, 3)
    student = expand(model, student_of(model, params, room, settings), 0, KEYS)
    bare = Lesson(Context(room, context.logits), student, KEYS)
    lesson = keep_samples(model, params, bare, settings)
    tokens = lesson.kept.samples.tokens
    assert tokens.shape == (READERS, 4, 5)
    # Each reader's key is its own.
    other = bare._replace(keys=jnp.stack([KEYS[0], jax.random.key(6)]))
    changed = keep_samples(model, params, other, settings).kept.samples.tokens
    np.testing.assert_array_equal(changed[0], tokens[0])
    assert (changed[1] != tokens[1]).any()
    seeding = begin_seeding(model, lesson, settings, OPTIMIZER)
    found = [
        seed_step(
            model, params, lesson, seeding._replace(step=jnp.asarray(step)), settings, OPTIMIZER
        )[1].divergence
        for step in range(3)
    ]
    np.testing.assert_array_equal(found[0], found[2])
    assert (found[0] != found[1]).all()
    # The first step's are the first of each reader's own: the others do not matter to it.
    half = jax.tree.map(lambda leaf: leaf.at[:, 2:].set(0), lesson.kept)
    same = seed_step(model, params, lesson._replace(kept=half), seeding, settings, OPTIMIZER)
    np.testing.assert_array_equal(same[1].divergence, found[0])
    # A greedy teacher says the same anew at each step.
    _, night = sleep(
        model,
        params,
        context,
        KEYS,
        dataclasses.replace(SETTINGS, kept_samples=2),
        OPTIMIZER,
    )
    (_, anew), *_ = nights()
    np.testing.assert_allclose(night.steps.loss, anew.steps.loss, rtol=1e-5)
    np.testing.assert_allclose(night.after, anew.after, rtol=1e-5)


def test_what_is_kept_is_found_a_few_at_a_time():
    model, params, context = made()
    silent = dataclasses.replace(SETTINGS, lam=0.0, a=1.0, temperature=1.0)
    few, many = (dataclasses.replace(silent, samples=n, kept_samples=10) for n in (1, 3))
    bare = cycle.begin_lesson(model, params, context, KEYS, few)
    texts = jnp.asarray(np.random.default_rng(3).integers(VOCAB, size=(10, 6)))
    some, whole = (keep_texts(model, params, bare, texts, one).rehearsed for one in (few, many))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), some, whole)
    tokens = keep_samples(model, params, bare, few).kept.samples.tokens
    assert tokens.shape[:2] == (READERS, 10)
    for first, second in ((slice(4), slice(4, 8)), (slice(2), slice(8, 10))):
        assert (tokens[:, first] != tokens[:, second]).any((1, 2)).all()


def test_what_is_rehearsed_is_held_to_who_the_student_was_at_first():
    """Against the gradient of the mean divergence on the texts of a step, each read by itself."""
    model, params, context = made()
    settings = dataclasses.replace(SETTINGS, lam=0.0, a=1.0, rehearsal=0.5)
    bare = cycle.begin_lesson(model, params, context, KEYS, settings)
    texts = np.random.default_rng(3).integers(VOCAB, size=(3, 6))
    lesson = keep_texts(model, params, bare, jnp.asarray(texts), settings)
    sgd = optax.sgd(1.0)
    seeding = begin_seeding(model, lesson, settings, sgd)
    up = 0.3 * jnp.ones_like(seeding.expert.up)
    seeding = seeding._replace(expert=seeding.expert._replace(up=up), step=jnp.asarray(1))
    after, plain = (seed_step(model, params, one, seeding, settings, sgd) for one in (lesson, bare))
    here = pools_for(model.config, settings.level)
    student = readers_of(Context(bare.student, context.logits))

    def reads(expert, one):
        state = as_batch(model, equipped(one, expert, here), 1).state
        rows = [texts[2:, :-1], texts[:1, :-1]]  # the second step's, round and round
        logits = [model.apply({"params": params}, row, state)[0] for row in rows]
        return jax.nn.log_softmax(jnp.concatenate(logits))

    @functools.partial(jax.vmap, in_axes=(0, 0, axes(model)))
    def drift(expert, first, one):
        before = reads(first, one)
        return jnp.mean(jnp.sum(jnp.exp(before) * (before - reads(expert, one)), -1))

    first = seeding.expert._replace(up=0 * up)
    value, gradient = jax.value_and_grad(lambda expert: drift(expert, first, student).sum())(
        seeding.expert
    )
    np.testing.assert_allclose(after[1].loss.sum(), plain[1].loss.sum() + 0.5 * value, rtol=1e-5)
    np.testing.assert_array_equal(after[1].divergence, plain[1].divergence)
    moved = jax.tree.map(jnp.subtract, plain[0].expert, after[0].expert)
    for ours, theirs in zip(moved, gradient, strict=True):
        np.testing.assert_allclose(ours, 0.5 * theirs, rtol=2e-3, atol=1e-6)
    assert float(value) > 1e-3


class Fake:
    """Stands in for what is compiled, and keeps what it was given."""

    def __init__(self, losses):
        self.losses, self.lessons, self.measured = list(losses), [], []

    def step(self, model, params, lesson, seeding, *_):
        self.lessons.append(lesson)
        loss = jnp.full((READERS,), self.losses[int(seeding.step)])
        expert = jax.tree.map(lambda w: w + 1, seeding.expert)
        return seeding._replace(expert=expert, step=seeding.step + 1), SeedingStep(loss, loss, loss)

    def measure(self, model, params, lesson, expert, *_, **__):
        self.measured.append(expert)
        return jnp.zeros(READERS)


@pytest.fixture
def fake(monkeypatch):
    def put(*losses):
        fake = Fake(losses)
        monkeypatch.setattr(cycle, "seed_step", fake.step)
        monkeypatch.setattr(cycle, "measure", fake.measure)
        return fake

    return put


def test_compute_then_consolidate_then_update(fake):
    model, params, context = made()
    night = fake(1.0, 0.5)
    state, _ = sleep(model, params, context, KEYS, SETTINGS, OPTIMIZER)
    for lesson in night.lessons:
        teacher = lesson.teacher.state
        assert_same(learnt_in(teacher)[1], learnt_in(context.state)[1])  # its fast weights too
        assert_same(teacher.blocks, context.state.blocks)
        assert not experts_of(teacher).active.any()
        assert lesson.kept is None and lesson.rehearsed is None
        assert experts_of(lesson.student).active.sum() == READERS  # one of each
        assert not experts_of(lesson.student).up.any()
    assert not night.measured[0].up.any() and (night.measured[1].up == 2).all()
    assert (experts_of(state).up[:, :, 0, 0] == 2).all()
    assert_same(learnt_in(state)[1], learnt_in(night.lessons[0].student)[1])


def test_a_night_rehearses_the_texts_it_is_given(fake):
    model, params, context = made()
    night, texts = fake(1.0, 0.5), TEXT[:, :3]
    sleep(model, params, context, KEYS, SETTINGS, OPTIMIZER, rehearsed=texts)
    for lesson in night.lessons:
        for reader in range(READERS):
            np.testing.assert_array_equal(lesson.rehearsed.samples.tokens[reader], texts)
        assert lesson.rehearsed.samples.spoken[:, :, 1:].all()


def test_a_night_with_a_loss_that_is_no_number_is_dropped(fake):
    model, params, context = made()
    for losses, taken in (((1.0, np.nan), 2), ((np.inf, 1.0), 1)):
        night = fake(*losses)
        state, report = sleep(model, params, context, KEYS, SETTINGS, OPTIMIZER)
        assert state is context.state and not report.kept
        assert len(night.lessons) == len(report.steps.loss) == taken


DREAMING = DreamConfig(dreams=3, best=1, others=1)


def test_dreams_come_after_seeding_and_change_nothing_of_it(fake, monkeypatch):
    model, params, context = made()
    night, seen, lessons, losses = fake(1.0, 0.5), [], [], np.ones((READERS, 2))

    def dreamt(model, params, lesson, settings, dreaming, score, **_):
        assert lessons or len(night.measured) == 2  # before seeding, and after it
        lessons.append(lesson)
        experts = experts_of(lesson.student)
        new = newest_expert(model, lesson.student, settings.level)
        learnt = with_expert(model, lesson.student, jax.tree.map(lambda w: 9 * w, new), 0)
        assert score == "a score" and (experts.up[:, :, 0, 0] == 2).all()
        return learnt, Dreams(*[None] * 5, losses, None, None)

    monkeypatch.setattr(cycle, "dream", dreamt)
    ordered = {"dreaming": DREAMING, "score": "a score"}
    inputs = model, params, context, KEYS, SETTINGS, OPTIMIZER
    state, report = sleep(*inputs, on_step=seen.append, **ordered)
    assert report.kept and (experts_of(state).up[:, :, 0, 0] == 18).all()
    assert (night.measured[2].up == 18).all() and report.after_dreams.shape == (READERS,)
    plain = fake(1.0, 0.5)
    _, without = sleep(*inputs)
    assert without.dreams is None and without.after_dreams is None
    for ours, theirs in zip(lessons[:1] + night.lessons, plain.lessons[:1] * 3, strict=True):
        assert_same(*(jax.random.key_data(lesson.keys) for lesson in (ours, theirs)))
        assert_same(ours.teacher, theirs.teacher)
    # One that was stopped while it dreamt dreams the same again.
    again, _ = sleep(*inputs, begun=jax.tree.leaves(seen[-1]), **ordered)
    assert_same(again, state)
    assert_same(lessons[1]._replace(keys=()), lessons[0]._replace(keys=()))
    losses[0, 1] = np.inf
    state, report = sleep(*inputs, **ordered)
    assert state is context.state and not report.kept and len(lessons) == 3
    fake(np.nan)
    sleep(*inputs, **ordered)
    assert len(lessons) == 3  # who has learned nothing does not dream
    with pytest.raises(ValueError, match="dreams=3 are tried by a score, and there is none"):
        sleep(*inputs, dreaming=DREAMING)


def test_a_state_file_of_before_there_were_experts_is_read(tmp_path, monkeypatch):
    model, params, _ = made()
    alone = read(model, params, TEXT[:1])
    settings = context_file._settings

    def of_before(config):
        known = settings(config)
        for name in ("experts", "expert_width"):
            del known["in_context"][name]
        return known

    with monkeypatch.context() as patch:
        patch.setattr(context_file, "_settings", of_before)
        save_context(tmp_path / "state", alone, model, params)
    assert_same(load_context(tmp_path / "state", model, params), alone)


def test_state_files_with_experts_come_back(tmp_path):
    model, params, context = made()
    alone = read(model, params, TEXT[:1])
    state = expand(model, make_room(model, alone.state, 2, 3), 0, KEYS[:1])
    for kept in (Context(state, alone.logits), alone):
        save_context(tmp_path / "state", kept, model, params)
        loaded = load_context(tmp_path / "state", model, params)
        assert jax.tree.structure(loaded) == jax.tree.structure(kept)
        assert_same(loaded, kept)
