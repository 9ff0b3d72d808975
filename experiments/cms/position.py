"""Does loss fall further with position where levels learn in context?

    python experiments/cms/position.py     # three seeds, some 25 minutes on two CPU cores

Contexts of excerpts from several files of the quickstart corpus. The same model is trained with
and without in-context learning: same parameters but for one factor of the step size for each level,
same tokens, same steps. Both see 128 tokens by attention. Tested on contexts twice as long as those
of training. Writes position.md and position.png beside this file.
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

from hope_jax.data.corpus import load_documents
from hope_jax.models import LanguageModelConfig

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


def by_position(model, params, documents: list[bytes], batches: int) -> np.ndarray:
    """Mean bits per byte of each bucket of positions."""
    read = jax.jit(lambda params, ids: losses_of(model, params, ids))
    test = contexts(documents, 4, TEST_LENGTH, seed=1000)
    losses = np.concatenate([np.asarray(read(params, next(test).ids)) for _ in range(batches)])
    return losses.reshape(len(losses), -1, BUCKET).mean((0, 2)) / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--step_sizes", type=float, nargs="+", default=[1.0])
    parser.add_argument("--draft", action="store_true", help="write nothing")
    given = parser.parse_args()
    documents = load_documents("", "", 0.1)
    train, held_out = list(documents.train), list(documents.validation)
    models = {"plain": PLAIN}
    for size in given.step_sizes:
        learning = {"chunks": (64, 512), "step_size": size}
        models[f"in context, step {size:g}"] = dataclasses.replace(PLAIN, in_context=learning)
    curves: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for seed in range(given.seeds):
        for name, config in models.items():
            say = lambda step, loss, name=name: print(f"{name}: {step} {loss:.3f}", flush=True)
            batches = contexts(train, 2, LENGTH, seed)
            model, params = fit(config, batches, given.steps, seed, report=say)
            curves[name].append(by_position(model, params, held_out, 24))
            print(name, seed, curves[name][-1].round(3), params.get("log_step"), flush=True)
    if not given.draft:
        write(curves)


def write(curves: dict[str, list[np.ndarray]]) -> None:
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
