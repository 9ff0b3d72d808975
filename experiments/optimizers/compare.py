"""AdamW, Muon, M3 and AdEMAMix on a small language model and a small image classifier.

    python experiments/optimizers/compare.py language            # about 6 minutes on two cores
    python experiments/optimizers/compare.py vision              # about 3 minutes on two cores

`language`: a two-layer Transformer on the bytes of the Python standard library. `vision`: a
two-layer ViT on generated images (a class's smooth pattern, shifted anywhere, under noise).
Every optimiser gets the same learning rates to try on seed 0, the one with the lowest held-out loss
is run on three other seeds, all runs have the same number of steps, warm-up and cosine decay, no
weight decay. Writes <task>.md (a table) and <task>.png (loss against steps and against seconds).
"""

import argparse
import functools
import pathlib
import statistics
import sysconfig
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.optim import dimension_numbers_by_path, m3

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = pathlib.Path(__file__).parent
CHUNK, WARMUP = 25, 40  # steps compiled together; of warm-up
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SEEDS = (1, 2, 3)
ROUNDS = 7  # of timing


class Task(NamedTuple):
    """A model to train: parameters from a key, loss of a batch, batch from a key."""

    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    batch: Callable[[jax.Array], Any]
    held_out: list[Any]
    dimension_numbers: Callable[[Any], Any]
    size: str
    steps: int


def language() -> Task:
    files = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
    train, rest = jnp.asarray(text[: -len(text) // 20]), text[-len(text) // 20 :]
    batch_size, length = 16, 96
    config = LanguageModelConfig(
        vocab_size=256,
        width=64,
        num_layers=2,
        num_heads=2,
        mlp_width=128,
        sequence_layer="attention",
        attention_window=length,
    )
    model = LanguageModel(config)

    def batch(key):
        start = jax.random.randint(key, (batch_size, 1), 0, len(train) - length - 1)
        return train[start + jnp.arange(length + 1)].astype(jnp.int32)

    def loss(params, tokens):
        losses = model.apply(
            {"params": params}, tokens[:, :-1], tokens[:, 1:], method="token_losses"
        )
        return losses.mean()

    held_out = rest[: 8 * batch_size * (length + 1)].reshape(8, batch_size, length + 1)
    return Task(
        lambda key: nn.unbox(model.init(key, batch(key)[:, :-1])["params"]),
        loss,
        batch,
        list(jnp.asarray(held_out, jnp.int32)),
        dimension_numbers_by_path(
            [
                (r"attention/(query|key|value)", MuonDimensionNumbers(1, (2, 3))),
                (r"attention/out", MuonDimensionNumbers((1, 2), 3)),
                (r"(up|gate|down)/kernel", MuonDimensionNumbers(1, 2)),
                ("", None),
            ]
        ),
        f"{len(text):,} bytes, {batch_size} x {length} tokens a step",
        steps=250,
    )


class VisionTransformer(nn.Module):
    """Patches of 4 x 4, learned positions, two pre-norm blocks, mean pooling."""

    width: int = 64
    classes: int = 10

    @nn.compact
    def __call__(self, images):
        b, side, _ = images.shape
        grid = images.reshape(b, side // 4, 4, side // 4, 4).transpose(0, 1, 3, 2, 4)
        x = nn.Dense(self.width, name="patch_embedding")(grid.reshape(b, -1, 16))
        x += self.param("position_embedding", nn.initializers.normal(0.02), x.shape[1:])
        for i in range(2):
            h = nn.LayerNorm(name=f"norm_{i}")(x)
            x += nn.MultiHeadDotProductAttention(2, name=f"attention_{i}")(h)
            h = nn.LayerNorm(name=f"mlp_norm_{i}")(x)
            h = nn.gelu(nn.Dense(2 * self.width, name=f"up_{i}")(h))
            x += nn.Dense(self.width, name=f"down_{i}")(h)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm(name="norm")(x).mean(axis=1))


def vision() -> Task:
    model, side, batch_size = VisionTransformer(), 24, 64
    noise = jax.random.normal(jax.random.key(99), (10, side, side))
    low = jnp.abs(jnp.fft.fftfreq(side) * side) <= 3
    patterns = jnp.fft.ifft2(jnp.fft.fft2(noise) * low[:, None] * low[None]).real
    patterns = patterns / patterns.std(axis=(1, 2), keepdims=True)

    def batch(key):
        label_key, shift_key, noise_key = jax.random.split(key, 3)
        labels = jax.random.randint(label_key, (batch_size,), 0, 10)
        shifts = jax.random.randint(shift_key, (batch_size, 2), 0, side)
        images = jax.vmap(lambda p, s: jnp.roll(p, s, axis=(0, 1)))(patterns[labels], shifts)
        return images + 2.5 * jax.random.normal(noise_key, images.shape), labels

    def loss(params, data):
        images, labels = data
        logits = model.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return Task(
        lambda key: model.init(key, batch(key)[0])["params"],
        loss,
        batch,
        [batch(jax.random.key(10_000 + i)) for i in range(8)],
        dimension_numbers_by_path(
            [
                (r"attention_\d/(query|key|value)/kernel", MuonDimensionNumbers(0, (1, 2))),
                (r"attention_\d/out/kernel", MuonDimensionNumbers((0, 1), 2)),
                (r"(up|down)_\d/kernel", MuonDimensionNumbers()),
                ("", None),
            ]
        ),
        f"images of {side} x {side}, fresh every step, {batch_size} a step",
        steps=400,
    )


def optimizers(task: Task) -> dict[str, Callable[[Any], optax.GradientTransformation]]:
    # AdEMAMix's own default, b3 = 0.9999, remembers far more steps than these runs have.
    return {
        "AdamW": lambda rate: optax.adamw(rate, b2=0.99, weight_decay=0.0),
        "Muon": lambda rate: optax.contrib.muon(
            rate,
            adam_b2=0.99,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=task.dimension_numbers,
        ),
        "M3": lambda rate: m3(rate, adam_b2=0.99, weight_dimension_numbers=task.dimension_numbers),
        "M3, second moment of the update": lambda rate: m3(
            rate,
            adam_b2=0.99,
            second_moment="update",
            weight_dimension_numbers=task.dimension_numbers,
        ),
        "AdEMAMix": lambda rate: optax.contrib.ademamix(rate, b2=0.99, b3=0.99),
    }


class Run(NamedTuple):
    losses: np.ndarray
    held_out: float


def runner(task: Task, make: Callable[[Any], optax.GradientTransformation]):
    """Two functions that compile once: (learning rate, seed) -> Run, and () -> seconds a step."""

    def optimizer(rate):
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, WARMUP, task.steps, 0.05)
        return make(lambda count: rate * schedule(count))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def chunk(params, state, key, rate):
        def step(carry, key):
            params, state = carry
            loss, gradients = jax.value_and_grad(task.loss)(params, task.batch(key))
            updates, state = optimizer(rate).update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), loss

        (params, state), losses = jax.lax.scan(step, (params, state), jax.random.split(key, CHUNK))
        return params, state, losses

    init = jax.jit(lambda key: (lambda p: (p, optimizer(1.0).init(p)))(task.init(key)))
    evaluate = jax.jit(task.loss)

    def run(rate: float, seed: int) -> Run:
        params, state = init(jax.random.key(seed))
        losses = []
        for i in range(task.steps // CHUNK):
            key = jax.random.fold_in(jax.random.key(1000 + seed), i)
            params, state, some = chunk(params, state, key, rate)
            losses.append(np.asarray(some))
        held_out = float(np.mean([evaluate(params, data) for data in task.held_out]))
        return Run(np.concatenate(losses), held_out)

    def time_step() -> float:
        params, state = init(jax.random.key(0))
        start = time.perf_counter()
        jax.block_until_ready(chunk(params, state, jax.random.key(0), RATES[0]))
        return (time.perf_counter() - start) / CHUNK

    return run, time_step


def smooth(losses: np.ndarray) -> np.ndarray:
    window = 15
    padded = np.concatenate([np.full(window - 1, losses[0]), losses])
    return np.convolve(padded, np.ones(window) / window, mode="valid")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("language", "vision"))
    name = parser.parse_args().task
    task = {"language": language, "vision": vision}[name]()
    count = sum(x.size for x in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0))))

    finals, tried, timers = {}, [], {}
    for label, make in optimizers(task).items():
        run, timers[label] = runner(task, make)
        trials = {rate: run(rate, 0).held_out for rate in RATES}
        best = min(trials, key=lambda rate: trials[rate] if np.isfinite(trials[rate]) else np.inf)
        runs = [run(best, seed) for seed in SEEDS]
        finals[label] = (best, runs)
        tried.append(f"| {label} | " + " | ".join(f"{trials[r]:.3f}" for r in RATES) + " |")
        print(tried[-1], [round(r.held_out, 3) for r in runs], flush=True)

    # In turns, so that a disturbance of the machine falls on all of them.
    times: dict[str, list[float]] = {label: [] for label in timers}
    for _ in range(ROUNDS):
        for label, time_step in timers.items():
            times[label].append(time_step())
    seconds = {label: statistics.median(ts) for label, ts in times.items()}

    rows = []
    for label, (best, runs) in finals.items():
        held_out = [r.held_out for r in runs]
        rows.append(
            f"| {label} | {best:g} | {np.mean(held_out):.3f} ± {np.std(held_out):.3f} | "
            f"{np.mean([r.losses[-25:].mean() for r in runs]):.3f} | {1e3 * seconds[label]:.1f} | "
            f"{task.steps * seconds[label]:.1f} |"
        )
    print("\n".join(rows))

    lines = [
        f"{name}: {count:,} parameters, {task.size}, {task.steps} steps, seeds {SEEDS}, "
        "two CPU cores.",
        "",
        "| optimiser | learning rate | held-out loss | training loss, last 25 steps | ms a step | "
        "seconds |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        "Held-out loss of the trials (seed 0):",
        "",
        "| optimiser | " + " | ".join(f"{rate:g}" for rate in RATES) + " |",
        "| --- |" + " --- |" * len(RATES),
        *tried,
    ]
    (HERE / f"{name}.md").write_text("\n".join(lines) + "\n")

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for label, (_, runs) in finals.items():
        curves = np.stack([smooth(r.losses) for r in runs])
        steps = np.arange(1, task.steps + 1)
        for axis, x in zip(axes, (steps, steps * seconds[label]), strict=True):
            (line,) = axis.plot(x, curves.mean(axis=0), label=label)
            axis.fill_between(
                x, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.2
            )
    axes[0].set(xlabel="step", ylabel="training loss (nats), mean and range of seeds")
    axes[1].set(xlabel="seconds (median time of a step)")
    axes[0].set_ylim(
        top=float(
            np.median([smooth(r.losses)[task.steps // 12] for _, rs in finals.values() for r in rs])
        )
    )
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(HERE / f"{name}.png", dpi=120)


if __name__ == "__main__":
    main()
