"""A small model that learns to be shown labelled texts, of classes that it will not meet again.

python experiments/continual/pretrain.py --workdir=runs/continual/attention
python experiments/continual/pretrain.py --workdir=runs/continual/levels --levels
"""

import argparse
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.data.tokenizers import Tokenizer, load_tokenizer
from hope_jax.evaluation.streams import documents
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.training.config import default_config
from hope_jax.training.optimizer import make_optimizer
from hope_jax.training.sharding import make_mesh
from hope_jax.training.step import init_state, make_train_step

PHASES = ((160, 32), (320, 16), (576, 8))


def batches(
    tokenizer: Tokenizer, length: int, size: int, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    number = 0
    mark, end = (int(tokenizer.encode(text)[0]) for text in ("Label:", "\n"))
    while True:
        tokens = np.zeros((size, length + 1), np.int32)
        for row, text in enumerate(
            documents(groups=4, classes=2, shots=4, count=size, seed=seed + number)
        ):
            tokens[row] = np.pad(tokenizer.encode(text), (0, length + 1))[: length + 1]
        number += 1
        weights = np.full((size, length), 0.1, np.float32)
        old = np.zeros((size, length), np.float32)
        for row in range(size):
            known = set()
            for place in np.flatnonzero(tokens[row, :-3] == mark):
                weights[row, place : place + 3] = 1
                label = tuple(tokens[row, place + 1 : place + 3])
                old[row, place] = label in known
                known.add(label)
        yield {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights, "old": old}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, nargs=3, default=(600, 300, 300))
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--name", default="m3")
    given = parser.parse_args()
    tokenizer = load_tokenizer("runs/continual/words.json")
    config = default_config(
        vocab_size=428,
        width=given.width,
        num_layers=given.layers,
        num_heads=4,
        mlp_width=2 * given.width,
        sequence_layer="attention",
        attention_window=1024,
    )
    config.steps = sum(given.steps)
    config.optimizer.update(name=given.name, learning_rate=given.rate, warmup_steps=50)
    model = LanguageModel(LanguageModelConfig.from_config_dict(config.model))
    mesh = make_mesh()
    optimizer = make_optimizer(config.optimizer, config.steps)
    step = make_train_step(model, optimizer, mesh)
    state = init_state(model, optimizer, mesh, 0)
    best = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens)[0].argmax(-1))
    begun, done = time.monotonic(), 0
    for (length, size), steps in zip(PHASES, given.steps):
        source = batches(tokenizer, length, size, 1000 + length * 100)
        losses = []
        test = next(batches(tokenizer, length, 32, 7))
        for index in range(steps):
            batch = next(source)
            batch.pop("old")
            state, metrics = step(state, batch)
            losses.append(metrics.loss)
            done += size * length
            if (index + 1) % 50 == 0:
                right = (np.asarray(best(state.params, test["tokens"])) == test["targets"])[
                    test["old"] > 0
                ].mean()
                print(
                    length,
                    index + 1,
                    f"loss {np.mean(jax.device_get(losses)):.3f} right {right:.3f} {done / 1e6:.2f}M tokens {time.monotonic() - begun:.0f} s",
                    flush=True,
                )
                losses = []


if __name__ == "__main__":
    main()
