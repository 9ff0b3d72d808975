"""What a TPU's compiler says of the self-modifying layer, without a TPU.

    pip install "jax[tpu]"      # brings libtpu, which compiles on any Linux machine
    python experiments/benchmarks/memory_tpu.py [--tokens 4096 --width 1024 --heads 16]

Compiles forward and backward for one v5p chip in bfloat16 and prints one JSON line a layer: Hope's
self-modifying layer and naive softmax attention with the same projections. Every loop's body is
multiplied by its trip count. `milliseconds` adds up the compiler's own cycle estimate of each
operation at the chip's clock; `flops` counts matrix products (`hope_jax.planning.cost`). The layer is the
scan of XLA's: kernels have no such estimate (kernel_tpu.py prices them). `floor_flops` is those FLOPs at
459 TFLOP/s, `floor_bytes` the chunk states once out and back and the activations once, at 2.765 TB/s.
"""

import argparse
import json
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import SingleDeviceSharding

from hope_jax.layers.titans import SelfModifyingTitans, TitansConfig
from hope_jax.planning.cost import program_cost
from hope_jax.planning.topology import CHIPS, find_devices

jax.config.update("jax_platforms", "cpu")

CHIP, FLOPS, BANDWIDTH = CHIPS["v5p"], 459e12, 2.765e12


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
    place = SingleDeviceSharding(find_devices("v5p:2x2x1").devices[0])
    args = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), (params, x)
    )
    loss = lambda params, x: jnp.sum(jnp.square(read(params, x).astype(jnp.float32)))
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*args).compile()
    cost = program_cost(compiled.as_text())
    milliseconds = 1e3 * cost.cycles / CHIP.clock
    activations = 2 * math.prod(x.shape) * x.dtype.itemsize
    line = {
        "layer": name,
        "milliseconds": round(milliseconds, 2),
        "tera_flops": round(cost.flops / 1e12, 3),
        "operations": sum(share.operations for share in cost.kinds.values()),
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

    config = TitansConfig(
        width, heads, memory_chunk=chunk, generator_chunk=chunk, memory_form="xla"
    )
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
