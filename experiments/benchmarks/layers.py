"""Speed and memory of every sequence layer at equal width, one JSON line a measurement.

    python experiments/benchmarks/layers.py                      # everything, some 20 minutes
    python experiments/benchmarks/layers.py --lengths 512 2048 --layers hope delta_net attention

Forward and backward of one layer, batch 1, width 128, 2 heads, float32: tokens a second, bytes of
temporaries, FLOPs of matrix products, by length. `attention` is softmax over the whole context,
`window` over 512 tokens, `memory_as_context`, `memory_as_gate` and `memory_as_layer` are that window
joined with `titans_lmm`; the rest are the names in `hope_jax.layers.family`. All layers of a length are
timed in turn, so that all see the same machine; the last lines are ratios of those times.
"""

import argparse
import functools
import json
import statistics
import time

import jax
import jax.numpy as jnp
from flax import linen as nn

from hope_jax.layers.attention import Attention
from hope_jax.layers.family import FAMILY
from hope_jax.layers.memory_and_attention import MemoryAsGate, MemoryAsLayer
from hope_jax.layers.memory_as_context import MemoryAsContext
from hope_jax.layers.titans import SelfModifyingTitans, TitansConfig
from hope_jax.models.flops import count_flops

WIDTH, HEADS = 128, 2
JOINED = ("context", "gate", "layer")
RATIOS = (("hope", "delta_net"), ("hope", "ttt_mlp"), ("hope", "attention"))


def layer_of(name: str, length: int) -> nn.Module:
    if name in ("attention", "window"):
        return Attention(HEADS, length if name == "attention" else 512)
    if name in FAMILY:
        return SelfModifyingTitans(TitansConfig(WIDTH, HEADS, **FAMILY[name]))
    memory = TitansConfig(WIDTH, HEADS, **FAMILY["titans_lmm"])
    if name == "memory_as_context":
        return MemoryAsContext(memory, 512)
    joined = MemoryAsGate if name == "memory_as_gate" else MemoryAsLayer
    return joined(
        functools.partial(Attention, HEADS, 512), functools.partial(SelfModifyingTitans, memory)
    )


def prepared(name: str, length: int):
    """A call to time, and what is known of it beforehand."""
    layer = layer_of(name, length)
    x = jax.random.normal(jax.random.key(0), (1, length, WIDTH))
    params = nn.unbox(jax.jit(layer.init)(jax.random.key(1), x[:, :2]))
    loss = lambda params, x: jnp.sum(jnp.square(layer.apply(params, x)[0]))
    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    compiled = jax.jit(gradient).lower(params, x).compile()
    known = {
        "temporary_bytes_per_token": compiled.memory_analysis().temp_size_in_bytes // length,
        "kiloflops_per_token": count_flops(gradient, params, x) // length // 1000,
    }
    return lambda: jax.block_until_ready(compiled(params, x)), known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384]
    )
    names = ["attention", "window", *FAMILY, *(f"memory_as_{how}" for how in JOINED)]
    parser.add_argument("--layers", nargs="+", choices=names, default=names)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    for length in given.lengths:
        calls, times = {}, {name: [] for name in given.layers}
        for name in given.layers:
            calls[name] = prepared(name, length)
            calls[name][0]()
        for _ in range(given.runs):
            for name, (call, _) in calls.items():
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(taken) for name, taken in times.items()}
        for name, (_, known) in calls.items():
            spread = (max(times[name]) - min(times[name])) / medians[name]
            line = {
                "layer": name,
                "length": length,
                "tokens_per_second": round(length / medians[name]),
                "spread": round(spread, 3),
            }
            print(json.dumps({**line, **known}), flush=True)
        for one, other in RATIOS:
            if one in medians and other in medians:
                ratio = round(medians[one] / medians[other], 2)
                print(json.dumps({"ratio": f"{one} / {other}", "length": length, "time": ratio}))


if __name__ == "__main__":
    main()
