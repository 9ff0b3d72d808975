"""A small model that learns to be told facts and asked for them, in worlds that it will not meet again.

    python experiments/sleep/words.py runs/facts/words.json
    python experiments/sleep/facts_pretrain.py --workdir=runs/facts/model

0.14M parameters, three layers of attention behind a convolution (convolved_attention.py). Each sequence
tells the facts of a world, which a blank line ends, and then asks for them or tells them again, each time
in one of three phrasings. Nearly half of them do so twice, so that who has a text in front can tell when
another begins; a tenth talk of what nobody has told. Worlds from `FIRST_NEW` on are never seen.

Most steps go without levels. Then the MLPs of the last two blocks learn after each 32 tokens. Of values
told before, the likeliest token was right for 61% after 800 steps, 95% after 1,300 and 97% after 2,000;
and for 96% after 200 steps more with levels: a quarter of an hour of one core.

    python experiments/sleep/facts_pretrain.py --workdir=runs/facts/two --levels=2 \\
        --start=runs/facts/model --steps=0

goes on from that model with further, slower levels behind its own, of which each learns half as often as
the one before and says nothing when its training begins.
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from words import USED, knows_friends

from hope_jax.commands.first_checkpoint import check_no_run, write_first_checkpoint
from hope_jax.commands.trained_model import load_model
from hope_jax.data.tokenizers import Tokenizer, load_tokenizer
from hope_jax.evaluation.world import (
    KINDS,
    PHRASINGS,
    Fact,
    Question,
    ask,
    ask_joined,
    make_world,
    tell,
)
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.training.config import default_config, whole_config
from hope_jax.training.optimizer import make_optimizer
from hope_jax.training.sharding import make_mesh
from hope_jax.training.step import init_state, make_train_step

TOKENIZERS = ("runs/facts/words.json", "runs/facts/friends.json")  # without friends, and with them
# Worlds below the first are trained on, those from the second on never looked at.
TRAINED, FIRST_NEW = 10_000, 10_200
CHUNK = 32  # tokens after which the levels learn
LEVELS = {"chunks": (CHUNK,), "blocks": 2, "gradient_steps": 0}
RATES = (0.02, 0.01)  # of M3, without levels and with them
LENGTH, SIZE = 224, 16  # tokens of a sequence, and sequences of a step
TOLD = 0.1  # how much tokens count while facts are told, beside those that are said of them
BEGINS = (0.1, 0.45, 0.45)  # shares of documents that tell facts so many times
RETOLD = 0.3  # of lines afterwards
JOINED = 0.5  # of lines, where there are friends, that ask for what joins two facts
ALOUD = 0.5  # of those, that tell both before


def days_of(
    number: int, people: int, kinds: int, friends: bool = False, days: int = 1, seed: int = 0
) -> tuple[tuple[Fact, ...], ...]:
    """The facts of a world for each day, in a random order; who their friends are is one of the kinds."""
    random = np.random.default_rng([seed, number, 2])
    some = [USED[place] for place in random.permutation(len(USED))[: kinds - friends]]
    some += ["friend"] * friends
    return make_world(number, seed=seed, days=days, people=people, kinds=some)


def facts_of(
    number: int, people: int, kinds: int, friends: bool = False, seed: int = 0
) -> tuple[Fact, ...]:
    """The facts of a world of one day."""
    (facts,) = days_of(number, people, kinds, friends, seed=seed)
    return facts


def told(facts: Sequence[Fact], random: np.random.Generator) -> str:
    """Facts, a line each, and a blank line that says that all are told."""
    lines = [tell(fact, int(random.integers(PHRASINGS))) for fact in facts]
    return "".join(f"{line}\n" for line in lines) + "\n"


def joined_of(
    links: Sequence[Fact], facts: Sequence[Fact], random: np.random.Generator, wrong: int = 3
) -> list[Question]:
    """Questions for what is true of a friend, but for the friend's own friend."""
    return ask_joined(links, [fact for fact in facts if fact.kind in USED], random, wrong)


def talk(facts: Sequence[Fact], lines: int, random: np.random.Generator) -> str:
    """Lines that ask for facts, with answers, or tell them again.

    Where there are friends, some ask for what is true of them, and of these some tell both facts before.
    """
    said, friends = "", any(fact.kind == "friend" for fact in facts)
    for _ in range(lines):
        if friends and random.random() < JOINED:
            some = joined_of(facts, facts, random, 0)
            question = some[int(random.integers(len(some)))]
            if random.random() < ALOUD:
                for fact in question.facts:
                    said += f"{tell(fact, int(random.integers(PHRASINGS)))}\n"
            said += f"{question.prompt}{question.answer}\n"
            continue
        fact = facts[int(random.integers(len(facts)))]
        if random.random() < RETOLD:
            said += f"{tell(fact, int(random.integers(PHRASINGS)))}\n"
        else:
            (question,) = ask([fact], random, 0)
            said += f"{question.prompt}{question.answer}\n"
    return said


def whole_chunks(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Ids of a text, with as many blank lines before it as make its chunks whole."""
    ids = np.asarray(tokenizer.encode(text), np.int32)
    blank = np.asarray(tokenizer.encode("\n"), np.int32)
    return np.concatenate([np.resize(blank, -len(ids) % CHUNK), ids])


def document(
    tokenizer: Tokenizer, world: int, length: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A text that tells facts and then talks of them; some tell nothing before, and some begin twice.

    Returns:
      So many ids, and which of them are said of what has been told.
    """
    random = np.random.default_rng([world, seed, 3])
    begins = int(random.choice(len(BEGINS), p=BEGINS))
    ids, known, friends = [], [], knows_friends(tokenizer)
    for part in range(max(begins, 1)):
        most = (5, 4) if begins < 2 else (3, 3)
        people, kinds = (int(random.integers(2, one + 1)) for one in most)
        number = (world + part * TRAINED // 2) % TRAINED if part else world
        facts = facts_of(number, people, kinds, friends)
        before = whole_chunks(tokenizer, told(facts, random))
        if part:
            blank = np.asarray(tokenizer.encode("\n"), np.int32)
            bare = tokenizer.encode(told(facts, random))
            before = np.concatenate([np.repeat(blank, int(random.integers(1, 9))), bare])
        lines = int(random.integers(1, 6)) if part + 1 < begins else length // 6
        after = tokenizer.encode(talk(facts, lines, random))
        if begins:
            ids.append(before)
            known.append(np.zeros(len(before), bool))
        ids.append(after)
        known.append(np.full(len(after), begins > 0))
    return np.concatenate(ids)[:length].astype(np.int32), np.concatenate(known)[:length]


def batches(
    tokenizer: Tokenizer, first: int, worlds: int, size: int = SIZE, length: int = LENGTH
) -> Iterator[dict[str, np.ndarray]]:
    """Of tokens, targets and weights; `answers` is 1 where the value follows of a fact told before."""
    values = np.zeros(tokenizer.vocab_size, bool)
    values[[tokenizer.encode(f" {value}")[0] for kind in USED for value in KINDS[kind].values]] = (
        True
    )
    for number in itertools.count(0, size):
        made = [
            document(tokenizer, first + place % worlds, length + 1, place // worlds)
            for place in range(number, number + size)
        ]
        tokens, known = (np.stack(part) for part in zip(*made, strict=True))
        tokens, targets, known = tokens[:, :-1], tokens[:, 1:], known[:, 1:]
        answers = values[targets] & known
        weights = np.where(known, 1, TOLD).astype(np.float32)
        yield {"tokens": tokens, "targets": targets, "weights": weights, "answers": answers}


def make_config(
    steps: int,
    rate: float,
    in_context: dict[str, Any] | None = None,
    tokenizer: str = TOKENIZERS[0],
    **changes: Any,
) -> ConfigDict:
    """Of a part of the training; `changes` are of the model."""
    words = load_tokenizer(tokenizer).vocab_size
    sizes = dict(vocab_size=words, width=64, num_layers=3, num_heads=4, mlp_width=128)
    layer = "convolved_attention.ConvolvedAttention"
    config = default_config(sequence_layer=layer, in_context=in_context, **sizes | changes)
    config.steps = steps
    config.data.tokenizer = tokenizer
    config.optimizer.update(name="m3", learning_rate=rate, warmup_steps=50)
    return whole_config(config)


def deepened(new: Any, given: Any, name: str = "") -> Any:
    """New parameters with what is given in their place; levels that are not given say nothing."""
    if isinstance(new, Mapping):
        held = given if isinstance(given, Mapping) else {}
        return {key: deepened(new[key], held.get(key), f"{name}/{key}") for key in new}
    if given is None:
        return jnp.zeros_like(new) if "/level_" in name and "/down/" in name else new
    # Of steps, and of words, there are more; all else that is given is whole.
    return new.at[tuple(map(slice, given.shape))].set(given)


def train(
    config: ConfigDict,
    source: Iterator[dict[str, np.ndarray]],
    test: dict[str, np.ndarray],
    params: Any = None,
    every: int = 50,
) -> Any:
    """Trains a model.

    Args:
      config: of the run.
      source: batches, as those of `batches`.
      test: another, of which it says how many answers are right.
      params: to begin with, as far as they go; None for new ones.
      every: steps, after which it says how many answers are right.

    Returns:
      Parameters.
    """
    model = LanguageModel(LanguageModelConfig.from_config_dict(config.model))
    mesh, optimizer = make_mesh(), make_optimizer(config.optimizer, config.steps)
    state = init_state(model, optimizer, mesh, config.seed)
    if params is not None:
        state = state._replace(params=deepened(state.params, params))
    begun = time.monotonic()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--friends", action="store_true", help="questions that join two facts, too")
    parser.add_argument("--steps", type=int, default=2000, help="without levels")
    parser.add_argument("--level_steps", type=int, default=200, help="with them, afterwards")
    parser.add_argument("--levels", type=int, default=1, help="of each block's chain")
    parser.add_argument("--start", help="run whose weights are begun with, as far as they go")
    given = parser.parse_args()
    check_no_run(given.workdir)
    name = TOKENIZERS[given.friends]
    tokenizer = load_tokenizer(name)
    test = next(batches(tokenizer, TRAINED, 64, 64))
    params = load_model(given.start)[1] if given.start else None
    if given.steps:
        config = make_config(given.steps, RATES[0], tokenizer=name)
        params = train(config, batches(tokenizer, 0, TRAINED), test, params)
    in_context = {**LEVELS, "chunks": tuple(CHUNK * 2**level for level in range(given.levels))}
    config = make_config(given.level_steps, RATES[1], in_context, name, cms_levels=given.levels)
    params = train(config, batches(tokenizer, 0, TRAINED), test, params)
    write_first_checkpoint(given.workdir, config, params)


if __name__ == "__main__":
    main()
