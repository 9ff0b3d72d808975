"""Meshes, and where activations and optimiser states lie on them."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.training.sharding import (
    AXES,
    RULES,
    batch_sharding,
    check_batch,
    check_parts,
    make_mesh,
    parameter_shardings,
    shares_of_processes,
)

TOKENS = jnp.zeros((8, 4), jnp.int32)


def model(**changes):
    base = dict(vocab_size=32, width=16, num_layers=1, num_heads=2, mlp_width=16, cms_levels=1)
    base["sequence_layer"] = "attention"
    return LanguageModel(LanguageModelConfig(**{**base, **changes}))


def boxed(network):
    return jax.eval_shape(network.init, jax.random.key(0), TOKENS)["params"]


def test_rest_of_the_devices_fills_the_axis():
    sizes = {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert dict(make_mesh(fsdp=2, tensor=2).shape) == sizes
    assert make_mesh(data=1, sequence=-1).shape["sequence"] == 8


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(data=3), "does not fit 8 devices"),
        (dict(data=-1, fsdp=3), "does not fit 8 devices"),
        (dict(data=-1, fsdp=-1), "one may be -1"),
        (dict(data=0), "must be positive"),
        (dict(expect_devices=16), "8 devices in 1 process;"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes)


def test_batches_and_widths_that_do_not_divide_are_refused():
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    check_batch(mesh, 8, 4)
    with pytest.raises(ValueError, match="multiple of 8"):
        check_batch(mesh, 12, 4)
    with pytest.raises(ValueError, match="do not divide"):
        parameter_shardings(mesh, boxed(model()))  # two heads over four devices


def test_parts_of_sequences_are_whole_chunks():
    mesh = make_mesh(data=1, sequence=8)
    edges = model(sequence_layer="titans", in_context={"chunks": (48,)}).config.part_edges
    assert edges == {
        "titans.memory_chunk": 16,
        "titans.generator_chunk": 64,
        "in_context.chunks": 48,
    }
    check_parts(mesh, 8 * 192 * 3, edges)
    check_parts(make_mesh(), 100, edges)
    assert batch_sharding(mesh).shard_shape((4, 16)) == (4, 2)
    check_parts(mesh, 8, {})
    with pytest.raises(ValueError, match=r"generator_chunk=64.*make it a multiple of 1536"):
        check_parts(mesh, 8 * 192 * 3 - 64, edges)


@pytest.mark.parametrize(
    ("sizes", "shares"),
    [
        ((6, 1, 1, 1), [0, 1, 2]),
        ((3, 1, 2, 1), [0, 1, 2]),
        ((1, 1, 6, 1), [0, 0, 0]),
        ((1, 1, 2, 3), [0, 0, 0]),
        ((2, 1, 3, 1), None),
    ],
)
def test_processes_that_share_sequences_read_the_same_rows(sizes, shares):
    """Three processes of two devices."""
    devices = [types.SimpleNamespace(process_index=index // 2) for index in range(6)]
    shape = dict(zip(AXES, sizes, strict=True))
    mesh = types.SimpleNamespace(shape=shape, devices=np.array(devices).reshape(sizes))
    if shares is None:
        with pytest.raises(ValueError, match="a divisor or a multiple"):
            shares_of_processes(mesh)
    else:
        assert list(shares_of_processes(mesh).values()) == shares


@pytest.mark.parametrize(("fsdp", "expected"), [(4, "fsdp"), (8, None)])
def test_initial_maps_of_memories_are_split_where_devices_divide_a_head(fsdp, expected):
    network = model(num_heads=4, sequence_layer="titans", titans={"generator_chunk": 16})
    mesh = make_mesh(fsdp=fsdp)  # heads of width 4
    shardings = parameter_shardings(mesh, boxed(network))["blocks"]["titans"]
    specs = {
        name: one.spec for name, one in shardings.items() if name.endswith(("_first", "_second"))
    }
    assert len(specs) == 10  # of five memories
    for name, spec in specs.items():
        assert tuple(spec) == (None, "tensor", expected, None), name


def test_activations_lie_where_the_rules_say():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    network = model()
    params = nn.unbox(jax.jit(network.init)(jax.random.key(0), TOKENS)["params"])
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        # Neither parameters nor tokens are sharded: only the constraints inside can do it.
        logits, _ = jax.jit(lambda *args: network.apply({"params": args[0]}, args[1]))(
            params, TOKENS
        )
    assert logits.addressable_shards[0].data.shape[0] == 2
    assert logits.sharding.spec[0] == ("data", "fsdp")


@pytest.mark.parametrize("objective", ["next_token", "local"])
def test_memories_and_levels_lie_with_their_sequences(objective):
    """From the start, where each is a copy of parameters that say nothing of sequences."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    network = model(
        sequence_layer="titans",
        titans={"network": "matrix", "adaptive": ("k",)},
        in_context={"chunks": (2,), "objective": objective, "optimizer": "momentum"},
    )
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), nn.unbox(boxed(network)))
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        _, state = jax.jit(lambda *args: network.apply({"params": args[0]}, args[1]))(
            params, TOKENS[:, :0]
        )
    rows = ("data", "fsdp")
    memories = [leaf for leaf in jax.tree.leaves(state.adapting.blocks.sequence) if leaf.ndim > 4]
    assert memories
    for leaf in memories:  # (blocks, sequences, heads, ...)
        assert tuple(leaf.sharding.spec)[:3] == (None, rows, "tensor"), leaf.shape
    (level,) = state.adapting.blocks.continuum.levels
    for maps in (level.weights, level.momentum):
        assert maps.up.sharding.spec == maps.gate.sharding.spec == P(None, rows, None, "tensor")
        assert tuple(maps.down.sharding.spec)[:3] == (None, rows, "tensor")
