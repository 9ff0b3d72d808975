"""What a pre-trained model knows of a text that it has read, before it sleeps on it and afterwards.

    python experiments/smollm2.py runs/smollm2 --package=runs/package    # see there
    hope convert --from_llama=runs/smollm2 --workdir=runs/real \\
        --config=experiments/retrofit/continued.py
    python experiments/sleep/real_model.py --run=runs/real --rows=runs/real_model.jsonl --seeds 0 1 2

SmolLM2-135M, whose upper eight MLPs learn every 64 tokens and whose attention sees 256, reads four
invented passages (passages.py), sleeps, and is asked sixteen questions of four answers each. Each seed,
of passages and night alike, is a line of --rows with what is measured before anything is read, with the
text read, and after the night with nothing of it in context: the share of questions whose right answer
is likelier than each wrong one, and the right answers' log-likelihood; and the loss of a page of
Python's reference, which has nothing to do with the passages. What is there is not run again. The
night's settings can be set: --set steps=30 lam=0.5.
"""

import argparse
import dataclasses
import pydoc_data.topics
import resource
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from passages import Question, make_passages

from hope_jax.commands.config import change_settings
from hope_jax.commands.night_inputs import windows
from hope_jax.commands.trained_model import load_model
from hope_jax.data.json_lines import add_json_line, read_json_lines
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.evaluation.choices import log_likelihoods, share_won
from hope_jax.inference.sampling import read
from hope_jax.models import LanguageModel
from hope_jax.models.language_model import ModelState, init_state
from hope_jax.models.parameter_count import parameter_shapes
from hope_jax.settings import as_values, read_settings
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.cycle import sleep

LEVELS: dict[str, Any] = {"blocks": 8, "chunks": (64,), "step_size": 0.1, "largest_change": 3e-4}
# Adam's rate: at 1e-3 nothing was won in 20 steps.
RATE = 1e-2
NIGHT: dict[str, Any] = {
    "steps": 60,
    "samples": 8,
    "kept_samples": 128,
    "tokens": 24,
    "lam": 0.0,
    "a": 1.0,
}
OPENING = 12  # tokens of the text with which each sample begins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", required=True, help="folder of the converted model")
    parser.add_argument("--rows", type=Path, required=True, help="file that lines are added to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rate", type=float, default=RATE, help="of Adam")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the night")
    given = parser.parse_args()
    changed = change_settings(SleepConfig, ConfigDict(as_values(SleepConfig(**NIGHT))), given.set)
    settings = read_settings(SleepConfig, changed)
    model, params, tokenizer = load_model(given.run)
    model = LanguageModel(dataclasses.replace(model.config, in_context=LEVELS))
    params = with_steps(model, params)
    optimizer = optax.adam(given.rate)
    for seed in given.seeds:
        key = {"seed": seed, "rate": given.rate, "night": dataclasses.asdict(settings)}
        there = (row for _, row in read_json_lines(given.rows) if isinstance(row, dict))
        if any(all(row.get(name) == key[name] for name in key) for row in there):
            continue
        row = key | night_of(model, params, tokenizer, settings, optimizer, seed)
        add_json_line(given.rows, row)
        print(row, flush=True)


def with_steps(model: LanguageModel, params: Any) -> Any:
    """The parameters, with step sizes as the config of the levels has them."""
    shapes = parameter_shapes(model)
    missing = {name: shape for name, shape in shapes.items() if name not in params}
    return params | jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), missing)


def night_of(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    settings: SleepConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
) -> dict[str, Any]:
    """Reads, sleeps and asks."""
    text, questions = make_passages(seed)
    unrelated = pydoc_data.topics.topics["formatstrings"]
    texts = jnp.asarray(windows(np.asarray(tokenizer.encode(unrelated)), most=8))
    ids = np.asarray(tokenizer.encode(text), np.int32)
    # A chunk that is left open would be learned from again in every sample.
    blank = np.asarray(tokenizer.encode("\n"), np.int32)
    ids = np.concatenate([np.resize(blank, -len(ids) % LEVELS["chunks"][0]), ids])
    prompts = np.lib.stride_tricks.sliding_window_view(ids, OPENING)
    context = read(model, params, ids[None])
    asked = {
        "before": init_state(model, params, 1),
        "read": context.state,
    }
    begun, busy = time.monotonic(), cpu_seconds()
    losses: list[float] = []
    key = jax.random.split(jax.random.key(seed), 1)
    woken, night = sleep(
        model,
        params,
        context,
        key,
        settings,
        optimizer,
        prompts=prompts,
        texts=texts,
        on_step=lambda so_far: losses.append(float(so_far.steps.divergence[-1, 0])),
    )
    row: dict[str, Any] = {
        "tokens": len(ids),
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_seconds": round(cpu_seconds() - busy, 1),
        "kept": night.kept,
        "divergence": [round(float(x[0]), 4) for x in (night.before, night.after)],
        "unrelated": [
            round(float(x[0]), 4)
            for x in (night.held_out_before, night.held_out_after)
            if x is not None
        ],
        "steps": [round(loss, 3) for loss in losses],
    }
    for name, state in {**asked, "slept": woken}.items():
        row[name] = ask(model, params, tokenizer, state, questions)
    return row


def ask(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    state: ModelState,
    questions: list[Question],
) -> dict[str, float]:
    """Share of questions won, and mean log-likelihood of the right answers."""
    prompts = [f"\n\n{question.prompt}" for question in questions]
    answers = [question.answers for question in questions]
    found = log_likelihoods(model, params, tokenizer, prompts, answers, state, batch_size=16)
    return {
        "won": round(share_won(found), 4),
        "log_likelihood": round(float(found[:, 0].mean()), 3),
    }


def cpu_seconds() -> float:
    """Of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
