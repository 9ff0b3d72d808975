"""The plan of a run: its step, compiled for devices that need not be there, and what that tells."""

import time
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from hope_jax.models.flops import Flops, useful_flops
from hope_jax.models.parameter_count import parameter_count
from hope_jax.planning.cost import Cost, program_cost
from hope_jax.planning.memory import Memory, left_whole, made_whole, measured, refused
from hope_jax.planning.topology import Devices
from hope_jax.training.assembly import Assembly
from hope_jax.training.chip import peak_flops
from hope_jax.training.step import abstract_batch


class Plan(NamedTuple):
    """What the compiler tells of a run's step.

    Attributes:
      config: whole, of the run.
      devices: it is planned for.
      mesh: sizes of its axes.
      parameters: of the model.
      useful: FLOPs of a token that MFU counts, forward and backward.
      memory: of a chip.
      cost: of a step, of each chip; None where it does not fit.
      whole: arrays of the state that every chip holds whole.
      formed: parameters that the step forms whole on every chip.
      compiled_in: seconds that the compiler took.
    """

    config: ConfigDict
    devices: Devices
    mesh: Mapping[str, int]
    parameters: int
    useful: Flops
    memory: Memory
    cost: Cost | None
    whole: list[str]
    formed: list[str]
    compiled_in: float

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.config.data.batch_size * self.config.data.sequence_length

    @property
    def chips(self) -> int:
        """Devices of the mesh."""
        return len(self.devices.devices)

    @property
    def seconds(self) -> float | None:
        """Of a step, by the compiler's estimate; None where it gives none."""
        if self.cost is None or self.devices.chip is None or not self.cost.cycles:
            return None
        return self.cost.cycles / self.devices.chip.clock

    @property
    def mfu(self) -> float | None:
        """Share of the chips' peak that useful FLOPs are in that time."""
        peak = peak_flops(self.devices.devices[0].device_kind)
        if self.seconds is None or peak is None:
            return None
        return self.useful.total * self.tokens / (peak * self.chips * self.seconds)


def make_plan(config: ConfigDict, devices: Devices, assembly: Assembly) -> Plan:
    """Compiles a run's step, and reads what the compiler made of it.

    Args:
      config: whole, of the run.
      devices: to compile for.
      assembly: of `hope_jax.training.assembly.assemble` with these two.
    """
    data = config.data
    batch = abstract_batch(
        assembly.mesh, data.batch_size, data.sequence_length, data.reset_documents
    )
    limit = devices.chip.memory if devices.chip else _limit(devices.devices[0])
    begun = time.perf_counter()
    memory, cost, formed = None, None, []
    try:
        with warnings.catch_warnings():
            # JAX keeps programs for chips that are not there, but cannot read them again.
            warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
            compiled = assembly.step.lower(assembly.target, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        memory = refused(assembly.target, str(error), limit)
        if memory is None:
            raise
    seconds = time.perf_counter() - begun
    if memory is None:
        memory = measured(assembly.target, compiled.memory_analysis(), limit)
        cost = program_cost(compiled.as_text())
        formed = made_whole(assembly.target, cost.collectives)
    model = assembly.model.config
    several = assembly.mesh.size > 1
    return Plan(
        config,
        devices,
        dict(assembly.mesh.shape),
        parameter_count(model),
        useful_flops(model, data.sequence_length, devices.devices[0].platform),
        memory,
        cost,
        left_whole(assembly.target, model.width) if several else [],
        formed if several else [],
        seconds,
    )


def _limit(device: jax.Device) -> float | None:
    return (device.memory_stats() or {}).get("bytes_limit")
