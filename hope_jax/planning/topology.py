"""The devices that are planned for: chips that are not there, or those that are."""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from hope_jax.absent_tpus import skip_absent_tpus


class Chip(NamedTuple):
    """What is known of a kind of chip beside its peak of FLOPs.

    Attributes:
      device_kind: what JAX calls it.
      memory: bytes of HBM that a program may use, as the chip's compiler says it.
      clock: cycles a second, of matrix units that reach the published peak.
      links: bytes a second over all links to other chips, in one direction.
      axes: of the torus that they are wired to.
    """

    device_kind: str
    memory: float
    clock: float
    links: float
    axes: int


GIB = 2**30
CHIPS = {
    "v5e": Chip("TPU v5 lite", 15.75 * GIB, 1.5e9, 200e9, 2),
    "v5p": Chip("TPU v5", 95.74 * GIB, 1.75e9, 600e9, 3),
    "v6e": Chip("TPU v6 lite", 31.25 * GIB, 1.75e9, 400e9, 2),
}
LOCAL = "local"


class Devices(NamedTuple):
    """What a step is compiled for.

    Attributes:
      name: of the topology.
      devices: of the mesh.
      chip: what is known of each; None of a kind that is not listed.
    """

    name: str
    devices: Sequence[jax.Device]
    chip: Chip | None


def find_devices(name: str) -> Devices:
    """The devices of a topology.

    Args:
      name: `v5p:2x2x1`, a kind of TPU and how its chips lie, or `local`, the devices of this machine.

    Raises:
      ValueError: for a kind or shape that is not known, or where its compiler is not installed.

    Example:
      >>> find_devices("v5e:2x2x2")
      Traceback (most recent call last):
      ValueError: --topology=v5e:2x2x2 must have 2 sizes, such as v5e:2x2
    """
    if name == LOCAL:
        devices = jax.devices()
        kind = devices[0].device_kind
        chips = [chip for chip in CHIPS.values() if chip.device_kind == kind]
        return Devices(name, devices, chips[0] if chips else None)
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise ValueError(
            f"--topology={name} is not known; give {', '.join(CHIPS)} with its shape, such as "
            f"v5p:2x2x1, or {LOCAL}, the devices of this machine"
        )
    chip = CHIPS[kind]
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (chip.axes - 1), shape):
        example = "x".join(["2", "2", "1"][: chip.axes])
        raise ValueError(f"--topology={name} must have {chip.axes} sizes, such as {kind}:{example}")
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise ValueError(
            f"--topology={name} needs the TPU's compiler: pip install 'hope_jax[tpu]' (no TPU is needed)"
        )
    sizes = [int(size) for size in shape.split("x")]
    _without_a_tpu()
    # Chips of a host lie two by two; fewer than that are one host of their own.
    host = (*sizes, 1)[:3] if math.prod(sizes) < 4 else (2, 2, 1)
    try:
        found = topologies.get_topology_desc(name, "tpu", chips_per_host_bounds=host)
    except Exception as error:  # whatever the compiler does not like
        said = " ".join(str(error).split())
        raise ValueError(f"--topology={name} is no shape of {kind}: {said}") from error
    return Devices(name, found.devices, chip)


def _without_a_tpu() -> None:
    """Tells libtpu not to look for chips, for hosts, or for other processes that use it."""
    skip_absent_tpus()
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
