"""What a program costs, beside counts made by hand."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hope_jax.models.flops import count_flops
from hope_jax.planning.cost import Cost, program_cost

WRITTEN = pathlib.Path(__file__).with_name("step.hlo").read_text()


def cost_of(function, *args, **how) -> Cost:
    return program_cost(jax.jit(function, **how).lower(*args).compile().as_text())


def shape(*sizes, place=None):
    return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=place)


def test_a_product_in_a_loop_counts_as_often_as_it_turns():
    turns, m, k = 7, 24, 32

    def function(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=turns)[0]

    cost = cost_of(function, shape(m, k), shape(k, k))
    assert cost.flops == turns * 2 * m * k * k
    assert cost.endless == 0


def test_loops_within_loops_multiply():
    def inner(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=3)[0]

    def outer(x, w):
        return jax.lax.scan(lambda x, _: (inner(x, w), None), x, None, length=5)[0]

    args = shape(16, 24), shape(24, 24)
    assert cost_of(outer, *args).flops == count_flops(outer, *args) == 15 * 2 * 16 * 24 * 24


def test_a_loop_without_a_known_end_counts_once_and_is_told_of():
    def function(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: jnp.tanh(x @ w), x)

    cost = cost_of(function, shape(16, 24), shape(24, 24))
    assert (cost.flops, cost.endless) == (2 * 16 * 24 * 24, 1)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_batched_products_and_their_gradients(batch):
    def function(x, w):
        return jnp.sum(jnp.tanh(x @ w))

    gradient = jax.grad(function, argnums=(0, 1))
    args = shape(*batch, 16, 24), shape(*batch, 24, 32)
    made = cost_of(gradient, *args).flops
    assert (
        made
        == count_flops(gradient, *args)
        == 3 * 2 * 16 * 24 * 32 * functools.reduce(lambda a, b: a * b, batch, 1)
    )


@pytest.fixture
def mesh():
    return jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))


def test_a_gather_counts_once_with_its_bytes(mesh):
    cut, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
    cost = cost_of(lambda x: x * 2, shape(64, 32, place=cut), out_shardings=whole)
    (gather,) = cost.collectives
    assert (gather.kind, gather.runs, gather.bytes) == ("all-gather", 1, 64 * 32 * 4)
    assert gather.sizes == (64, 32)


def test_a_sum_over_devices_in_a_loop_counts_as_often_as_it_turns(mesh):
    def function(x):
        return jax.lax.scan(lambda s, row: (s + jax.lax.psum(row, "x"), None), x[0], x)[0]

    summed = jax.shard_map(
        function, mesh=mesh, in_specs=P(None, "x"), out_specs=P("x"), check_vma=False
    )
    cost = cost_of(summed, shape(5, 64))
    assert [(one.kind, one.runs, one.bytes) for one in cost.collectives] == [
        ("all-reduce", 5, 5 * 8 * 4)
    ]


def test_as_a_tpus_compiler_writes_it():
    """Cycles, pieces of one gather, a sum of which each device keeps a piece, a product as windows."""
    cost = program_cost(WRITTEN)
    # The loop begins at 1 and ends at 4; a turn has 2 products of 4 heads, 8 x 16 by 16 x 32.
    assert cost.flops == 3 * 2 * (4 * 2 * 8 * 16 * 32)
    assert cost.cycles == 3 * (1000 + 500 + 500) + 70
    assert {name: share.operations for name, share in cost.kinds.items()} == {
        "products": 6,
        "other fusions": 4,
        "moves": 1,
        "others": 1,
    }
    assert cost.parts["titans"].cycles == 3 * 2000
    assert [(one.kind, one.runs, one.bytes, one.sizes) for one in cost.collectives] == [
        ("all-gather", 3, 3 * 16 * 32 * 2, (16, 32)),
        ("reduce-scatter", 1, 64 * 32 * 4, (64, 32)),
    ]
    assert cost.unpriced == {"fusion": 1}


def test_of_branches_the_dearest_counts():
    def function(x, w):
        return jax.lax.cond(jnp.sum(x) > 0, lambda: jnp.tanh(x @ w) @ w.T, lambda: jnp.tanh(x))

    assert cost_of(function, shape(16, 24), shape(24, 24)).flops == 2 * 2 * 16 * 24 * 24


def test_a_kernel_is_told_apart_from_what_else_has_no_time():
    called = "%b = f32[8]{0} custom-call(%p), custom_call_target="
    text = (
        "HloModule m\n\nENTRY %main (p: f32[8]) -> f32[8] {\n"
        "  %p = f32[8]{0} parameter(0)\n"
        f'  {called}"tpu_custom_call"\n'
        f'  ROOT {called.replace("%b", "%c")}"AllocateBuffer"\n'
        "}\n"
    )
    assert program_cost(text).unpriced == {"kernel": 1, "custom-call": 1}
