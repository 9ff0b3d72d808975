"""Does loss fall further with position where levels learn in context?

    python experiments/cms/position.py     # three seeds, some 20 minutes on two CPU cores

Contexts of excerpts from several files of the quickstart corpus. The same model is trained with
and without in-context learning: same parameters but for one factor of the step size for each level,
same tokens, same steps, each at the best of three learning rates. Both see 128 tokens by attention.
Tested on contexts of held-out files, twice as long as those of training; the model that learns in
context also with its updates turned off. Writes position.md and position.png beside this file.
"""

import argparse
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from fitting import Batch, fit, losses_of

from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.training.corpus import load_documents

LENGTH, TEST_LENGTH, BUCKET = 2048, 4096, 256
PLAIN = LanguageModelConfig(
    vocab_size=256,
    width=96,
    num_layers=4,
    num_heads=4,
    mlp_width=192,
    cms_levels=2,
    sequence_layer="attention",
    attention_window=128,
)


def contexts(documents: list[bytes], batch: int, length: int, seed: int) -> Iterator[Batch]:
    """Excerpts of random files, one after the other."""
    random = np.random.default_rng(seed)

    def excerpt() -> bytes:
        document = documents[random.integers(len(documents))]
        size = random.integers(200, 1000)
        start = random.integers(max(1, len(document) - size))
        return document[start : start + size]

    def context() -> np.ndarray:
        text = b""
        while len(text) <= length:
            text += excerpt() + b"\n"
        return np.frombuffer(text[: length + 1], np.uint8).astype(np.int32)

    while True:
        ids = np.stack([context() for _ in range(batch)])
        yield Batch(ids, np.ones((batch, length), np.float32))


def by_position(config, params, documents: list[bytes], seed: int, batches: int) -> np.ndarray:
    """Mean bits per byte of each bucket of positions."""
    model = LanguageModel(config)
    read = jax.jit(lambda params, ids: losses_of(model, params, ids))
    test = contexts(documents, 4, TEST_LENGTH, seed)
    losses = np.concatenate([np.asarray(read(params, next(test).ids)) for _ in range(batches)])
    return losses.reshape(len(losses), -1, BUCKET).mean((0, 2)) / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[4e-3, 8e-3, 1.6e-2])
    given = parser.parse_args()
    documents = load_documents("", "", 0.1)
    train, held_out = list(documents.train), list(documents.validation)
    models = {
        "plain": PLAIN,
        "in context": dataclasses.replace(
            PLAIN, in_context={"chunks": (64, 512), "step_size": 1.0}
        ),
    }
    curves: dict[str, list[np.ndarray]] = {"plain": [], "in context": [], "its updates off": []}
    chosen = {}
    for name, config in models.items():

        def trained(rate: float, seed: int, config=config):
            return fit(config, contexts(train, 2, LENGTH, seed), given.steps, seed, rate)[1]

        tried = {}
        for rate in given.learning_rates:
            tried[rate] = trained(rate, 0)
            found = by_position(config, tried[rate], train, seed=2000, batches=8).mean()
            chosen.setdefault(name, []).append((found, rate))
            print(f"{name}: learning rate {rate:g}, {found:.3f} on other training text", flush=True)
        rate = min(chosen[name])[1]
        for seed in range(given.seeds):
            params = tried[rate] if seed == 0 else trained(rate, seed)
            curves[name].append(by_position(config, params, held_out, seed=1000, batches=24))
            print(name, seed, curves[name][-1].round(3), params.get("log_step"), flush=True)
            if name != "plain":
                off = by_position(PLAIN, params, held_out, seed=1000, batches=24)
                curves["its updates off"].append(off)
    write(curves, {name: min(tries)[1] for name, tries in chosen.items()})


def write(curves: dict[str, list[np.ndarray]], rates: dict[str, float]) -> None:
    folder = Path(__file__).parent
    positions = np.arange(BUCKET, TEST_LENGTH + 1, BUCKET)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, seeds in curves.items():
        stack = np.stack(seeds)
        axes.plot(positions, stack.mean(0), label=name)
        axes.fill_between(positions, stack.min(0), stack.max(0), alpha=0.2)
    axes.axvline(LENGTH, color="grey", linestyle=":", label="length in training")
    axes.set(xlabel="position in the context (bytes)", ylabel="bits per byte")
    axes.legend()
    figure.savefig(folder / "position.png", dpi=120)
    shown = list(range(0, len(positions), 2)) + [len(positions) - 1]
    lines = [
        "Bits per byte by position, mean of three seeds (smallest to largest), held-out files.",
        "Learning rates, the best of three for each: "
        + ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        + ".",
        "",
        "Command: `python experiments/cms/position.py`",
        "",
        "| bytes before | " + " | ".join(curves) + " |",
        "|---|" + "---|" * len(curves),
    ]
    for index in shown:
        cells = []
        for seeds in curves.values():
            values = [curve[index] for curve in seeds]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        start = positions[index] - BUCKET
        lines.append(f"| {start} to {positions[index]} | " + " | ".join(cells) + " |")
    (folder / "position.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
