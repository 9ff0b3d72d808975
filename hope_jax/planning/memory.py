"""Where the bytes of a step lie on a chip, what lies there whole, and what would make it fit."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from hope_jax.counts import count
from hope_jax.optim.matrices import leaf_name
from hope_jax.planning.cost import Collective
from hope_jax.training.step import TrainState

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Memory(NamedTuple):
    """Bytes on each chip, while a step is taken.

    Attributes:
      parameters: of the model.
      optimizer: its state.
      batch: what else the step is given, and what the layout of arrays adds to them; 0 if not told.
      temporaries: what the step makes for itself; None if the compiler has given up before it said.
      total: of all of it.
      limit: what a program may use; None if that is not known.
    """

    parameters: int
    optimizer: int
    batch: int
    temporaries: int | None
    total: float
    limit: float | None

    @property
    def fits(self) -> bool:
        """Whether a chip has as much; True where its limit is not known."""
        return self.limit is None or (self.temporaries is not None and self.total <= self.limit)


class Remedy(NamedTuple):
    """What may make a step fit.

    Attributes:
      settings: with their values.
      how: in words.
    """

    settings: dict[str, Any]
    how: str


def bytes_a_chip(tree: Any) -> int:
    """Bytes that arrays with shardings have on one device.

    Args:
      tree: of arrays, or their shapes and shardings.
    """
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def measured(target: TrainState, stats: Any, limit: float | None) -> Memory:
    """The memory of a compiled step.

    Args:
      target: shapes and shardings of its state.
      stats: of `compiled.memory_analysis()`.
      limit: what a chip has.
    """
    params, optimizer = bytes_a_chip(target.params), bytes_a_chip(target.optimizer)
    # What comes out takes the place of what went in, but for a few numbers.
    new = stats.output_size_in_bytes - stats.alias_size_in_bytes
    given = stats.argument_size_in_bytes + new + stats.generated_code_size_in_bytes
    total = given + stats.temp_size_in_bytes
    batch = given - params - optimizer
    return Memory(params, optimizer, batch, stats.temp_size_in_bytes, total, limit)


def refused(target: TrainState, said: str, limit: float | None) -> Memory | None:
    """The memory of a step that the compiler finds too large, or None if that is not what it says.

    Args:
      target: shapes and shardings of its state.
      said: by the compiler.
      limit: what a chip has.
    """
    # The first calls all of it temporaries, what the step is given and returns too.
    found = re.search(r"(?:temporaries \(|Used )([\d.]+)([KMGT]?)(?:\)| of)", said, re.IGNORECASE)
    if "RESOURCE_EXHAUSTED" not in said or found is None:
        return None
    params, optimizer = bytes_a_chip(target.params), bytes_a_chip(target.optimizer)
    total = float(found[1]) * _UNITS[found[2].upper()]
    return Memory(params, optimizer, 0, None, total, limit)


def left_whole(target: TrainState, width: int) -> list[str]:
    """Arrays of the state that every chip holds whole, largest first.

    Args:
      target: shapes and shardings.
      width: of the model; smaller than a matrix of that width counts for nothing.
    """
    found: dict[tuple[str, tuple[int, ...]], int] = {}  # and how often it is there
    params = {leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(target.params)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(target):
        if leaf.sharding.is_fully_replicated and leaf.size >= width**2:
            name = leaf_name(path)
            own = [param for param in params if name.endswith(f"/{param}")]
            key = (max(own, key=len) if own else name, leaf.shape)
            found[key] = found.get(key, 0) + 1
    largest = sorted(found, key=lambda key: (-math.prod(key[1]), key))
    return [f"{name} {shape}" + _times(found[name, shape]) for name, shape in largest]


def _times(number: int) -> str:
    return f" ({count(number - 1, 'copy', 'copies')} in the optimiser)" if number > 1 else ""


def made_whole(target: TrainState, collectives: list[Collective]) -> list[str]:
    """Parameters with all their layers that a collective forms whole on every chip within the step.

    Args:
      target: shapes and shardings of the state.
      collectives: of the compiled step.
    """
    formed = {
        tuple(sorted(size for size in one.sizes if size > 1))
        for one in collectives
        if one.kind in ("all-gather", "all-reduce")
    }
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(target.params):
        shape = tuple(sorted(size for size in leaf.shape if size > 1))
        if len(shape) > 1 and not leaf.sharding.is_fully_replicated and shape in formed:
            found.append(f"{leaf_name(path)} {leaf.shape}")
    return found


def remedies(config: ConfigDict, memory: Memory, mesh: Mapping[str, int]) -> Iterator[Remedy]:
    """Changes of settings that should make a step fit, those that cost no time first.

    They are estimates: parameters and optimiser shrink with the devices in `fsdp`, temporaries with the
    rows that are taken at a time. Compile with them to know.

    Args:
      config: whole, of the run.
      memory: of the step that does not fit.
      mesh: sizes of its axes.
    """
    state = float(memory.parameters + memory.optimizer)
    work = max(memory.total - state, 0.0)
    settings: dict[str, Any] = {}
    # Rows stay where they are, since data and fsdp both split the batch.
    for factor in _factors(mesh["data"]):
        if state / factor + work <= memory.limit or factor == mesh["data"]:
            settings = {"mesh.fsdp": mesh["fsdp"] * factor, "mesh.data": mesh["data"] // factor}
            state /= factor
            yield Remedy(settings, "splits parameters and optimiser among more chips")
            break
    if config.model.remat == "none":
        settings = {**settings, "model.remat": "block"}
        yield Remedy(settings, "computes what is within a block a second time")
    rows = config.data.batch_size // (mesh["data"] * mesh["fsdp"] * config.accumulate)
    for parts in _factors(rows):
        if state + work / parts <= memory.limit or parts == rows:
            settings = {**settings, "accumulate": config.accumulate * parts}
            yield Remedy(settings, "takes the batch in more parts, one after the other")
            break


def _factors(number: int) -> list[int]:
    """Those above 1."""
    return [factor for factor in range(2, number + 1) if number % factor == 0]
