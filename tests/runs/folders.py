"""A run's folder with a tiny state, for tests of what is kept in it."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from tensorboardX.proto.event_pb2 import Event, SessionLog

from hope_jax.runs.checkpoint_writer import CheckpointWriter
from hope_jax.runs.keep import Keep


class Moments(NamedTuple):
    first: Any
    second: Any


class State(NamedTuple):
    step: Any
    params: Any
    optimizer: Any


def make_config() -> ConfigDict:
    """A config with what a run's folder compares."""
    return ConfigDict({"model": {"width": 4}, "data": {"files": ""}, "steps": 9, "seed": 0})


def make_state(step: int) -> State:
    """A state that differs by step in every bit that counts, its matrices on all devices."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    place = NamedSharding(mesh, P("data"))
    draw = np.random.default_rng(step).standard_normal
    matrices = lambda: {
        "up": {"kernel": jax.device_put(draw((8, 6)).astype(np.float32), place)},
        "down": jax.device_put(draw((3,)).astype(jnp.bfloat16), NamedSharding(mesh, P())),
    }
    return State(
        jax.device_put(np.int32(step), NamedSharding(mesh, P())),
        matrices(),
        ({}, Moments(matrices(), None), ()),
    )


def target_of(state: State) -> State:
    """Shapes and shardings."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def write_run(workdir: Path, steps=(1, 2), keep: int = 3) -> Path:
    """Writes a run with checkpoints of these steps."""
    writer = CheckpointWriter(str(workdir), make_config(), Keep(keep))
    for step in steps:
        writer.save(step, make_state(step), place_after(step))
    writer.close()
    return workdir


def place_after(step: int) -> dict[str, Any]:
    """The data iterator's state of a step."""
    return {"next_index": 1234 + step}


def files_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with size and time of change."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """Changes one bit of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def read_board(workdir: Path) -> dict[tuple[str, int], list[float]]:
    """What TensorBoard shows: values by name and step, without those that a restart took back."""
    found: dict[tuple[str, int], list[float]] = {}
    for path in sorted((workdir / "tensorboard").iterdir(), key=os.path.basename):
        content, place = path.read_bytes(), 0
        while place + 12 <= len(content):
            size = int.from_bytes(content[place : place + 8], "little")
            event = Event.FromString(content[place + 12 : place + 12 + size])
            place += 16 + size
            if event.session_log.status == SessionLog.START:
                found = {key: value for key, value in found.items() if key[1] < event.step}
            for value in event.summary.value:
                found.setdefault((value.tag, event.step), []).append(value.simple_value)
    return found
