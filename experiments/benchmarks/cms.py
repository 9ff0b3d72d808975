"""Cost of levels that learn while the model reads, one JSON line a measurement.

    python experiments/benchmarks/cms.py                # everything, some minutes on two cores
    python experiments/benchmarks/cms.py train          # only what is named

Lines: `train` (a training step with in-context learning in the last quarter of the blocks over the
same step without: time, temporary memory), `inference` (time to read on, and to read a
token, by the number of tokens read before). Times are medians of several runs in turn, so that both
models see the same machine; `spread` is (largest - smallest) / median.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from hope_jax.inference.sampling import read
from hope_jax.models import LanguageModel, LanguageModelConfig

BATCH, LENGTH = 4, 512
TITANS = LanguageModelConfig(
    vocab_size=256,
    width=128,
    num_layers=4,
    num_heads=4,
    mlp_width=256,
    cms_levels=2,
    titans={"network": "matrix", "memory_chunk": 64, "generator_chunk": 64},
)
PLAIN = {
    "titans": TITANS,
    "attention": dataclasses.replace(
        TITANS, sequence_layer="attention", attention_window=512, titans={}
    ),
}


def learning(plain: LanguageModelConfig, objective: str, **changes: Any) -> LanguageModelConfig:
    settings = {"objective": objective, "chunks": (64, 256), **changes}
    return dataclasses.replace(plain, in_context=settings)


def emit(**line: object) -> None:
    print(json.dumps(line), flush=True)


def in_turn(*functions: Callable[[], Any], runs: int = 7) -> list[tuple[float, float]]:
    """Median seconds and spread of each, run one after the other in rounds."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(runs + 1):
        for function, kept in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if turn:
                kept.append(time.perf_counter() - start)
    medians = [statistics.median(kept) for kept in times]
    return [(m, (max(kept) - min(kept)) / m) for m, kept in zip(medians, times, strict=True)]


def prepared_step(
    config: LanguageModelConfig, batch: int = BATCH, length: int = LENGTH
) -> tuple[Callable[[], Any], Any]:
    """A training step to call, and what the compiler says of its memory."""
    model, optimizer = LanguageModel(config), optax.adamw(1e-3)
    ids = jax.random.randint(jax.random.key(0), (batch, length + 1), 0, config.vocab_size)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(1), ids[:, :2])["params"])

    def mean_loss(params):
        texts = ids[:, :-1], ids[:, 1:]
        return jnp.mean(model.apply({"params": params}, *texts, method="token_losses"))

    def step(params, state):
        loss, gradient = jax.value_and_grad(mean_loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state = optimizer.init(params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state).compile()
    held: list[Any] = [params, state, None]

    def take() -> None:
        held[:] = compiled(*held[:2])
        jax.block_until_ready(held)

    return take, compiled.memory_analysis()


def bench_train() -> None:
    for name, plain in PLAIN.items():
        for remat in ("none", "block"):
            base = dataclasses.replace(plain, remat=remat)
            configs = {
                "next_token": learning(base, "next_token"),
                "local": learning(base, "local"),
            }
            steps, stats = zip(*map(prepared_step, (base, *configs.values())), strict=True)
            memory = [one.temp_size_in_bytes for one in stats]
            times = in_turn(*steps)
            for index, objective in enumerate(configs, 1):
                emit(
                    bench="train",
                    layer=name,
                    remat=remat,
                    objective=objective,
                    time_ratio=round(times[index][0] / times[0][0], 3),
                    memory_ratio=round(memory[index] / memory[0], 3),
                    seconds=round(times[index][0], 4),
                    plain_seconds=round(times[0][0], 4),
                    spread=round(max(times[0][1], times[index][1]), 3),
                    temporary_mib=round(memory[index] / 2**20, 1),
                )


def bench_inference() -> None:
    for name, plain in PLAIN.items():
        for objective in ("next_token", "local"):
            model = LanguageModel(learning(plain, objective))
            tokens = jax.random.randint(jax.random.key(0), (1, 8192), 0, plain.vocab_size)
            params = nn.unbox(jax.jit(model.init)(jax.random.key(1), tokens[:, :2])["params"])
            begun = read(model, params, tokens[:, :100])
            lengths = (512, 1024, 2048, 4096)
            calls = [
                lambda n=n, model=model, params=params, tokens=tokens, begun=begun: (
                    jax.block_until_ready(read(model, params, tokens[:, :n], begun))
                )
                for n in lengths
            ]
            for n, (seconds, spread) in zip(lengths, in_turn(*calls), strict=True):
                emit(
                    bench="inference",
                    layer=name,
                    objective=objective,
                    tokens=n,
                    microseconds_per_token=round(seconds / n * 1e6, 2),
                    spread=round(spread, 3),
                )
            one = tokens[:, :1]
            for before in (100, 8000):
                context = read(model, params, tokens[:, :before])

                # As many single tokens as the largest chunk, so that every change is among them.
                def many(context=context, model=model, params=params, one=one) -> None:
                    for _ in range(256):
                        context = read(model, params, one, context)
                    jax.block_until_ready(context)

                ((seconds, spread),) = in_turn(many, runs=5)
                emit(
                    bench="token",
                    layer=name,
                    objective=objective,
                    read_before=before,
                    microseconds_per_token=round(seconds / 256 * 1e6, 1),
                    spread=round(spread, 3),
                )


if __name__ == "__main__":
    BENCHES = {"train": bench_train, "inference": bench_inference}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join(BENCHES)}")
    names = parser.parse_args().names or list(BENCHES)
    for name in names:
        BENCHES[name]()
