"""What a TPU's compiler says of the self-modifying layer, without a TPU.

    pip install "jax[tpu]"      # brings libtpu, which compiles on any Linux machine
    python experiments/benchmarks/memory_tpu.py [--tokens 4096 --width 1024 --heads 16]

Compiles forward and backward for one v5p chip in bfloat16 and prints one JSON line a layer: Hope's
self-modifying layer and naive softmax attention with the same projections. Every loop's body is
multiplied by its trip count. `milliseconds` adds up the compiler's own cycle estimate of each
operation at 1.75 GHz; `flops` counts matrix products; `gigabytes` the operands and results of
every operation outside fast memory or in it alike. `floor_flops` is those FLOPs at 459 TFLOP/s,
`floor_bytes` the chunk states once out and back and the activations once, at 2.765 TB/s.
"""

import argparse
import json
import math
import os
import re
from typing import NamedTuple

# libtpu asks the cloud for its machine unless told; these say that there is none to ask, and that
# another process may compile too.
os.environ.update(
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5p-8",
    TPU_WORKER_HOSTNAMES="localhost",
    JAX_PLATFORMS="cpu",
)

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from hope_jax.layers.titans import SelfModifyingTitans, TitansConfig

CLOCK, FLOPS, BANDWIDTH = 1.75e9, 459e12, 2.765e12
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
NO_WORK = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "iota"}


class Cost(NamedTuple):
    """Totals over a program: estimated cycles, FLOPs of products, bytes, operations executed."""

    cycles: float = 0
    flops: float = 0
    bytes: float = 0
    operations: float = 0

    def plus(self, other: "Cost", times: float = 1) -> "Cost":
        return Cost(*(a + times * b for a, b in zip(self, other, strict=True)))


def parse(text: str) -> tuple[dict[str, list[str]], str]:
    """Splits an HLO module into its computations; also the name of the entry."""
    computations, name, entry = {}, None, ""
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            name = head.group(2)
            computations[name] = []
            entry = name if head.group(1) else entry
        elif line.startswith("}"):
            name = None
        elif name and " = " in line:
            computations[name].append(line)
    return computations, entry


def shape_bytes(text: str) -> int:
    return sum(
        BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", text)
    )


def cost_of(computations: dict[str, list[str]], name: str, fused: bool = False) -> Cost:
    """Adds up one computation, loops times their trips. Inside a fusion only FLOPs count."""
    total = Cost()
    sizes, shapes = {}, {}
    for line in computations[name]:
        match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line)
        if not match:
            continue
        label, result, kind, rest = match.groups()
        sizes[label], shapes[label] = shape_bytes(result), result
        if kind == "while":
            condition, body = re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", rest).groups()
            total = total.plus(cost_of(computations, body), trips(computations, condition))
            continue
        flops = 0.0
        if kind in ("dot", "convolution"):
            flops = product_flops(kind, result, rest, shapes)
        called = re.search(r"calls=%?([\w.\-]+)", rest)
        if kind == "fusion" and called:
            flops += cost_of(computations, called.group(1), fused=True).flops
        if fused or kind in NO_WORK:
            total = total.plus(Cost(flops=flops))
            continue
        cycles = re.search(r'"estimated_cycles":"(\d+)"', rest)
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        moved = bytes_moved(computations, called and called.group(1), sizes, label, operands)
        total = total.plus(Cost(float(cycles.group(1)) if cycles else 0.0, flops, moved, 1))
    return total


def bytes_moved(
    computations: dict[str, list[str]],
    called: str | None,
    sizes: dict[str, int],
    label: str,
    operands: list[str],
) -> int:
    """Operands and results; of an array that a fusion only slices or updates, only that part."""
    whole = sizes[label] + sum(sizes.get(operand, 0) for operand in operands)
    if not called:
        return whole
    lines = computations[called]
    inner = {
        m[1]: m[2] for m in (re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\S+)", x) for x in lines) if m
    }
    for line in lines:
        match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = (\S+) (dynamic-[a-z\-]*slice)\((.*?)\)", line)
        if not match:
            continue
        _, name, result, kind, rest = match.groups()
        source, *others = re.findall(r"%([\w.\-]+)", rest)
        if kind == "dynamic-slice":
            whole += shape_bytes(result) - shape_bytes(inner.get(source, result))
        else:  # reads and writes the update in place of the whole array, twice
            update = shape_bytes(inner.get(others[0], ""))
            whole += 2 * update - 2 * shape_bytes(result)
    return max(whole, 0)


def product_flops(kind: str, result: str, rest: str, shapes: dict[str, str]) -> float:
    """2 x (elements of the result) x (length of the contraction)."""
    dims = lambda text: [int(n) for n in re.search(r"\[([\d,]*)\]", text)[1].split(",") if n]
    operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
    out = math.prod(dims(result))
    if kind == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)[1].split(",")
        left = dims(shapes[operands[0]])
        return 2.0 * out * math.prod(left[int(axis)] for axis in axes)
    # The TPU writes every product as a convolution: `b` and `f` of the kernel's labels say which
    # axis is contracted. Batch axes become windows as long as the batch, of which one entry counts.
    labels = re.search(r"dim_labels=(\w+)_(\w+)->", rest)
    return 2.0 * out * dims(shapes[operands[0]])[labels[1].index("f")]


def trips(computations: dict[str, list[str]], condition: str) -> int:
    """The number that a loop's counter is compared with."""
    best = 1
    for line in computations[condition]:
        best = max([best, *(int(n) for n in re.findall(r"constant\((\d+)\)", line))])
        called = re.search(r"calls=%?([\w.\-]+)", line)
        if called:
            best = max(best, trips(computations, called.group(1)))
    return best


def attention(params, x):
    """Causal softmax attention, the scores whole."""
    q, k, v = (jnp.einsum("btd,dhn->bthn", x, params[name]) for name in "qkv")
    scores = jnp.einsum("bthn,bshn->bhts", q, k, preferred_element_type=jnp.float32)
    length, width = x.shape[1], q.shape[-1]
    mask = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(mask, scores * width**-0.5, -1e30), axis=-1)
    out = jnp.einsum("bhts,bshn->bthn", weights.astype(x.dtype), v)
    return jnp.einsum("bthn,hnd->btd", out, params["o"])


def report(name: str, read, params, x, state_bytes: float, matrix_flops: float) -> float:
    """Compiles, prints one line, and returns the estimated milliseconds."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1")
    place = SingleDeviceSharding(topology.devices[0])
    args = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), (params, x)
    )
    loss = lambda params, x: jnp.sum(jnp.square(read(params, x).astype(jnp.float32)))
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*args).compile()
    cost = cost_of(*parse(compiled.as_text()))
    milliseconds = 1e3 * cost.cycles / CLOCK
    activations = 2 * math.prod(x.shape) * x.dtype.itemsize
    line = {
        "layer": name,
        "milliseconds": round(milliseconds, 2),
        "tera_flops": round(cost.flops / 1e12, 3),
        "gigabytes": round(cost.bytes / 1e9, 1),
        "operations": round(cost.operations),
        "temporaries_gigabytes": round(compiled.memory_analysis().temp_size_in_bytes / 1e9, 2),
        "floor_flops_milliseconds": round(1e3 * matrix_flops / FLOPS, 3),
        "floor_bytes_milliseconds": round(1e3 * (2 * state_bytes + activations) / BANDWIDTH, 3),
    }
    print(json.dumps(line), flush=True)
    return milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=64)
    flags = parser.parse_args()
    tokens, width, heads, chunk = flags.tokens, flags.width, flags.heads, flags.chunk
    head = width // heads
    x = jax.ShapeDtypeStruct((1, tokens, width), jnp.bfloat16)

    shape = jax.ShapeDtypeStruct((width, heads, head), jnp.bfloat16)
    params = dict.fromkeys("qkv", shape) | {
        "o": jax.ShapeDtypeStruct((heads, head, width), jnp.bfloat16)
    }
    projections = 3 * 2 * 4 * tokens * width**2
    scores = 3 * 2 * 2 * tokens**2 * width / 2  # the causal half
    base = report("attention", attention, params, x, 0.0, projections + scores)

    config = TitansConfig(width, heads, memory_chunk=chunk, generator_chunk=chunk)
    layer = SelfModifyingTitans(config, dtype=jnp.bfloat16)
    variables = nn.unbox(jax.eval_shape(layer.init, jax.random.key(0), x))
    state = jax.eval_shape(lambda p, x: layer.apply(p, x[:, :0])[1].heads, variables, x)
    kept = (state.generators, state.memory)
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    # Token by token each map is read, its error carried back, and written: 2 x its size, times 12
    # for the five memories' maps (read at x, k and v; error; projector; momentum; write; and the
    # memory's reads), three times for the backward pass. The recomputation is not counted.
    maps = sum(
        leaf.size for leaf in jax.tree.leaves((state.generators.weights, state.memory.weights))
    )
    inner = 3 * 2 * 12 * tokens * maps
    mine = report(
        "self-modifying Titans",
        lambda params, x: layer.apply(params, x)[0],
        variables,
        x,
        state_bytes * tokens / chunk,
        3 * 2 * 3 * tokens * width**2 + inner,
    )
    print(json.dumps({"titans_over_attention": round(mine / base, 2)}), flush=True)


if __name__ == "__main__":
    main()
