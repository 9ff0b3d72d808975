"""Room, expansion, and what the student has given up, before anything is learned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.inference.level_tools import learnt_in
from hope_jax.inference.sampling import read
from hope_jax.models import LanguageModel
from hope_jax.models.in_context import slow_weights
from hope_jax.sleep.expansion import (
    Expert,
    expand,
    experts_of,
    make_room,
    pools_for,
    put,
    take,
    with_experts,
)
from hope_jax.sleep.student import apply_pending, student_of
from tests.sleep.reader import CONFIG, READERS, SETTINGS, TEXT, assert_same, made

KEYS = jax.random.split(jax.random.key(3), READERS)


def roomy(state, experts=2):
    return make_room(made()[0], state, experts, 3)


def test_room_is_made_once_and_grown_with_what_it_holds():
    model, _, context = made()
    state = roomy(context.state)
    assert experts_of(state).down.shape == (1, READERS, 2, 2, 4, 3)
    assert not experts_of(state).active.any()
    assert roomy(state) is state
    expanded = expand(model, state, 0, KEYS)
    grown = experts_of(roomy(expanded, 4))
    assert grown.active.shape[-1] == 4 and int(grown.active.sum()) == READERS
    assert_same(jax.tree.map(lambda w: w[:, :, :, :2], grown), experts_of(expanded))
    with pytest.raises(
        ValueError, match="expert_width=5, but the experts in this state have rank 3"
    ):
        make_room(model, state, 2, 5)


def test_expansion_takes_the_next_free_one_of_the_level_that_receives():
    model, _, context = made()
    once = expand(model, roomy(context.state), 0, KEYS)
    twice = experts_of(expand(model, once, 0, KEYS[::-1]))
    np.testing.assert_array_equal(experts_of(once).active[0], [[[1, 0], [0, 0]]] * READERS)
    np.testing.assert_array_equal(twice.active[0], [[[1, 1], [0, 0]]] * READERS)
    assert not twice.up.any() and not twice.router.any()
    assert np.std(twice.down[0, :, 0]) > 0.3 and not twice.down[0, :, 1].any()
    assert_same(twice.down[0, 0, 0, 0], twice.down[0, 1, 0, 1])  # of the same key
    below = experts_of(expand(model, once, 1, KEYS))
    np.testing.assert_array_equal(below.active[0], [[[1, 0], [1, 0]]] * READERS)


def test_a_full_level_is_refused_with_what_frees_it():
    model, _, context = made()
    full = expand(model, expand(model, roomy(context.state), 0, KEYS), 0, KEYS)
    message = (
        "all 2 experts for what level 0 has learned are in use; let level 1 sleep, which frees"
    )
    with pytest.raises(ValueError, match=message):
        expand(model, full, 0, KEYS)
    full = expand(model, expand(model, full, 1, KEYS), 1, KEYS)
    with pytest.raises(ValueError, match="level 1 has learned are in use; set experts to a higher"):
        expand(model, full, 1, KEYS)
    with pytest.raises(ValueError, match="there is no level 2"):
        expand(model, full, 2, KEYS)


def test_what_is_put_is_taken_and_only_where_the_receiver_is():
    """Levels over depth: of four blocks, the third takes in what the first two have learned."""
    model = LanguageModel(
        dataclasses.replace(
            CONFIG,
            num_layers=4,
            cms_levels=1,
            in_context={"chunks": (2, 4, 8), "blocks": 4},
        )
    )
    here = pools_for(model.config, 0)
    np.testing.assert_array_equal(here, [[0, 0], [0, 0], [1, 0], [0, 0]])
    room = jax.tree.map(lambda w: w[:, 0], experts_of(roomy(made()[2].state)))
    room = jax.tree.map(lambda w: jnp.ones((4, *w.shape[1:]), w.dtype), room)
    room = room._replace(active=jnp.zeros_like(room.active))
    random = np.random.default_rng(1)
    expert = Expert(*(random.normal(size=s) for s in ((4, 4, 3), (4, 3, 4), (4, 4))))
    held = put(room, expert, here, 1)
    assert int(held.active.sum()) == 1 and held.active[2, 0, 1]
    mine = jnp.array([0, 0, 1, 0])
    for given, found in zip(expert, take(held, here, 1), strict=True):
        np.testing.assert_allclose(found, given * mine.reshape(-1, *(1,) * (given.ndim - 1)))
    square = lambda e: sum(jnp.sum(w**2) for w in put(room, e, here, 1)[:3])
    for gradient, given in zip(jax.grad(square)(expert), expert, strict=True):
        np.testing.assert_allclose(gradient[2], 2 * given[2], rtol=1e-6)
        assert not gradient[jnp.array([0, 1, 3])].any()


@pytest.mark.parametrize("keep", [False, True])
def test_the_student_lacks_what_its_level_has_given_up_and_nothing_else(keep):
    model, params, context = made()
    state = expand(model, expand(model, roomy(context.state), 0, KEYS), 1, KEYS)
    for level in (0, 1):
        settings = dataclasses.replace(SETTINGS, level=level, keep_context=keep)
        student = student_of(model, params, state, settings)
        before, after = (learnt_in(s)[1] for s in (state, student))
        slow = slow_weights(model.config, params)[level]
        jax.tree.map(
            lambda w, w_0: np.testing.assert_array_equal(w, np.broadcast_to(w_0[:, None], w.shape)),
            after.levels[level].weights,
            slow,
        )
        assert not any(leaf.any() for leaf in jax.tree.leaves(after.levels[level].gradient))
        assert_same(after.levels[1 - level], before.levels[1 - level])
        assert np.abs(before.levels[level].weights.up - after.levels[level].weights.up).max() > 1e-4
        assert after.chunks == before.chunks
        experts = experts_of(state)
        if level == 1:  # what level 1 had taken in from level 0 goes on with the rest of it
            gone = experts_of(student)
            assert not any(leaf[:, :, 0].any() for leaf in gone)
            assert_same(*(jax.tree.map(lambda w: w[:, :, 1], e) for e in (gone, experts)))
        else:
            assert_same(experts_of(student), experts)
        sequence, filled = student.blocks, student.adapting.open_chunk.filled
        if keep:
            assert_same(sequence, state.blocks)
            assert filled == state.adapting.open_chunk.filled
        else:
            assert filled == 0 and not sequence.sequence.position.any()


def test_the_pending_change_is_that_of_the_end_of_a_period():
    """Level 1 changes every four tokens: after three chunks of two and a token it has gathered one."""
    model, params, context = made()
    before = learnt_in(context.state)[1].levels
    after = learnt_in(apply_pending(model, params, context.state, 1))[1].levels
    assert_same(after[0], before[0])
    step = np.exp(params["log_step"])[0, 1] * 1.0
    for new, old, gradient in zip(
        after[1].weights, before[1].weights, before[1].gradient, strict=True
    ):
        assert np.abs(gradient).max() > 1e-6
        np.testing.assert_allclose(new, old - step * gradient / 2, rtol=1e-6, atol=1e-7)
    assert not any(leaf.any() for leaf in after[1].gradient)
    assert_same(learnt_in(apply_pending(model, params, context.state, 0))[1].levels, before)


def test_experts_of_a_reader_stay_where_another_text_is_read():
    model, params, context = made()
    state = expand(model, roomy(context.state), 0, KEYS)
    on = experts_of(state)._replace(up=jnp.ones_like(experts_of(state).up))
    after = read(model, params, TEXT, context._replace(state=with_experts(state, on)))
    assert_same(experts_of(after.state), on)
