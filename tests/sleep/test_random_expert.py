"""A random expert of each router, opened fully, against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.layers.experts import Experts, read_experts
from hope_jax.sleep.random_expert import everyones, open_random_expert
from tests.sleep.reader import CONFIG, assert_same

BLOCKS, POOLS, WIDTH, ROOM = 2, 2, 4, 3
RANDOM = np.random.default_rng(0)


def experts(room, rank, active):
    sizes = (WIDTH, rank), (rank, WIDTH), (WIDTH,)
    arrays = [RANDOM.normal(size=(BLOCKS, POOLS, room, *size)) for size in sizes]
    return Experts(*(jnp.asarray(w, jnp.float32) for w in arrays), jnp.asarray(active))


# The second pool of the first block has none, that of the second the last alone.
ACTIVE = np.array([[[1, 1, 0], [0, 0, 0]], [[1, 1, 1], [0, 0, 1]]], bool)
OWN = experts(ROOM, 3, ACTIVE)
KEYS = jax.random.split(jax.random.key(0), 300)


def output_of(x, down, up):
    """Of an expert whose gate is 1."""
    gelu = lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    return gelu(x @ down) @ up


def test_one_that_is_switched_on_is_drawn_for_each_pool():
    opened = jax.vmap(lambda key: open_random_expert(key, OWN))(KEYS)
    for old, new in zip(OWN, opened, strict=True):
        np.testing.assert_array_equal(new[:, :, :, :ROOM], np.broadcast_to(old, (300, *old.shape)))
    copies = np.asarray(opened.down[:, :, :, ROOM])
    for block, pool in np.ndindex(BLOCKS, POOLS):
        same = (copies[:, block, pool, None] == OWN.down[block, pool]).all((2, 3))
        drawn, on = same.mean(0), ACTIVE[block, pool]
        np.testing.assert_array_equal(opened.active[:, block, pool, ROOM], on.any())
        if on.any():
            np.testing.assert_allclose(drawn[on], 1 / on.sum(), atol=0.1)
            assert not drawn[~on].any()
    blocks = (copies[:, 0, 0] == OWN.down[0, 0, 0]).all((1, 2)) == (
        copies[:, 1, 0] == OWN.down[1, 0, 0]
    ).all((1, 2))
    assert 0.2 < blocks.mean() < 0.8  # each router draws for itself


def test_its_gate_is_one_and_those_of_the_others_are_as_they_were():
    x = RANDOM.normal(size=(1, 5, WIDTH))
    opened = open_random_expert(KEYS[0], OWN)
    for block, pool in np.ndindex(BLOCKS, POOLS):
        before, after = (
            read_experts(x, Experts(*(leaf[block] for leaf in held)), pool, "float32")
            for held in (OWN, opened)
        )
        if not ACTIVE[block, pool].any():
            np.testing.assert_array_equal(after, before)
            continue
        down, up = (np.asarray(leaf[block, pool, ROOM]) for leaf in opened[:2])
        place = int((OWN.down[block, pool] == down).all((1, 2)).argmax())
        gate = 1 / (1 + np.exp(-x @ OWN.router[block, pool, place] / WIDTH**0.5))
        more = (1 - gate[..., None]) * output_of(x, down, up)
        np.testing.assert_allclose(after - before, more, rtol=1e-4, atol=1e-5)
        assert np.abs(more).max() > 0.1


def test_everyones_are_drawn_too_whatever_their_rank():
    of_all = experts(2, 5, np.ones((BLOCKS, POOLS, 2), bool))
    x = RANDOM.normal(size=(1, 5, WIDTH))
    found = set()
    for key in KEYS[:20]:
        opened = open_random_expert(key, OWN, of_all)
        assert opened.down.shape == (BLOCKS, POOLS, ROOM + 1, WIDTH, 5)
        place = (of_all.down[0, 1] == opened.down[0, 1, ROOM]).all((1, 2))
        assert place.sum() == 1 and opened.active[0, 1, ROOM]  # of its own there is none
        found.add(int(place.argmax()))
        before, after = (
            read_experts(x, Experts(*(leaf[1] for leaf in held)), 0, "float32")
            for held in (OWN, opened._replace(active=opened.active.at[..., ROOM].set(False)))
        )
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    assert found == {0, 1}
    other = experts(ROOM, 7, ACTIVE)
    np.testing.assert_array_equal(
        open_random_expert(KEYS[0], other, of_all).down[..., :ROOM, :, :], other.down
    )


def test_those_of_the_parameters_are_all_switched_on():
    assert everyones(CONFIG, {}) is None
    config = dataclasses.replace(CONFIG, in_context={**CONFIG.in_context, "experts": ROOM})
    params = {f"expert_{name}": getattr(OWN, name) for name in ("down", "up", "router")}
    assert_same(everyones(config, params), OWN._replace(active=np.ones_like(ACTIVE)))
