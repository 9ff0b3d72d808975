"""What the TPU compiler says of large models, one JSON line a plan, and a table of them.

    python experiments/benchmarks/plans.py --sizes 760m --chips v5p   # hours of one core for all
    python experiments/benchmarks/plans.py --table                    # compiles nothing

Each is `hope plan` of experiments/language_model.py on 64 chips, all of them in mesh.fsdp, at the
config's 0.5M tokens a step. Memories are XLA's form (model.titans.memory_form=xla), since the compiler
gives kernels no time. `hope_for_tpu` is Hope with heads of 128 and chunks of 256, of which each operation
is larger. A plan that is there is not made again.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hope_jax.commands.config import change_settings, read_config
from hope_jax.data.json_lines import add_json_line, find_json_lines
from hope_jax.planning.plan import Plan, make_plan
from hope_jax.planning.topology import GIB, find_devices
from hope_jax.training.assembly import assemble
from hope_jax.training.config import RunConfig, whole_config

MODELS = ("transformer", "hope_attention", "gated_delta_net", "titans_lmm", "hope", "hope_for_tpu")
SIZES = ("60m", "760m", "1.3b")
TOPOLOGIES = {"v5e": "v5e:8x8", "v5p": "v5p:4x4x4", "v6e": "v6e:8x8"}
CONFIGS = Path(__file__).parents[1] / "language_model.py"
PATH = Path(__file__).with_name("plans.jsonl")
SETTINGS = ("mesh.data=1", "mesh.fsdp=64", "model.titans.memory_form=xla")


def plan_of(model: str, size: str, topology: str) -> Plan:
    """The plan of a model of `MODELS` and `SIZES`."""
    config = read_config(f"{CONFIGS}:{model.removesuffix('_for_tpu')}-{size}")
    settings = [name for name in SETTINGS if "titans" not in name or config.model.titans]
    if model.endswith("_for_tpu"):
        settings += [f"model.titans.{name}=256" for name in ("memory_chunk", "generator_chunk")]
        settings += [f"model.num_heads={config.model.width // 128}"]
    config = whole_config(change_settings(RunConfig, config, settings))
    devices = find_devices(topology)
    return make_plan(config, devices, assemble(config, devices.devices))


def line_of(plan: Plan) -> dict[str, Any]:
    """Its figures; those of one chip but for FLOPs and tokens."""
    cost, memory = plan.cost, plan.memory
    line: dict[str, Any] = {
        "parameters": plan.parameters,
        "tokens": plan.tokens,
        "gib": round(memory.total / GIB, 2),
        "limit_gib": round((memory.limit or 0) / GIB, 2),
        "useful_tflop": round(plan.useful.total * plan.tokens / 1e12, 1),
        "inner_tflop": round(plan.useful.inner * plan.tokens / 1e12, 1),
        "compiled_in": round(plan.compiled_in),
    }
    if cost is None or plan.seconds is None or plan.mfu is None:
        return line
    return line | {
        "tflop": round(cost.flops * plan.chips / 1e12, 1),
        "operations": sum(share.operations for share in cost.kinds.values()),
        "collective_gb": round(sum(one.bytes for one in cost.collectives) / 1e9, 2),
        "seconds": float(f"{plan.seconds:.4g}"),
        "mfu": round(plan.mfu, 5),
        "tokens_per_second": round(plan.tokens / plan.seconds),
        "parts": {name: round(share.cycles / cost.cycles, 3) for name, share in cost.parts.items()},
        "whole": len(plan.whole),
    }


def table(lines: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> str:
    """Markdown, sizes and chips one after the other."""
    head = ["model", "chip", "memory of a chip, GiB", "FLOPs, useful and as compiled, T"]
    head += ["operations", "step, s", "MFU", "tokens/s", "over the Transformer, time"]
    rows = [head, ["---"] * len(head)]
    for size in SIZES:
        for chip in TOPOLOGIES:
            plain = lines.get(("transformer", size, chip), {}).get("seconds")
            for model in MODELS:
                line = lines.get((model, size, chip))
                if line is None:
                    continue
                row = [f"{model}-{size}", chip, f"{line['gib']} of {line['limit_gib']}"]
                if "seconds" in line:
                    row += [f"{line['useful_tflop']:,.0f} and {line['tflop']:,.0f}"]
                    row += [f"{line['operations']:,}", f"{line['seconds']:.3g}"]
                    row += [f"{line['mfu']:.2%}", f"{line['tokens_per_second']:,}"]
                    row += [f"{line['seconds'] / plain:.1f}" if plain else ""]
                else:
                    row += [f"{line['useful_tflop']:,.0f}", *[""] * 5]
                rows.append(row)
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES, metavar="SIZE")
    parser.add_argument("--chips", nargs="+", choices=TOPOLOGIES, default=[*TOPOLOGIES])
    parser.add_argument("--path", type=Path, default=PATH, help="file of the lines")
    parser.add_argument("--table", action="store_true", help="compile nothing")
    given = parser.parse_args()
    for size in () if given.table else given.sizes:
        for chip in given.chips:
            for model in given.models:
                key = {"model": model, "size": size, "chip": chip, "topology": TOPOLOGIES[chip]}
                if not any(find_json_lines(given.path, key)):
                    line = {**key, **line_of(plan_of(model, size, TOPOLOGIES[chip]))}
                    add_json_line(given.path, line)
                    print(json.dumps(line), flush=True)
    found = {
        (line["model"], line["size"], line["chip"]): line
        for line in find_json_lines(given.path, {})
    }
    print(table(found))


if __name__ == "__main__":
    main()
