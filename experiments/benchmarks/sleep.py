"""Cost of sleep, one JSON line a measurement.

    python experiments/benchmarks/sleep.py                     # everything, some minutes of a core
    python experiments/benchmarks/sleep.py sampling            # only what is named
    python experiments/benchmarks/sleep.py --run=runs/facts/model  # of the model of sleep/facts.py, too

Lines: `sampling` (tokens a second of 32 sequences in one scan, over those of a single stream of
`generate` in the same run, in turn; `levels` says whether they learn as it speaks, or are held, as those
of teacher and student are in a night); `step` (a seeding step over a training step, AdamW, on as many
tokens as teacher and student read in it, in turn; and the bytes of both, as the compiler tells them:
what they are given, what they return in other places, and temporaries); `night` (seconds of a whole night
of sleep/facts.py, with compilation and without, and the bytes of its largest program over those of a
training step of sleep/facts_pretrain.py's size). `spread` is (largest - smallest) / median of the times.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from cms import PLAIN, emit, in_turn, learning, prepared_step
from flax import linen as nn

from hope_jax.commands.trained_model import load_model
from hope_jax.inference.sampling import generate, read, sample
from hope_jax.models import LanguageModel
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.cycle import begin_lesson
from hope_jax.sleep.readers import held
from hope_jax.sleep.seeding import begin_seeding, keep_samples, keep_texts, measure, seed_step

sys.path.append(str(Path(__file__).parents[1] / "sleep"))

SEQUENCES, READ, SAMPLED = 32, 64, 128
ATTENTION = dataclasses.replace(PLAIN["attention"], attention_window=256)
SILENT = {"lam": 0.0, "a": 1.0}
NIGHTS = {
    "silent": SILENT,
    "silent, kept": {**SILENT, "kept_samples": 128},
    "speaks": {},
}


def total(stats: Any) -> int:
    """Bytes of a compiled program: its arguments, what does not take their place, temporaries."""
    new = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes + new + stats.temp_size_in_bytes


def models(run: str | None) -> Iterator[tuple[str, LanguageModel, Any]]:
    """Names, models and parameters."""
    configs = {
        "titans": PLAIN["titans"],
        "attention": ATTENTION,
        "attention, last block learning": learning(ATTENTION, "next_token"),
    }
    for name, config in configs.items():
        model = LanguageModel(config)
        init = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))
        yield name, model, nn.unbox(init["params"])
    if run is not None:
        yield "facts", *load_model(run)[:2]


def bench_sampling(run: str | None) -> None:
    for name, model, params in models(run):
        config = model.config
        tokens = jax.random.randint(jax.random.key(0), (SEQUENCES, READ), 0, config.vocab_size)
        settings: dict[str, Any] = {"key": jax.random.key(2), "num_tokens": SAMPLED}
        for levels in ("none",) if config.in_context_config is None else ("learn", "held"):
            many, one = (read(model, params, tokens[:count]) for count in (SEQUENCES, 1))
            if levels == "held":
                many, one = (c._replace(state=held(c.state)) for c in (many, one))

            def scan(model=model, params=params, context=many, settings=settings) -> None:
                jax.block_until_ready(sample(model, params, context, **settings))

            def stream(model=model, params=params, context=one, settings=settings) -> None:
                context = jax.tree.map(jnp.copy, context)  # its buffers are reused
                jax.block_until_ready(generate(model, params, context, **settings)[1])

            (scanned, spread), (streamed, other) = in_turn(scan, stream)
            emit(
                bench="sampling",
                model=name,
                levels=levels,
                sequences=SEQUENCES,
                sampled=SAMPLED,
                tokens_per_second=round(SEQUENCES * SAMPLED / scanned),
                single_stream_tokens_per_second=round(SAMPLED / streamed),
                ratio=round(SEQUENCES * streamed / scanned, 1),
                spread=round(max(spread, other), 3),
            )


def bench_step(run: str | None) -> None:
    for name, model, params in models(run):
        if model.config.in_context_config is None:
            continue
        for student, changes in NIGHTS.items():
            settings = SleepConfig(
                samples=SEQUENCES, tokens=READ, experts=1, expert_width=64, **changes
            )
            optimizer = optax.adam(1e-2)
            text = jax.random.randint(jax.random.key(0), (1, READ), 0, model.config.vocab_size)
            context = read(model, params, text)
            lesson = begin_lesson(model, params, context, jax.random.key(2)[None], settings)
            if settings.kept_samples:
                lesson = keep_samples(model, params, lesson, settings)
            seeding = begin_seeding(model, lesson, settings, optimizer)
            lowered = seed_step.lower(model, params, lesson, seeding, settings, optimizer)
            compiled = lowered.compile()
            read_by_both = SEQUENCES * (1 + settings.continuations * settings.student_speaks)
            train, stats = prepared_step(model.config, read_by_both, READ)

            def seed(compiled=compiled, params=params, lesson=lesson, seeding=seeding) -> None:
                jax.block_until_ready(compiled(params, lesson, seeding))

            (seeded, spread), (trained, other) = in_turn(seed, train)
            mine, theirs = total(compiled.memory_analysis()), total(stats)
            emit(
                bench="step",
                model=name,
                student=student,
                sequences=read_by_both,
                tokens=READ,
                seconds=round(seeded, 4),
                training_seconds=round(trained, 4),
                ratio=round(seeded / trained, 2),
                mib=round(mine / 2**20, 1),
                training_mib=round(theirs / 2**20, 1),
                memory_ratio=round(mine / theirs, 2),
                spread=round(max(spread, other), 3),
            )


def bench_night(run: str | None) -> None:
    if run is None:
        return
    import facts
    import facts_pretrain

    reader = facts.Model(*load_model(run))
    model, params, _ = reader
    _, stats = prepared_step(model.config, facts_pretrain.SIZE, facts_pretrain.LENGTH)
    for student, changes in (("silent", SILENT), ("speaks", {})):
        settings = SleepConfig(**{**facts.NIGHT, **changes})
        world, seconds = facts.world_of(reader.tokenizer, 0), []
        for _ in range(2):
            begun = time.perf_counter()
            facts.night_of(reader, world, 0, 3e-1, settings, others=True)
            seconds.append(time.perf_counter() - begun)
        lesson = facts.lesson_of(reader, world, 0, settings, others=True)
        optimizer = facts.OPTIMIZER
        seeding = begin_seeding(model, lesson, settings, optimizer)
        given = model, params, lesson
        programs = {
            "keep_samples": keep_samples.lower(model, params, lesson._replace(kept=None), settings),
            "keep_texts": keep_texts.lower(
                *given, facts.other_documents(reader.tokenizer, 0), settings
            ),
            "seed_step": seed_step.lower(*given, seeding, settings, optimizer),
            "measure": measure.lower(*given, seeding.expert, settings),
        }
        sizes = {part: total(one.compile().memory_analysis()) for part, one in programs.items()}
        emit(
            bench="night",
            student=student,
            steps=settings.steps,
            samples=settings.samples,
            kept_samples=settings.kept_samples,
            seconds_with_compilation=round(seconds[0], 1),
            seconds=round(seconds[1], 1),
            mib={part: round(size / 2**20, 1) for part, size in sizes.items()},
            training_mib=round(total(stats) / 2**20, 1),
            memory_ratio=round(max(sizes.values()) / total(stats), 2),
        )


if __name__ == "__main__":
    BENCHES = {"sampling": bench_sampling, "step": bench_step, "night": bench_night}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--run", default=None, help="of sleep/facts_pretrain.py")
    given = parser.parse_args()
    for name in given.names or list(BENCHES):
        BENCHES[name](given.run)
