"""Bytes of a chip by kind, what lies there whole, and what is to make a step fit."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hope_jax.planning.cost import Collective
from hope_jax.planning.memory import (
    Memory,
    bytes_a_chip,
    left_whole,
    made_whole,
    refused,
    remedies,
)
from hope_jax.planning.topology import GIB
from hope_jax.training.sharding import make_mesh
from hope_jax.training.step import TrainState
from tests.comparison.plans import config_of

STEP = {"data": 4, "fsdp": 2, "tensor": 1}


@pytest.fixture(scope="module")
def target():
    mesh = make_mesh(data=1, fsdp=4, tensor=2)

    def leaf(shape, *axes, kind=jnp.float32):
        return jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, P(*axes)))

    params = {
        "map": leaf((3, 16, 32), None, "fsdp", "tensor"),
        "table": leaf((64, 16), "tensor", "fsdp"),
        "whole": leaf((16, 16)),
        "gain": leaf((3, 16)),
    }
    return TrainState(
        leaf((), kind=jnp.int32), params, {"mu": {"whole": leaf((16, 16), kind=jnp.bfloat16)}}
    )


def test_bytes_are_those_of_one_device(target):
    assert bytes_a_chip(target.params) == 4 * (3 * 16 * 32 // 8 + 64 * 16 // 8 + 16 * 16 + 3 * 16)
    assert bytes_a_chip(target.optimizer) == 2 * 16 * 16


def test_arrays_of_the_state_that_lie_whole_on_every_chip_are_named(target):
    assert left_whole(target, width=16) == ["whole (16, 16) (1 copy in the optimiser)"]


def test_parameters_that_a_collective_forms_whole_are_named(target):
    def formed(kind, *sizes):
        return Collective(kind, sizes, 4, 1, "")

    one_layer = formed("all-gather", 1, 16, 32)
    turned = formed("all-gather", 16, 64)
    cut = formed("reduce-scatter", 3, 16, 32)
    assert made_whole(target, [one_layer, turned, cut]) == ["table (64, 16)"]
    assert made_whole(target, [formed("all-reduce", 3, 32, 16)]) == ["map (3, 16, 32)"]


def test_what_the_compiler_says_of_a_step_that_does_not_fit_is_read(target):
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
        "(149.06G) exceeds available HBM (15.75G)."
    )
    memory = refused(target, said, 15.75 * GIB)
    assert (memory.temporaries, memory.total, memory.fits) == (None, 149.06 * GIB, False)
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. "
        "Exceeded hbm capacity by 4.75G."
    )
    memory = refused(target, said, 15.75 * GIB)
    assert (memory.temporaries, memory.total, memory.fits) == (None, 20.5 * GIB, False)
    assert refused(target, "INTERNAL: Mosaic failed to compile", 15.75 * GIB) is None


def settings(memory, mesh=STEP, **changes):
    config = config_of(remat="block")
    config.update_from_flattened_dict({"data.batch_size": 64, **changes})
    return [remedy.settings for remedy in remedies(config, memory, mesh)]


def test_what_is_to_change_follows_from_what_does_not_fit():
    # 24 of state and 4 of work on chips of 16: two times as many in fsdp.
    state = Memory(8, 16, 0, 4, 28, 16)
    assert settings(state)[0] == {"mesh.fsdp": 4, "mesh.data": 2}
    # 4 of state and 40 of work, of 8 rows: a quarter of them at a time, the state on all chips.
    work = Memory(2, 2, 0, 40, 44, 16)
    assert settings(work)[-1] == {"mesh.fsdp": 8, "mesh.data": 1, "accumulate": 4}
    alone = {"data": 1, "fsdp": 8, "tensor": 1}
    assert settings(work, alone) == [{"accumulate": 4}]
    assert settings(work, alone, **{"accumulate": 2}) == [{"accumulate": 8}]
    first, second = settings(work, alone, **{"model.remat": "none"})
    assert (first, second) == ({"model.remat": "block"}, {"model.remat": "block", "accumulate": 4})
    # One row of a chip at a time, and no other to split the state among.
    assert settings(work, alone, **{"data.batch_size": 8}) == []
