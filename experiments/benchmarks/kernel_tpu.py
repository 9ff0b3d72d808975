"""What a TPU's compiler says of a memory's kernel and of its XLA form, without a TPU.

    pip install "jax[tpu]"      # brings libtpu, which compiles on any Linux machine
    python experiments/benchmarks/kernel_tpu.py [--tokens 1024 4096 --rows 8 --rule hope]
    python experiments/benchmarks/kernel_tpu.py --check      # every rule, three chips: VMEM alone

Compiles the chunk loop of the memory that is read, bfloat16, for `--rows` rows (sequences times heads)
on one chip, and prints one JSON line a program: forward (the kernel's keeps the chunks' states), and
forward with backward. `milliseconds` adds up the compiler's own estimate of cycles, at the chip's clock:
a static model, good for comparing programs, not a measured time. The kernel's is that of its two custom
calls; what XLA does around them is a few operations on gates. `floor_flops` is what the products of
the recurrence itself take at the chip's peak, `floor_bytes` tokens, gradients and kept states, once out
and back.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hope_jax.memory import Bank, Gates, MemoryRule, Tokens, dot_error, update_and_read
from hope_jax.memory.objectives import HuberError, LpError
from hope_jax.planning.cost import program_cost
from hope_jax.planning.topology import CHIPS, find_devices
from hope_jax.training.chip import peak_flops

jax.config.update("jax_platforms", "cpu")

MATRIX = Bank(activation=None)
RULES = {
    "hope": MemoryRule(generated_target=True, bounded_step=True),
    "gated_delta_net": MemoryRule(MATRIX, dot_error, momentum=False, read="after"),
    "decay_to_initial": MemoryRule(
        decay_to="initial", generated_target=True, bounded_step=True, flips=True
    ),
    "oja": MemoryRule(MATRIX, dot_error, "values", read="after"),
    "ttt_linear": MemoryRule(MATRIX, projector="none", momentum=False, bounded_step=True),
    "ttt_mlp": MemoryRule(projector="none", momentum=False, read="chunk", bounded_step=True),
    "titans_lmm": MemoryRule(projector="none", read="after"),
    "miras_lp": MemoryRule(error=LpError(3.0), projector="none", read="after", bounded_step=True),
    "huber_second_map": MemoryRule(error=HuberError(1.0), projector="second_map"),
}


BANDWIDTHS = {"v5e": 0.819e12, "v5p": 2.765e12, "v6e": 1.64e12}
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


def program(flags: argparse.Namespace):
    """The function of what is asked for, and shapes of its arguments on the chip."""
    devices = find_devices(TOPOLOGIES[flags.chip]).devices
    mesh = Mesh(np.array(devices[:1]), ("chip",), axis_types=(AxisType.Auto,))
    jax.set_mesh(mesh)
    place = NamedSharding(mesh, P())
    on_chip = lambda tree: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree
    )
    rule = rule_of(flags)
    length = flags.tokens[0]
    number = jax.ShapeDtypeStruct((flags.rows, length), jnp.float32)
    rows = jax.ShapeDtypeStruct((flags.rows, length, flags.width), jnp.bfloat16)
    initial = jax.eval_shape(
        lambda: jax.vmap(lambda key: rule.bank.init(key, flags.width))(
            jax.random.split(jax.random.key(0), flags.rows)
        )
    )
    gates = Gates(
        number,
        number,
        None if rule.projector == "none" else number,
        number if rule.momentum else None,
    )
    reset = jax.ShapeDtypeStruct(number.shape, bool) if flags.reset else None
    args = initial, Tokens(rows, rows, gates, rows, reset)
    read = jax.vmap(lambda initial, tokens: update_and_read(rule, initial, tokens)[0])
    if flags.what == "forward" and flags.form == "xla":
        return read, on_chip(args)
    if flags.what == "gradient":
        loss = lambda *args: jnp.sum(jnp.square(read(*args)))
        return jax.grad(loss, argnums=(0, 1), allow_int=True), on_chip(args)
    out, pull = jax.eval_shape(lambda *args: jax.vjp(read, *args), *args)
    if flags.what == "forward":
        return lambda *args: jax.vjp(read, *args), on_chip(args)
    return lambda pull, out: pull(out), on_chip((pull, out))


def rule_of(flags: argparse.Namespace) -> MemoryRule:
    return dataclasses.replace(RULES[flags.rule], form=flags.form or "auto", chunk_size=flags.chunk)


def compile_here(flags: argparse.Namespace) -> None:
    """Compiles one program and prints what its text says."""
    function, args = program(flags)
    compiled = jax.jit(function).lower(*args).compile()
    text = compiled.as_text()
    cost = program_cost(text)
    calls = [line for line in text.splitlines() if '"tpu_custom_call"' in line]
    used = r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"'
    sizes = [size for line in calls for size in re.findall(used, line)]
    line = {
        "cycles": cost.cycles,
        "tera_flops": round(cost.flops / 1e12, 4),
        "operations": sum(share.operations for share in cost.kinds.values()),
        "vmem_mebibytes": round(max(map(int, sizes), default=0) / 2**20, 1),
        "temporaries_gigabytes": round(compiled.memory_analysis().temp_size_in_bytes / 1e9, 3),
    }
    print(json.dumps(line))


def compile_in_child(flags: argparse.Namespace, form: str, what: str, profile: str = "") -> dict:
    """The same in a process of its own: with a profile, libtpu may end it once that is written."""
    shown = [
        f"--{name}={getattr(flags, name)}" for name in ("chip", "rule", "chunk", "width", "rows")
    ]
    shown += [f"--tokens={flags.tokens[0]}", f"--form={form}", f"--what={what}"]
    environment = dict(os.environ)
    if profile:
        environment["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_static_llo_profile_to={profile}"
    command = [sys.executable, __file__, *shown, *(["--reset"] if flags.reset else [])]
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in child.stdout.splitlines() if line.startswith("{")]
    if not lines and not profile:
        raise SystemExit(child.stderr[-3000:])
    return json.loads(lines[-1]) if lines else {}


def kernel_cycles(flags: argparse.Namespace, what: str) -> int:
    """The compiler's estimate for the one custom call of a program."""
    with tempfile.TemporaryDirectory() as folder:
        compile_in_child(flags, "kernel", what, folder)
        found = [
            int(cycles)
            for path in pathlib.Path(folder).glob("*static_llo_profile.textproto")
            for cycles in re.findall(r"estimated_cycles: (\d+)", path.read_text())
        ]
    return max(found, default=0)


def floors(flags: argparse.Namespace, what: str) -> dict:
    """Least milliseconds by FLOPs and by bytes.

    Token by token each map is read at k, v and q, its error carried back, erased along a direction and
    written; the momentum is read at two of these: 8 times 2 x its size. Twice that in reverse.
    """
    rule, length = rule_of(flags), flags.tokens[0]
    peak = peak_flops(CHIPS[flags.chip].device_kind)
    assert peak is not None  # of these chips it is known
    weights = jax.eval_shape(lambda: rule.bank.init(jax.random.key(0), flags.width))
    size = sum(leaf.size for leaf in jax.tree.leaves(weights))
    times, tokens = (1, 4) if what == "forward" else (3, 11)
    flops = times * 8 * 2 * size * flags.rows * length
    states = size * (1 + rule.momentum) * flags.rows * length // flags.chunk
    moved = 2 * (tokens * flags.rows * length * flags.width + states * (1 if times == 1 else 2))
    return {
        "floor_flops_milliseconds": round(1e3 * flops / peak, 4),
        "floor_bytes_milliseconds": round(1e3 * moved / BANDWIDTHS[flags.chip], 4),
    }


def report(flags: argparse.Namespace, form: str, what: str, cycles: dict[str, int]) -> None:
    """Compiles what is needed and prints one line; `cycles` of the kernels that are known so far."""
    line = compile_in_child(flags, form, what)
    if form == "kernel":
        parts = ("forward",) if what == "forward" else ("forward", "backward")
        for part in parts:
            if part not in cycles:
                cycles[part] = kernel_cycles(flags, part)
        line["cycles"] = sum(cycles[part] for part in parts)
    milliseconds = 1e3 * line.pop("cycles") / CHIPS[flags.chip].clock
    known = {name: getattr(flags, name) for name in ("chip", "rule", "rows", "width", "chunk")}
    known |= {"tokens": flags.tokens[0], "form": form, "what": what}
    known |= {"milliseconds": round(milliseconds, 3)}
    print(json.dumps(known | line | floors(flags, what)), flush=True)


def check(flags: argparse.Namespace) -> None:
    """Compiles the gradient of every rule, with resets, for every chip, and prints its VMEM."""
    for chip in TOPOLOGIES:
        for rule in RULES:
            each = argparse.Namespace(**{**vars(flags), "chip": chip, "rule": rule, "reset": True})
            each.tokens = [2 * flags.chunk]
            line = compile_in_child(each, "kernel", "gradient")
            print(
                json.dumps(
                    {"chip": chip, "rule": rule, "chunk": flags.chunk, "width": flags.width}
                    | {"vmem_mebibytes": line["vmem_mebibytes"]}
                ),
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chip", choices=TOPOLOGIES, default="v5p")
    parser.add_argument("--rule", choices=RULES, default="hope")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--reset", action="store_true", help="several documents")
    parser.add_argument("--check", action="store_true", help="compile every rule for every chip")
    parser.add_argument("--form", choices=("xla", "kernel"), help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.what:
        compile_here(flags)
    elif flags.check:
        check(flags)
    else:
        for length in flags.tokens:
            cycles: dict[str, int] = {}
            for what in ("forward", "gradient"):
                for form in ("xla", "kernel"):
                    each = argparse.Namespace(**{**vars(flags), "tokens": [length]})
                    report(each, form, what, cycles)


if __name__ == "__main__":
    main()
