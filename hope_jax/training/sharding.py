"""The device mesh, and where on it parameters, optimiser states and batches lie."""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hope_jax.counts import count

# Neighbours of the last axis are the nearest: heads and hidden widths exchange the most, parts of a
# sequence little.
AXES = ("data", "fsdp", "sequence", "tensor")

# Logical axis -> mesh axes. Names that stand nowhere here are not sharded.
RULES = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("activation_embed", None),
    ("conv", None),
    ("head_dim", None),
    ("layers", None),
    ("length", None),
    ("memory_in", "fsdp"),  # where that divides a head's width
    ("memory_out", None),
    ("persistent", None),
)


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    expect_devices: int = 0,
    devices: Sequence[jax.Device] | None = None,
    sequence: int = 1,
) -> Mesh:
    """Makes a mesh over all devices of all processes.

    Args:
      data: devices that split the batch and hold whole parameters; -1 for as many as are left.
      fsdp: devices that split the batch and the parameters.
      tensor: devices that split heads, hidden widths and the vocabulary.
      expect_devices: how many devices the launch should have brought; 0 for any number.
      devices: to take in the place of those that are there.
      sequence: devices that split each sequence into parts.

    Returns:
      A mesh with axes `data`, `fsdp`, `sequence`, `tensor`.

    Raises:
      ValueError: if the sizes do not fit the devices.
    """
    number = jax.device_count() if devices is None else len(devices)
    if expect_devices and number != expect_devices:
        raise ValueError(
            f"mesh.expect_devices={expect_devices}, but what is seen is {count(number, 'device')} in "
            f"{count(jax.process_count(), 'process', 'processes')}; start every process of the launch, "
            f"with mesh.processes set to their number"
        )
    sizes = [data, fsdp, sequence, tensor]
    said = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh {said}: each must be positive, one may be -1")
    if -1 in sizes:
        known = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = number // known
    if int(np.prod(sizes)) != number:
        raise ValueError(
            f"mesh {said} does not fit {count(number, 'device')}; "
            f"the product must be {number} (one of them may be -1 for what is left)"
        )
    return jax.make_mesh(
        tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Lays out on a mesh what is compiled within; else Flax's logical constraints silently do nothing.

    Args:
      mesh: from `make_mesh`.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over `data` and `fsdp`, tokens over `sequence`."""
    return NamedSharding(mesh, P(("data", "fsdp"), "sequence"))


def shares_of_processes(mesh: Mesh) -> dict[int, int]:
    """Which share of a batch's rows each process reads: its number, from 0 on.

    Processes whose devices have parts of the same sequences, or heads of them, read the same share.

    Raises:
      ValueError: if two of them have some rows in common, and others not.
    """
    groups = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    rows: dict[int, set[int]] = {}
    for row, devices in enumerate(groups):
        for device in devices:
            rows.setdefault(device.process_index, set()).add(row)
    shares: list[set[int]] = []
    for process in sorted(rows):
        if rows[process] not in shares:
            shares.append(rows[process])
    if sum(map(len, shares)) > len(groups):
        raise ValueError(
            f"with mesh.sequence={mesh.shape['sequence']} and mesh.tensor={mesh.shape['tensor']} "
            f"processes have parts of the same sequences and others alone; make their product a divisor "
            f"or a multiple of the devices of one process"
        )
    return {process: shares.index(rows[process]) for process in sorted(rows)}


@functools.cache  # each step asks, and a pod has thousands of devices
def own_share(mesh: Mesh) -> tuple[int, int]:
    """The share of a batch that this process reads, and how many there are."""
    shares = shares_of_processes(mesh)
    return shares[jax.process_index()], len(set(shares.values()))


def check_batch(mesh: Mesh, batch_size: int, accumulate: int) -> None:
    """Raises a ValueError if a batch does not divide among micro-batches and devices."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (parts * accumulate):
        raise ValueError(
            f"data.batch_size={batch_size} does not divide into "
            f"{count(accumulate, 'micro-batch', 'micro-batches')} over {count(parts, 'device')}; make it "
            f"a multiple of {parts * accumulate}"
        )


def check_parts(mesh: Mesh, length: int, edges: Mapping[str, int]) -> None:
    """Raises a ValueError if sequences cannot be cut into parts for the devices of `sequence`.

    Args:
      mesh: the devices.
      length: T, tokens of a sequence.
      edges: chunks that a part has whole numbers of, by their setting.
    """
    parts = mesh.shape["sequence"]
    if parts == 1:
        return
    whole = math.lcm(*edges.values())
    if length % (parts * whole):
        said = "".join(f", {name}={chunk}" for name, chunk in edges.items())
        raise ValueError(
            f"data.sequence_length={length} does not divide into mesh.sequence={parts} parts of whole "
            f"chunks{' (' + said[2:] + ')' if said else ''}; make it a multiple of {parts * whole}"
        )


def parameter_shardings(mesh: Mesh, boxed: Any) -> Any:
    """Shardings of parameters from the axis names they were made with.

    Args:
      mesh: the devices.
      boxed: parameters or their shapes, boxed by `nn.with_logical_partitioning`.

    Returns:
      A tree of NamedSharding, unboxed.

    Raises:
      ValueError: for a dimension that the mesh axes it lies on do not divide.
    """
    parts = mesh.shape[dict(RULES)["memory_in"]]

    def fitting(spec, leaf):
        """Heads may be narrower than there are devices; their memories' maps lie whole on each then."""
        sizes = zip(spec, leaf.shape, strict=False)
        return P(*(None if name == "memory_in" and size % parts else name for name, size in sizes))

    specs = jax.tree.map(
        fitting, nn.get_partition_spec(boxed), nn.unbox(boxed), is_leaf=lambda x: isinstance(x, P)
    )
    shardings = nn.logical_to_mesh_sharding(specs, mesh, RULES)

    def check(path, leaf, sharding):
        for size, names in zip(leaf.shape, sharding.spec, strict=False):
            axes = names if isinstance(names, tuple) else (names,) if names else ()
            parts = int(np.prod([mesh.shape[axis] for axis in axes]))
            if size % parts:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ValueError(
                    f"parameter {name} of shape {leaf.shape} has a dimension of {size} that mesh "
                    f"axes {axes} of {parts} devices do not divide; change the mesh or the width"
                )

    jax.tree_util.tree_map_with_path(check, nn.unbox(boxed), shardings)
    return shardings


def optimizer_shardings(mesh: Mesh, state: Any, params: Any, shardings: Any) -> Any:
    """Shardings of an optimiser's state: what mirrors a parameter lies where the parameter lies.

    Args:
      mesh: the devices.
      state: shapes of the optimiser's state.
      params: shapes of the parameters.
      shardings: of the parameters.

    Returns:
      A tree of NamedSharding; leaves that mirror no parameter are on every device.
    """
    known = {}
    leaves = zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
    )
    for (path, leaf), sharding in leaves:
        known[_names(path)] = (leaf.shape, sharding)
    replicated = NamedSharding(mesh, P())

    def place(path, leaf):
        names = _names(path)
        for start in range(len(names)):
            shape, sharding = known.get(names[start:], (None, replicated))
            if shape == leaf.shape:
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(place, state)


def _names(path) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((part,), simple=True) for part in path)
