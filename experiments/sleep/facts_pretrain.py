"""A small model that learns to be told facts and asked for them, in worlds that it will not meet again.

    python experiments/sleep/words.py runs/facts/words.json
    python experiments/sleep/facts_pretrain.py --workdir=runs/facts/model
"""

import argparse
import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from words import USED

from hope_jax.commands.first_checkpoint import check_no_run, write_first_checkpoint
from hope_jax.data.tokenizers import Tokenizer, load_tokenizer
from hope_jax.evaluation.world import KINDS, PHRASINGS, Fact, ask, make_world, tell
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.training.config import default_config, whole_config
from hope_jax.training.optimizer import make_optimizer
from hope_jax.training.sharding import make_mesh
from hope_jax.training.step import init_state, make_train_step

TOKENIZER = "runs/facts/words.json"
TRAINED, FIRST_NEW = 10_000, 10_200  # worlds below are trained on; those from there on never looked at
CHUNK = 32  # tokens after which the levels learn
LEVELS = {"chunks": (CHUNK,), "blocks": 2}
LENGTH, SIZE = 192, 16  # tokens of a sequence, and sequences of a step
ELSE = 0.2  # how much tokens count that are no answer
UNTOLD = 0.15  # of documents begin with what nobody can know
RETOLD = 0.3  # of lines after the first telling


def facts_of(number: int, people: int, kinds: int, seed: int = 0) -> tuple[Fact, ...]:
    """The facts of a world, in a random order."""
    random = np.random.default_rng([seed, number, 2])
    some = [USED[place] for place in random.permutation(len(USED))[:kinds]]
    (facts,) = make_world(number, seed=seed, people=people, kinds=some)
    return facts


def told(facts: tuple[Fact, ...], random: np.random.Generator) -> str:
    """Facts, a line each."""
    return "".join(f"{tell(fact, int(random.integers(PHRASINGS)))}\n" for fact in facts)


def document(world: int, lines: int, seed: int = 0) -> tuple[str, list[str]]:
    """A world's facts, and lines that ask for them or tell them again.

    Returns:
      What is told first, which is nothing in some documents; and the lines.
    """
    random = np.random.default_rng([world, seed, 3])
    facts = facts_of(world, int(random.integers(2, 6)), int(random.integers(2, 5)))
    first = "" if random.random() < UNTOLD else told(facts, random)
    after = []
    for _ in range(lines):
        fact = facts[int(random.integers(len(facts)))]
        if random.random() < RETOLD:
            after.append(told((fact,), random))
        else:
            (question,) = ask([fact], random, 0)
            after.append(f"{question.prompt}{question.answer}\n")
    return first, after


def whole_chunks(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Ids of a text, with as many blank lines before it as make its chunks whole."""
    ids = np.asarray(tokenizer.encode(text), np.int32)
    blank = np.asarray(tokenizer.encode("\n"), np.int32)
    return np.concatenate([np.resize(blank, -len(ids) % CHUNK), ids])


def batches(
    tokenizer: Tokenizer, first: int, worlds: int, size: int = SIZE, length: int = LENGTH
) -> Iterator[dict[str, np.ndarray]]:
    """Of tokens, targets and weights; `answers` is 1 where the value follows of a fact told before."""
    values = np.zeros(tokenizer.vocab_size, bool)
    values[[tokenizer.encode(f" {value}")[0] for kind in USED for value in KINDS[kind].values]] = True
    for number in itertools.count(0, size):
        tokens = np.zeros((size, length + 1), np.int32)
        weights = np.full((size, length), ELSE, np.float32)
        answers = np.zeros_like(weights)
        for row, place in enumerate(range(number, number + size)):
            start, lines = document(first + place % worlds, length // 6, place // worlds)
            before = whole_chunks(tokenizer, start)
            begun = len(before)
            ids = np.concatenate([before, tokenizer.encode("".join(lines))])[: length + 1]
            tokens[row, : len(ids)] = ids
            if begun:
                answers[row, begun:] = values[tokens[row, begun + 1 :]]
        yield {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "weights": np.maximum(weights, answers),
            "answers": answers,
        }


def make_config(steps: int, rate: float, **changes) -> ConfigDict:
    """Of the run."""
    sizes = dict(vocab_size=194, width=64, num_layers=3, num_heads=4, mlp_width=128) | changes
    config = default_config(**sizes, sequence_layer="convolved_attention.ConvolvedAttention")
    config.steps = steps
    config.data.tokenizer = TOKENIZER
    config.optimizer.update(name="m3", learning_rate=rate, warmup_steps=50)
    return whole_config(config)


def train(
    config: ConfigDict, params: Any = None, every: int = 50, worlds_seen: int = 0
) -> Any:
    """Trains a model.

    Args:
      config: of the run.
      params: to begin with; None for new ones.
      every: steps, after which it says how many answers are right.

    Returns:
      Parameters.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    model = LanguageModel(LanguageModelConfig.from_config_dict(config.model))
    mesh, optimizer = make_mesh(), make_optimizer(config.optimizer, config.steps)
    state = init_state(model, optimizer, mesh, config.seed)
    if params is not None:
        state = state._replace(params=jax.tree.map(jnp.asarray, state.params | params))
    begun = time.monotonic()
    source = batches(tokenizer, 0, TRAINED)
    test = next(batches(tokenizer, TRAINED, 64, 64))
    step = make_train_step(model, optimizer, mesh)
    likeliest = jax.jit(lambda params, ids: model.apply({"params": params}, ids)[0].argmax(-1))
    losses = []
    for index in range(1, config.steps + 1):
        batch = next(source)
        del batch["answers"]
        state, metrics = step(state, batch)
        losses.append(metrics.loss)
        if index % every == 0:
            right = np.asarray(likeliest(state.params, test["tokens"])) == test["targets"]
            print(
                f"step {index}: loss {np.mean(jax.device_get(losses)):.3f}, answers "
                f"{right[test['answers'] > 0].mean():.1%} right, {time.monotonic() - begun:.0f} s",
                flush=True,
            )
            losses = []
    return state.params
