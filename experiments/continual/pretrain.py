"""A small model that learns to be shown labelled texts, of classes that it will not meet again.

    python experiments/continual/words.py runs/continual/words.json
    python experiments/continual/pretrain.py levels --workdir=runs/continual/levels --steps=500
    python experiments/continual/pretrain.py memory --workdir=runs/continual/memory --steps=500

Kinds: `levels`, attention over 32 tokens, which is two texts, and the MLP of the last block learns after
each 16; `memory`, the same attention and delta-rule memories in turn, and nothing else that learns;
`attention`, over 1,024 tokens, which is more than a stream has.

Each sequence is one stream of classes (`hope_jax.evaluation.streams.documents`). Labels count ten times
as much as all other tokens. Short streams come first, of which attention sees two texts, then more
(`PHASES`). Writes a run that `hope evaluate` reads.
"""

import argparse
import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from hope_jax.commands.first_checkpoint import check_no_run, write_first_checkpoint
from hope_jax.data.tokenizers import Tokenizer, load_tokenizer
from hope_jax.evaluation.streams import documents
from hope_jax.layers.family import FAMILY
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.training.config import default_config, whole_config
from hope_jax.training.optimizer import make_optimizer
from hope_jax.training.sharding import make_mesh
from hope_jax.training.step import init_state, make_train_step

STREAM = dict(classes=3, shots=3)
TOKENIZER = "runs/continual/words.json"
LABEL = 3  # tokens: two syllables, and the end of the line
ELSE = 0.1  # how much other tokens count


class Phase(NamedTuple):
    """A part of the training.

    Attributes:
      groups: of each stream.
      length: tokens of a sequence.
      size: sequences of a step.
      share: of all steps.
      window: tokens that attention sees, at most the model's.
    """

    groups: int
    length: int
    size: int
    share: float
    window: int


PHASES = (
    Phase(1, 160, 32, 0.35, 32),
    Phase(1, 160, 32, 0.2, 64),
    Phase(1, 160, 32, 0.15, 160),
    Phase(4, 640, 8, 0.3, 1024),
)


def batches(tokenizer: Tokenizer, phase: Phase, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Of tokens, targets and weights; `again` is 1 where a label begins that came before."""
    mark = int(tokenizer.encode("Label:")[0])
    for number in itertools.count():
        made = documents(count=phase.size, groups=phase.groups, seed=seed + number, **STREAM)
        ids = [tokenizer.encode(text)[: phase.length + 1] for text in made]
        tokens = np.stack([np.pad(row, (0, phase.length + 1 - len(row))) for row in ids])
        weights = np.full((phase.size, phase.length), ELSE, np.float32)
        again = np.zeros_like(weights)
        for row, line in enumerate(tokens):
            known = set()
            for place in np.flatnonzero(line[:-LABEL] == mark):
                weights[row, place : place + LABEL] = 1
                label = tuple(line[place + 1 : place + LABEL])
                again[row, place] = label in known
                known.add(label)
        yield {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "weights": weights,
            "again": again,
        }


KINDS: dict[str, dict[str, Any]] = {
    "levels": {
        "num_layers": 3,
        "attention_window": 32,
        "in_context": {"chunks": (16,), "blocks": 1},
    },
    "memory": {
        "num_layers": 4,
        "attention_window": 32,
        "pattern": ("attention", "titans"),
        "titans": {**FAMILY["delta_net"], "memory_chunk": 32},
    },
    "attention": {"num_layers": 3, "attention_window": 1024},
}


def make_config(kind: str, steps: int) -> ConfigDict:
    """Of the run."""
    sizes = dict(vocab_size=432, width=64, num_heads=4, mlp_width=128)
    config = default_config(**sizes, sequence_layer="attention", **KINDS[kind])
    config.steps = steps
    config.data.tokenizer = TOKENIZER
    config.optimizer.update(name="m3", learning_rate=0.02, warmup_steps=50)
    return whole_config(config)


def train(config: ConfigDict, every: int) -> Any:
    """Parameters, all phases trained."""
    tokenizer = load_tokenizer(config.data.tokenizer)
    whole = LanguageModelConfig.from_config_dict(config.model)
    mesh, optimizer = make_mesh(), make_optimizer(config.optimizer, config.steps)
    state = init_state(LanguageModel(whole), optimizer, mesh, config.seed)
    begun = time.monotonic()
    for place, phase in enumerate(PHASES):
        window = min(phase.window, whole.attention_window)
        model = LanguageModel(dataclasses.replace(whole, attention_window=window))
        step = make_train_step(model, optimizer, mesh)
        likeliest = jax.jit(
            lambda params, ids, model=model: model.apply({"params": params}, ids)[0].argmax(-1)
        )
        source = batches(tokenizer, phase, seed=1_000_000 * (place + 1))
        test = next(batches(tokenizer, phase._replace(size=32), seed=1))
        losses = []
        for index in range(1, round(phase.share * config.steps) + 1):
            batch = next(source)
            del batch["again"]
            state, metrics = step(state, batch)
            losses.append(metrics.loss)
            if index % every == 0:
                right = np.asarray(likeliest(state.params, test["tokens"])) == test["targets"]
                print(
                    f"{phase.length} tokens, window {window}, step {index}: loss "
                    f"{np.mean(jax.device_get(losses)):.3f}, labels that came before "
                    f"{right[test['again'] > 0].mean():.1%} right, "
                    f"{time.monotonic() - begun:.0f} s",
                    flush=True,
                )
                losses = []
    return state.params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, default=500)
    given = parser.parse_args()
    check_no_run(given.workdir)
    config = make_config(given.kind, given.steps)
    write_first_checkpoint(given.workdir, config, train(config, every=50))


if __name__ == "__main__":
    main()
