"""Memory of a training step whose sequences grow with the devices that read them, one JSON line each.

    python experiments/benchmarks/sequence.py                             # Hope, 4,096 tokens a device
    python experiments/benchmarks/sequence.py --layers=24 --part=8192     # another model, other parts

Compiles the trainer's step for one sequence on 1, 2, 4 and 8 devices of a CPU, with `mesh.sequence` at
their number, and the same sequences on one device beside it. Nothing runs. `working` is what a device
needs beside parameters and optimiser, `state` these; the compiler says both. `busy` is the share of ticks
in which a device reads, L / (L + S - 1).
"""

# ruff: noqa: E402
import argparse
import json
import os
import pathlib
import time

# Programs that never run need not be fast.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
import jax

from hope_jax.runs.config_file import load_config_file
from hope_jax.training.assembly import assemble
from hope_jax.training.config import whole_config
from hope_jax.training.step import abstract_batch

CONFIGS = pathlib.Path(__file__).parents[1] / "language_model.py"


def measure(variant: str, layers: int, length: int, devices: int) -> dict[str, object]:
    """What the compiler says of one step on so many devices."""
    config = load_config_file(CONFIGS).get_config(variant)
    config.model.num_layers, config.model.remat = layers, "block"
    config.data.batch_size, config.data.sequence_length = 1, length
    config.mesh.data, config.mesh.sequence = 1, devices
    config = whole_config(config)
    assembly = assemble(config, jax.devices()[:devices])
    batch = abstract_batch(assembly.mesh, 1, length, resets=False)
    begun = time.perf_counter()
    stats = assembly.step.lower(assembly.target, batch).compile().memory_analysis()
    return {
        "bench": "sequence",
        "model": f"{variant}, {layers} blocks",
        "tokens": length,
        "devices": devices,
        "working_mebibytes": round(stats.temp_size_in_bytes / 2**20, 1),
        "state_mebibytes": round(stats.argument_size_in_bytes / 2**20, 1),
        "busy": round(layers / (layers + devices - 1), 2),
        "compiled_in": round(time.perf_counter() - begun),
    }


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="hope-tiny", help="of experiments/language_model.py")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--part", type=int, default=4096, help="tokens of a device")
    given = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    for parts in (1, 2, 4, 8):
        for devices in sorted({1, parts}):
            line = measure(given.variant, given.layers, given.part * parts, devices)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
