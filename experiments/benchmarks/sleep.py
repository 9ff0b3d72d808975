"""Cost of sleep, one JSON line a measurement.

    python experiments/benchmarks/sleep.py              # everything, a minute or two on two cores
    python experiments/benchmarks/sleep.py sampling     # only what is named

Lines: `sampling` (tokens a second of 32 sequences in one scan, over those of a single stream of
`generate` in the same run, in turn). `spread` is (largest - smallest) / median of the times.
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from cms import PLAIN, emit, in_turn, learning
from flax import linen as nn

from hope_jax.inference.sampling import generate, read, sample
from hope_jax.models import LanguageModel

SEQUENCES, READ, SAMPLED = 32, 64, 128


def bench_sampling() -> None:
    attention = dataclasses.replace(PLAIN["attention"], attention_window=256)
    configs = {
        "titans": PLAIN["titans"],
        "attention": attention,
        "attention, last block learning": learning(attention, "next_token"),
    }
    for name, config in configs.items():
        model = LanguageModel(config)
        tokens = jax.random.randint(jax.random.key(0), (SEQUENCES, READ), 0, config.vocab_size)
        params = nn.unbox(jax.jit(model.init)(jax.random.key(1), tokens[:, :2])["params"])
        many, one = (read(model, params, tokens[:count]) for count in (SEQUENCES, 1))
        settings: dict[str, Any] = {"key": jax.random.key(2), "num_tokens": SAMPLED}

        def scan(model=model, params=params, context=many, settings=settings) -> None:
            jax.block_until_ready(sample(model, params, context, **settings))

        def stream(model=model, params=params, context=one, settings=settings) -> None:
            context = jax.tree.map(jnp.copy, context)  # its buffers are reused
            jax.block_until_ready(generate(model, params, context, **settings)[1])

        (scanned, spread), (streamed, other) = in_turn(scan, stream)
        emit(
            bench="sampling",
            model=name,
            sequences=SEQUENCES,
            sampled=SAMPLED,
            tokens_per_second=round(SEQUENCES * SAMPLED / scanned),
            single_stream_tokens_per_second=round(SAMPLED / streamed),
            ratio=round(SEQUENCES * streamed / scanned, 1),
            spread=round(max(spread, other), 3),
        )


if __name__ == "__main__":
    BENCHES = {"sampling": bench_sampling}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join(BENCHES)}")
    names = parser.parse_args().names or list(BENCHES)
    for name in names:
        BENCHES[name]()
