"""Nights on meshes of eight devices: they are those on one, and nothing lies whole on every device."""

import contextlib
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from hope_jax.inference.sampling import Context, read
from hope_jax.layers.mlp import MLPWeights
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.models.parameter_count import boxed_shapes
from hope_jax.planning.cost import program_cost
from hope_jax.planning.hlo import arrays, parse
from hope_jax.planning.memory import made_whole
from hope_jax.sleep.config import DreamConfig, SleepConfig
from hope_jax.sleep.cycle import begin_lesson, sleep
from hope_jax.sleep.layout import lay_out
from hope_jax.sleep.seeding import begin_seeding, seed_step
from hope_jax.training.sharding import make_mesh, on_mesh, parameter_shardings
from hope_jax.training.step import TrainState
from tests.sleep.reader import assert_same

CONFIG = LanguageModelConfig(
    vocab_size=16,
    width=16,
    num_layers=2,
    num_heads=4,
    mlp_width=24,
    sequence_layer="attention",
    attention_window=8,
    cms_levels=2,
    in_context={"chunks": (4, 8), "blocks": 1},
)
SETTINGS = SleepConfig(experts=2, expert_width=4, steps=2, samples=8, tokens=6, a=0.5)
OPTIMIZER = optax.adam(0.1)
DREAMING = DreamConfig(dreams=8, dream_tokens=4, best=1, others=1, trial_steps=1, dream_steps=1)
SPLIT, SHARED = (8, 1, 1), (1, 4, 2)  # data, fsdp, tensor


def score(model, params, state):
    """How likely 0, 1, 2, 3 is."""
    asked = jnp.arange(4, dtype=jnp.int32)[None]
    losses, _ = model.apply({"params": params}, asked[:, :-1], asked[:, 1:], state, method="score")
    return -losses.mean()


class Place:
    """A model on a mesh, or on one device, and readers of it.

    Attributes:
      params: of the model.
      context: what the readers have read.
    """

    def __init__(self, readers, shape, dtype="float32"):
        self.model = LanguageModel(dataclasses.replace(CONFIG, dtype=dtype, param_dtype=dtype))
        self.text = np.random.default_rng(0).integers(16, size=(readers, 11), dtype=np.int32)
        self.keys = jax.random.split(jax.random.key(5), readers)
        params = jax.jit(self.model.init)(jax.random.key(0), self.text[:, :2])["params"]
        self.params = nn.unbox(params)
        self.on: type[contextlib.nullcontext] = contextlib.nullcontext
        if shape is not None:
            mesh = make_mesh(*shape)
            places = parameter_shardings(mesh, boxed_shapes(self.model))
            self.params = jax.device_put(self.params, places)
            self.on = functools.partial(on_mesh, mesh)
        with self.on():
            self.context = read(self.model, self.params, self.text)

    def night(self, context=None, **more):
        with self.on():
            context = self.context if context is None else context
            given = self.model, self.params, context, self.keys
            return sleep(*given, more.pop("settings", SETTINGS), OPTIMIZER, **more)

    def next_day(self, state):
        with self.on():
            seen = Context(state, self.context.logits)
            return read(self.model, self.params, self.text[:, ::-1], seen)

    def step(self):
        """The seeding step, compiled, and shapes and shardings of the parameters."""
        with self.on():
            lesson = begin_lesson(self.model, self.params, self.context, self.keys, SETTINGS)
            seeding = begin_seeding(self.model, lesson, SETTINGS, OPTIMIZER)
            given = self.model, self.params, lesson, seeding, SETTINGS, OPTIMIZER
            return seed_step.lower(*given).compile()


@pytest.mark.parametrize(
    "readers, shape, settings, dreams",
    [
        (1, SHARED, SETTINGS, {"dreaming": DREAMING, "score": score}),
        (2, SPLIT, dataclasses.replace(SETTINGS, kept_samples=16), {}),
    ],
)
def test_a_night_on_a_mesh_is_that_on_one_device(x64, readers, shape, settings, dreams):
    night, single = (
        Place(readers, place, "float64").night(settings=settings, **dreams)
        for place in (shape, None)
    )
    assert (single[1].before != single[1].after).all() and single[1].kept
    # Rewards are float32, and all else is float64.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    jax.tree.map(close, night, single)


def test_the_next_night_on_a_mesh_compiles_nothing_and_one_goes_on_to_the_same_bits(caplog):
    place, seen = Place(1, SHARED), []
    state, _ = place.night(on_step=seen.append)
    kept = [np.asarray(leaf) for leaf in jax.tree.leaves(seen[0])]
    awake = place.next_day(state)
    with jax.log_compiles():
        again, _ = place.night(begun=kept)
        place.night(awake)
    compiled = [record.getMessage() for record in caplog.records]
    assert not [said for said in compiled if "XLA compilation of jit(seed_step)" in said]
    assert not [said for said in compiled if "XLA compilation of jit(measure)" in said]
    assert_same(again, state)


def test_levels_lie_as_their_weights_and_all_else_on_every_device():
    levels = MLPWeights(*(jnp.zeros((1, 1, *size)) for size in ((16, 24), (16, 24), (24, 16))))
    with on_mesh(make_mesh(*SHARED)):
        placed, other = lay_out((levels, jnp.zeros((8, 4))))
    shards = [leaf.sharding.shard_shape(leaf.shape) for leaf in placed]
    assert shards == [(1, 1, 4, 12), (1, 1, 4, 12), (1, 1, 12, 4)]
    assert other.sharding.is_fully_replicated and len(other.sharding.device_set) == 8


def test_samples_are_divided_and_no_parameter_is_whole_where_a_mesh_splits_it():
    caches = SETTINGS.samples * CONFIG.attention_window * CONFIG.width  # of a block, all samples
    sizes = {}
    for shape in (None, SPLIT, SHARED):
        place = Place(1, shape)
        text = place.step().as_text()
        operations = [one for part in parse(text).computations.values() for one in part]
        made = {array[1] for one in operations for array in arrays(one.result)}
        sizes[shape] = max(map(math.prod, made))
        if shape == SHARED:
            target = TrainState(None, place.params, ())
            formed = made_whole(target, program_cost(text).collectives)
            # Activations of two samples, (2, 16), have the shape of the norms' scales.
            assert all("/scale " in name for name in formed)
            halves = [(16, 24), (24, 16), (1, 1, 16, 24), (1, 1, 24, 16)]  # a layer's, whole
            assert not made & {*halves, (2, 16, 24), (2, 24, 16)}
    assert sizes[None] >= 2 * caches and sizes[SPLIT] <= caches and sizes[SHARED] <= caches
