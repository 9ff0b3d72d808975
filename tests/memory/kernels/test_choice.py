"""Where the kernel is used, what is said where it is not, and that a TPU's compiler takes it."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hope_jax.layers.titans import SelfModifyingTitans, TitansConfig
from hope_jax.memory import Bank, Gates, MemoryRule, Tokens, init_state, update_and_read
from hope_jax.memory.kernels import choice
from hope_jax.memory.kernels.choice import chosen_loop, not_covered
from hope_jax.memory.objectives import GradientOf

RULE = MemoryRule(form="kernel")
FLOAT32 = jnp.dtype("float32")


def weights(rule, width=8, dtype=jnp.float32):
    return jax.eval_shape(lambda: rule.bank.init(jax.random.key(0), width, dtype=dtype))


@pytest.mark.parametrize(
    ("settings", "width", "dtype", "why"),
    [
        (dict(window=2, projector="none"), 8, FLOAT32, "window=2"),
        (dict(error=GradientOf(lambda a, b: jnp.sum(a * b))), 8, FLOAT32, "objectives of this"),
        (dict(bank=Bank(activation=jnp.tanh)), 8, FLOAT32, "jax.nn.gelu"),
        ({}, 8, jnp.dtype("float16"), "not float16"),
        ({}, 2048, FLOAT32, "MiB of VMEM"),
    ],
)
def test_says_why_not_and_falls_back(settings, width, dtype, why):
    rule = MemoryRule(**settings)
    initial = weights(rule, width)
    assert why in not_covered(rule, initial, dtype)
    assert chosen_loop(rule, initial, dtype) is None
    with pytest.raises(ValueError, match="form='kernel', but") as error:
        chosen_loop(dataclasses.replace(rule, form="kernel"), initial, dtype)
    assert why in str(error.value) and "\n" not in str(error.value)


def test_a_cpu_runs_the_scan_unless_told():
    initial = weights(RULE)
    assert chosen_loop(MemoryRule(), initial, FLOAT32) is None
    given = chosen_loop(RULE, initial, FLOAT32).keywords
    assert given["kept"] == FLOAT32 and given["interpret"]
    assert chosen_loop(dataclasses.replace(RULE, form="xla"), initial, FLOAT32) is None


def test_chips_that_have_the_kernel(monkeypatch):
    initial, here = (
        weights(RULE),
        lambda *device: monkeypatch.setattr(choice, "device", lambda: device),
    )
    here("tpu", "TPU v5 lite")
    assert chosen_loop(MemoryRule(), initial, FLOAT32).keywords["interpret"] is False
    here("tpu", "TPU v4")
    assert chosen_loop(MemoryRule(), initial, FLOAT32) is None
    here("gpu", "NVIDIA H100")
    assert chosen_loop(MemoryRule(), initial, FLOAT32) is None
    with pytest.raises(ValueError, match="the kernel is for TPUs, not for gpu"):
        chosen_loop(RULE, initial, FLOAT32)


@pytest.mark.parametrize("form", ["kernel", "xla"])
def test_whole_sequences_and_pieces_run_what_is_asked_for(form):
    rule = MemoryRule(
        Bank(activation=None), projector="none", momentum=False, form=form, chunk_size=4
    )
    initial = rule.bank.init(jax.random.key(0), width=4)
    rows, gate = jnp.ones((8, 4)), jnp.zeros(8)
    tokens = Tokens(rows, rows, Gates(gate, gate), rows)
    for state in (None, init_state(rule, initial)):
        traced = jax.make_jaxpr(lambda *args: update_and_read(rule, *args))(initial, tokens, state)
        assert str(traced).count("pallas_call[") == (form == "kernel")


def test_float64_is_left_to_xla(x64):
    initial = weights(RULE, dtype=jnp.float64)
    assert "float64" in not_covered(RULE, initial, jnp.dtype("float64"))


def test_devices_of_a_mesh_run_it_each_for_its_own_sequences_and_heads():
    """Left to the compiler, none could. Gradients of all parameters, the gates' biases among them."""
    config = TitansConfig(
        8,
        2,
        adaptive=(),
        network="matrix",
        projector="none",
        bounded_step=False,
        memory_chunk=8,
        memory_form="kernel",
    )
    x = jax.random.normal(jax.random.key(0), (4, 8, 8))
    layer = SelfModifyingTitans(config)
    scan = SelfModifyingTitans(dataclasses.replace(config, memory_form="xla"))
    params = nn.unbox(jax.jit(scan.init)(jax.random.key(1), x))
    gradient = lambda layer: jax.jit(
        jax.value_and_grad(lambda params: jnp.sum(jnp.sin(layer.apply(params, x)[0])))
    )
    expected = gradient(scan)(params)
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        with pytest.raises(ValueError, match="call it inside jax.shard_map"):
            jax.eval_shape(gradient(layer), params)
        with nn.logical_axis_rules((("batch", "data"), ("heads", "tensor"))):
            mine = gradient(layer)(params)
    # Where parts of sequences lie on other devices, too.
    names = ("data", "sequence", "tensor")
    mesh = jax.make_mesh((2, 2, 2), names, axis_types=(AxisType.Auto,) * 3)
    everywhere = dict(in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    with jax.set_mesh(mesh), nn.logical_axis_rules((("batch", "data"), ("heads", "tensor"))):
        part = jax.shard_map(gradient(layer), axis_names={"sequence"}, **everywhere)
        inner = jax.jit(part)(params)
    for a, b, c in zip(*map(jax.tree.leaves, (mine, inner, expected)), strict=True):
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(b, c, rtol=1e-5, atol=1e-5)
        assert np.abs(c).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_compiles_for_a_chip_that_is_not_here(chip, monkeypatch):
    """By the mesh in context alone; with resets, forward and backward."""
    pytest.importorskip("libtpu")
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5p-8"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        monkeypatch.setenv(name, value)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=chip).devices
    mesh = Mesh(np.array(devices[:1]), ("chip",), axis_types=(AxisType.Auto,))
    rule = MemoryRule(generated_target=True, bounded_step=True, chunk_size=16)
    place = NamedSharding(mesh, PartitionSpec())
    shape = lambda *axes, dtype=jnp.float32: jax.ShapeDtypeStruct(axes, dtype, sharding=place)
    rows, gate = shape(32, 16, dtype=jnp.bfloat16), shape(32)
    tokens = Tokens(rows, rows, Gates(gate, gate, gate, gate), rows, shape(32, dtype=bool))
    initial = jax.tree.map(lambda x: shape(*x.shape), weights(rule, 16))
    loss = lambda initial, tokens: jnp.sum(update_and_read(rule, initial, tokens)[0])
    with jax.set_mesh(mesh):
        program = jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True)).lower(initial, tokens)
        text = program.compile().as_text()
    calls = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    assert len(calls) == 2
    for call in calls:
        used = re.search(
            r'"used_scoped_memory_configs":\[\{"memory_space":"1",.*?"size":"(\d+)"', call
        )
        assert 0 < int(used[1]) < 4 << 20
