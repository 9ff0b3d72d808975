"""What is kept of a task after others, by the number of levels and by the lowest frequency?

    python experiments/cms/sequential.py     # three seeds, some 30 minutes on two CPU cores

Two kinds of contexts, new tasks in each: two generated languages read one after the other and then
tested on both; and a stream of labelled examples whose classes come two at a time, then a test on
all. Attention sees 16 tokens, so that what is kept is kept in the weights that learn in context.
All models have the same number of parameters, save step sizes and norms, and are trained on the same
contexts. Writes sequential.md and sequential.png beside this file.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from fitting import Batch, fit

from hope_jax.models import LanguageModelConfig

FASTEST = 8
PLAIN = LanguageModelConfig(
    vocab_size=24,
    width=32,
    num_layers=2,
    num_heads=2,
    mlp_width=96,
    sequence_layer="attention",
    attention_window=16,
)


class Task(NamedTuple):
    """Contexts of a task.

    Attributes:
      draw: a batch of ids and weights.
      parts: what is reported, by name: places of predictions.
    """

    draw: Callable[[np.random.Generator, int], Batch]
    parts: dict[str, np.ndarray]


def languages() -> Task:
    """Two languages of the same 16 symbols, each with its own likely successors and its tag."""
    learn, test, symbols, sure, every = 192, 48, 16, 0.9, 8

    def text(random, following, count, tag):
        made = [random.integers(symbols)]
        while len(made) < count:
            likely = random.random() < sure
            made.append(following[made[-1]] if likely else random.integers(symbols))
        made[::every] = [tag] * (count // every)  # so that attention always sees which it is
        return np.array(made)

    def context(random):
        tables = [random.permutation(symbols) for _ in range(2)]
        plan = [(0, learn), (1, learn), (0, test), (1, test)]
        return np.concatenate([text(random, tables[i], count, symbols + i) for i, count in plan])

    def foretold(start, count):
        """Predictions of a stretch: place i is of token i + 1; not of tags nor right after them."""
        tokens = np.arange(start, start + count)
        return tokens[tokens % every > 1] - 1

    def draw(random, batch):
        ids = np.stack([context(random) for _ in range(batch)]).astype(np.int32)
        return Batch(ids, np.ones((batch, ids.shape[1] - 1), np.float32))

    parts = {
        "first language, when just learnt": foretold(learn - test, test),
        "first, after the second": foretold(2 * learn, test),
        "second, when just learnt": foretold(2 * learn - test, test),
        "second, after that": foretold(2 * learn + test, test),
    }
    return Task(draw, parts)


def classes() -> Task:
    """Examples of four symbols and a label; two new classes in each of four phases."""
    phases, each, symbols, noise, size = 4, 16, 16, 0.1, 5
    count, tested = 2 * phases, 32

    def context(random):
        patterns = random.integers(symbols, size=(count, size - 1))
        labels = symbols + random.permutation(count)
        shown = [2 * phase + random.permutation(np.arange(each) % 2) for phase in range(phases)]
        # The phases take turns in the test, so that none is repeated within attention's reach.
        turns = np.arange(tested) % phases
        shown += [2 * turns + random.integers(2, size=tested)]
        shown = np.concatenate(shown)
        examples = patterns[shown]
        wrong = random.random(examples.shape) < noise
        examples = np.where(wrong, random.integers(symbols, size=examples.shape), examples)
        return np.concatenate([examples, labels[shown, None]], axis=1).reshape(-1)

    def draw(random, batch):
        ids = np.stack([context(random) for _ in range(batch)]).astype(np.int32)
        weights = np.zeros((batch, ids.shape[1] - 1), np.float32)
        weights[:, size - 2 :: size] = 1
        return Batch(ids, weights)

    start = phases * each
    parts = {
        f"classes of phase {phase + 1}": (
            size * (start + np.arange(phase, tested, phases)) + size - 2
        )
        for phase in range(phases)
    }
    return Task(draw, parts)


def variants() -> dict[str, LanguageModelConfig]:
    def made(*chunks: int) -> LanguageModelConfig:
        return dataclasses.replace(
            PLAIN,
            cms_levels=len(chunks),
            mlp_width=PLAIN.mlp_width // len(chunks),
            in_context={"chunks": chunks, "step_size": 1.0, "blocks": 1},
        )

    ladder = [tuple(FASTEST * 4**level for level in range(count)) for count in range(1, 5)]
    lowest = [(FASTEST, FASTEST * 4**power) for power in (0, 2, 3)]
    named = {"plain": PLAIN}
    for chunks in ladder + lowest:
        named[" ".join(map(str, chunks))] = made(*chunks)
    return named


def batches(task: Task, seed: int, batch: int = 16) -> Iterator[Batch]:
    random = np.random.default_rng(seed)
    while True:
        yield task.draw(random, batch)


def measure(model, params, task: Task, count: int = 16) -> dict[str, float]:
    """Share of right predictions in each part."""
    best = jax.jit(lambda ids: model.apply({"params": params}, ids)[0].argmax(-1))
    source, right = batches(task, seed=1000), []
    for _ in range(count):
        ids = next(source).ids
        right.append(np.asarray(best(ids[:, :-1])) == ids[:, 1:])
    right = np.concatenate(right)
    return {name: float(right[:, places].mean()) for name, places in task.parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="variants")
    parser.add_argument("--draft", action="store_true", help="write nothing")
    given = parser.parse_args()
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for title, task in {"languages": languages(), "classes": classes()}.items():
        results[title] = {}
        for name, config in variants().items():
            if given.only and name not in given.only:
                continue
            results[title][name] = []
            for seed in range(given.seeds):
                source = batches(task, seed)
                model, params = fit(config, source, given.steps, seed, learning_rate=5e-3)
                results[title][name].append(measure(model, params, task))
                print(title, name, seed, results[title][name][-1], flush=True)
    if not given.draft:
        write(results)


def write(results) -> None:
    folder = Path(__file__).parent
    lines = [
        "Share of right predictions in per cent, mean of three seeds (smallest to largest).",
        "Models are named by the chunk sizes of their levels, in tokens.",
        "Command: `python experiments/cms/sequential.py`",
    ]
    figure, grid = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    ladder = [name for name in variants() if name != "plain"][:4]
    lowest = [f"{FASTEST} {FASTEST * 4**power}" for power in range(4)]
    for row, (title, rows) in zip(grid, results.items(), strict=True):
        parts = list(next(iter(rows.values()))[0])
        lines += ["", f"| {title} | " + " | ".join(parts) + " |", "|---|" + "---|" * len(parts)]
        for name, seeds in rows.items():
            cells = []
            for part in parts:
                values = [100 * seed[part] for seed in seeds]
                cells.append(f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        for axes, names, label in (
            (row[0], ladder, "levels"),
            (row[1], lowest, "largest chunk of two levels (tokens)"),
        ):
            shown = (
                [str(i) for i in (1, 2, 3, 4)]
                if names is ladder
                else [name.split()[-1] for name in names]
            )
            for index, part in enumerate(parts):
                colour = f"C{index}"
                values = np.array([[100 * seed[part] for seed in rows[name]] for name in names])
                axes.plot(shown, values.mean(1), marker="o", color=colour, label=part)
                axes.fill_between(shown, values.min(1), values.max(1), color=colour, alpha=0.15)
                plain = np.mean([100 * seed[part] for seed in rows["plain"]])
                axes.axhline(plain, color=colour, linestyle=":")
            axes.set(title=f"{title} (dotted: plain)", xlabel=label, ylabel="right (%)")
        row[0].legend(fontsize=7)
    figure.savefig(folder / "sequential.png", dpi=120)
    (folder / "sequential.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
