"""Wake and sleep in turn on a stream: the schedule, and that a life goes on from anywhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.inference import sampling
from hope_jax.inference.sampling import Context, score_segment
from hope_jax.models import init_state
from hope_jax.sleep import cycle
from hope_jax.sleep.expansion import experts_of, make_room
from hope_jax.sleep.life import Life, block_size, levels_due, live, night_periods, tokens_read
from hope_jax.sleep.seeding import SeedingStep, with_expert
from hope_jax.sleep.student import student_of
from tests.sleep.reader import CONFIG, OPTIMIZER, SETTINGS, VOCAB, assert_same, made

TOKENS = np.random.default_rng(4).integers(VOCAB, size=(1, 16)).astype(np.int32)
PERIODS = (4, 8)
WITHIN = dataclasses.replace(SETTINGS, keep_context=True)  # nights in the middle of a text
PROGRAMS = (score_segment, sampling._read, student_of, with_expert)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """Steps that compile nothing, and add what depends on the night's key and the step."""

    def step(model, params, lesson, seeding, *_):
        size = 0.1 * jax.random.uniform(jax.random.fold_in(lesson.keys[0], seeding.step))
        expert = jax.tree.map(lambda w: w + size, seeding.expert)
        loss = jnp.full((1,), size)
        return seeding._replace(expert=expert, step=seeding.step + 1), SeedingStep(loss, loss, loss)

    monkeypatch.setattr(cycle, "seed_step", step)
    monkeypatch.setattr(cycle, "measure", lambda *_, **__: jnp.ones(1))


def born():
    model, params, _ = made()
    state = make_room(model, init_state(model, params, 1), SETTINGS.experts, SETTINGS.expert_width)
    return Life(Context(state, jnp.zeros((1, VOCAB))), 0, len(PERIODS))


def lived(life, **told):
    model, params, _ = made()
    rest = TOKENS[:, life.position :]
    blocks = [rest[:, start : start + 4] for start in range(0, rest.shape[1], 4)]
    key = jax.random.key(8)
    return live(model, params, life, blocks, PERIODS, key, WITHIN, OPTIMIZER, **told)


def test_levels_sleep_before_the_next_slower_one_changes():
    assert night_periods(CONFIG, 2) == (4, 8) and night_periods(CONFIG, 5, [8, 40]) == (8, 40)
    assert levels_due((4, 8), 12) == (0,) and levels_due((4, 8), 8) == (0, 1)
    assert block_size((4, 8)) == 4 and block_size((1024, 4096)) == 512 and block_size((7, 14)) == 7
    for given, said in (
        ((2, 4, 8), "a number for each"),
        ((4, 6), "must divide"),
        ((2, 8), "level 0 sleeps 4 times before level 1 does"),
    ):
        with pytest.raises(ValueError, match=said):
            night_periods(CONFIG, 2, given)


def test_a_life_goes_on_from_anywhere_to_the_same_bits_and_compiles_once():
    places, nights, programs = [], [], []

    def note_night(life, level, night):
        places.append(life)
        nights.append((life.position, level))
        programs.append([program._cache_size() for program in PROGRAMS])

    def note_step(life, level, so_far):
        places.append(life)

    end = lived(
        born(),
        on_read=lambda life, losses: places.append(life),
        on_step=note_step,
        on_night=note_night,
    )
    assert nights == [(4, 0), (8, 0), (8, 1), (12, 0), (16, 0), (16, 1)]
    assert end.position == tokens_read(made()[0], end.context.state) == 16
    # The nights of level 1 free the experts for level 0, and are never freed themselves.
    np.testing.assert_array_equal(experts_of(end.context.state).active[0, 0], [[0, 0], [1, 1]])
    # All programs are there when each level has slept once.
    assert programs[2:] == programs[2:3] * 4
    assert len(places) == 4 + 6 + 6 * SETTINGS.steps
    for number, place in enumerate(places):
        if place.night is not None:
            place = place._replace(night=[np.asarray(x) for x in jax.tree.leaves(place.night)])
        steps = []
        again = lived(place, on_step=lambda life, level, so_far, steps=steps: steps.append(life))
        assert_same(again.context, end.context)
        # No step is taken twice.
        assert len(steps) == sum(later.night is not None for later in places[number + 1 :])
    assert [program._cache_size() for program in PROGRAMS] == programs[-1]


def test_a_dropped_night_changes_nothing_and_reading_goes_on(monkeypatch):
    monkeypatch.setattr(cycle, "measure", lambda *_, **__: jnp.full(1, jnp.nan))
    kept = []
    end = lived(born(), on_night=lambda life, level, night: kept.append(night.kept))
    assert kept == [False] * 6 and end.position == 16
    assert not experts_of(end.context.state).active.any()
