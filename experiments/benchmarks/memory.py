"""Speed and memory of the self-modifying layer, one JSON line a measurement.

    python experiments/benchmarks/memory.py                # everything, some minutes on two cores
    python experiments/benchmarks/memory.py layer lengths  # only what is named

Lines: `layer` (forward and exact backward, chunked against token by token), `titans_pytorch` (one
memory with static projections against that package, if it is installed), `lengths` (time and
temporaries from 512 to 16,384 tokens), `decode` (time of one token, early and late in a context).
The first two have the batch split over devices, and each core of a CPU is one, if JAX_NUM_CPU_DEVICES
does not say otherwise: cores that work on sequences of their own wait less than cores that share a
small product. Times are medians of several
runs; `spread` is (largest - smallest) / median. The rate of a 1024 x 1024 product on one device in
the same run says how fast the machine was.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from hope_jax.layers.titans import SelfModifyingTitans, TitansConfig

BATCH, LENGTH, WIDTH, HEADS = 4, 512, 128, 2
# What that package has: no self-modification, no projector.
STATIC = TitansConfig(
    WIDTH,
    HEADS,
    adaptive=(),
    generated_target=False,
    projector="none",
    memory_chunk=64,
    generator_chunk=64,
)


def emit(**line: object) -> None:
    print(json.dumps(line), flush=True)


def seconds(function: Callable[[], Any], runs: int = 7) -> tuple[float, float]:
    """Median seconds of several runs after one to warm up, and their spread."""
    function()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    return median, (max(times) - min(times)) / median


def gigaflops() -> float:
    matrix = jax.random.normal(jax.random.key(0), (1024, 1024))
    product = jax.jit(jnp.matmul)
    return 2 * 1024**3 / seconds(lambda: product(matrix, matrix).block_until_ready(), 21)[0] / 1e9


def make(config: TitansConfig, batch: int, length: int):
    layer = SelfModifyingTitans(config)
    x = jax.random.normal(jax.random.key(0), (batch, length, config.width))
    params = nn.unbox(jax.jit(layer.init)(jax.random.key(1), x))
    return layer, params, x


def split_batch(params, x):
    """Lays sequences on as many devices as they divide among, and parameters on all of these."""
    count = math.gcd(x.shape[0], jax.device_count())
    mesh = jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=jax.devices()[:count])
    place = lambda tree, *axes: jax.device_put(tree, NamedSharding(mesh, P(*axes)))
    return place(params), place(x, "data"), count


def gradient(read: Callable) -> Callable:
    """Value and gradient with respect to parameters and inputs, compiled."""
    loss = lambda params, x: jnp.sum(jnp.square(read(params, x)))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def bench_layer() -> None:
    config = TitansConfig(WIDTH, HEADS)
    layer, params, x = make(config, BATCH, LENGTH)
    params, x, devices = split_batch(params, x)

    def by_token(params, x):
        start = layer.apply(params, x[:, :0])[1]

        def step(state, token):
            out, state = layer.apply(params, token[:, None], state)
            return state, out[:, 0]

        return jax.lax.scan(jax.checkpoint(step), start, x.swapaxes(0, 1))[1].swapaxes(0, 1)

    rates = {}
    for form, read in (
        ("chunked", lambda params, x: layer.apply(params, x)[0]),
        ("by_token", by_token),
    ):
        function = gradient(read)
        median, spread = seconds(
            lambda f=function: jax.block_until_ready(f(params, x)), 9 if form == "chunked" else 3
        )
        rates[form] = BATCH * LENGTH / median
        emit(
            bench="layer",
            form=form,
            devices=devices,
            tokens_per_second=round(rates[form]),
            milliseconds=round(1e3 * median, 1),
            spread=round(spread, 3),
        )
    emit(bench="layer", chunked_over_by_token=round(rates["chunked"] / rates["by_token"], 2))


def bench_titans_pytorch() -> None:
    layer, params, x = make(STATIC, BATCH, LENGTH)
    params, x, devices = split_batch(params, x)
    function = gradient(lambda params, x: layer.apply(params, x)[0])
    ours = seconds(lambda: jax.block_until_ready(function(params, x)), 9)
    emit(
        bench="titans_pytorch",
        who="hope_jax",
        devices=devices,
        tokens_per_second=round(BATCH * LENGTH / ours[0]),
        spread=round(ours[1], 3),
    )
    try:
        import torch
        from titans_pytorch import NeuralMemory
    except ImportError:
        emit(bench="titans_pytorch", skipped="pip install torch titans-pytorch to compare")
        return
    memory = NeuralMemory(dim=WIDTH, heads=HEADS, dim_head=WIDTH // HEADS, chunk_size=64)
    inputs = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)

    def step():
        memory.zero_grad()
        inputs.grad = None
        memory(inputs)[0].square().sum().backward()

    theirs = seconds(step, 9)
    emit(
        bench="titans_pytorch",
        who="titans-pytorch",
        tokens_per_second=round(BATCH * LENGTH / theirs[0]),
        spread=round(theirs[1], 3),
    )
    emit(bench="titans_pytorch", ours_over_theirs=round(theirs[0] / ours[0], 2))


def bench_lengths() -> None:
    before = None
    for length in (512, 1024, 2048, 4096, 8192, 16384):
        layer, params, x = make(TitansConfig(WIDTH, HEADS), 1, length)
        function = gradient(lambda params, x: layer.apply(params, x)[0])  # noqa: B023
        memory = function.lower(params, x).compile().memory_analysis()
        median, spread = seconds(lambda: jax.block_until_ready(function(params, x)), 5)  # noqa: B023
        emit(
            bench="lengths",
            tokens=length,
            milliseconds=round(1e3 * median, 1),
            spread=round(spread, 3),
            over_half_the_length=None if before is None else round(median / before, 2),
            temporaries_megabytes=round(memory.temp_size_in_bytes / 1e6, 1),
            kilobytes_per_token=round(memory.temp_size_in_bytes / 1e3 / length, 1),
        )
        before = median


def bench_decode() -> None:
    layer, params, _ = make(TitansConfig(WIDTH, HEADS), 1, 16)
    token = jax.random.normal(jax.random.key(2), (1, 1, WIDTH))
    read = jax.jit(layer.apply)
    step = jax.jit(layer.apply, donate_argnums=2)
    piece = jax.random.normal(jax.random.key(3), (1, 1000, WIDTH))
    states = {100: read(params, piece[:, :100])[1]}
    state = read(params, piece)[1]
    for _ in range(99):
        state = read(params, piece, state)[1]
    states[100_000] = state
    times: dict[int, list[float]] = {position: [] for position in states}
    for _ in range(9):  # taking turns, so that a disturbance falls on both
        for position in states:
            state = states[position]
            for _ in range(20):
                out, state = step(params, token, state)
            out.block_until_ready()
            start = time.perf_counter()
            for _ in range(200):
                out, state = step(params, token, state)
            out.block_until_ready()
            times[position].append((time.perf_counter() - start) / 200)
            states[position] = state
    medians = {position: statistics.median(values) for position, values in times.items()}
    for position, median in medians.items():
        emit(bench="decode", position=position, microseconds_per_token=round(1e6 * median, 1))
    emit(bench="decode", late_over_early=round(medians[100_000] / medians[100], 3))


BENCHES = {
    "layer": bench_layer,
    "titans_pytorch": bench_titans_pytorch,
    "lengths": bench_lengths,
    "decode": bench_decode,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHES)}; all if none")
    names = parser.parse_args().names or list(BENCHES)
    for name in names:
        if name not in BENCHES:
            parser.error(f"unknown benchmark {name!r}; known are {', '.join(BENCHES)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", cores)
    emit(bench="machine", gigaflops=round(gigaflops()), backend=jax.default_backend())
    for name in names:
        BENCHES[name]()
    emit(bench="machine", gigaflops=round(gigaflops()))


if __name__ == "__main__":
    main()
