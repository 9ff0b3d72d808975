"""What a pre-trained model knows of a text that it has read, after a night and after other trainings.

    python experiments/smollm2.py runs/smollm2 --package=runs/package    # see there
    hope convert --from_llama=runs/smollm2 --workdir=runs/real \\
        --config=experiments/retrofit/continued.py
    python experiments/sleep/real_model.py --run=runs/real --path=experiments/sleep/real_model.jsonl

SmolLM2-135M, whose upper eight MLPs learn every 64 tokens and whose attention sees 256, reads four
invented passages (passages.py) and is asked sixteen questions of four answers each with nothing of them
in context. Rows:

* `sleep`: a night, in which the student does not speak; `with imitation`: one in which it does.
* `without expansion`: no expert; the MLPs beside it are trained on what the teacher has said.
* `without a teacher`: the expert is trained on the text.
* `fine-tuning`: the MLPs are trained on the text.

All take as many steps of as many tokens. Those of a text are all its parts of the length of a sample.
Adam's rate is each row's own, on a grid of factor about 3: the one with the highest log-likelihood of
right answers, on seeds that are not reported, of those at which the loss of an unrelated text rises by
2% at most.

A trial is a line of --path: the share of questions whose right answer is likelier than each wrong one,
and the right answers' log-likelihood; and the loss of a page of Python's reference, which has nothing
to do with the passages. What is there is not run again. --table runs nothing, and writes a table and a
picture of what is there beside --path, as is done at the end. The night's settings can be set:
--set steps=30 rank=32.
"""

import argparse
import dataclasses
import pydoc_data.topics
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict
from passages import Question, make_passages
from rivals import Training, from_teacher, from_text, train_expert, train_mlps

from hope_jax.commands.config import change_settings
from hope_jax.commands.night_inputs import windows
from hope_jax.commands.trained_model import load_model
from hope_jax.data.json_lines import add_json_line, find_json_lines
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.data.whole_file import write_whole
from hope_jax.evaluation.choices import log_likelihoods, row_losses, share_won
from hope_jax.evaluation.grid import climb
from hope_jax.inference.sampling import Context, read
from hope_jax.models import LanguageModel
from hope_jax.models.language_model import ModelState, init_state
from hope_jax.models.parameter_count import parameter_shapes
from hope_jax.settings import as_values, read_settings
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.cycle import begin_lesson, sleep
from hope_jax.sleep.samples import openings_of
from hope_jax.sleep.seeding import keep_samples

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LEVELS: dict[str, Any] = {"blocks": 8, "chunks": (64,), "step_size": 0.1, "largest_change": 3e-4}
NIGHT: dict[str, Any] = {
    "steps": 60,
    "samples": 8,
    "kept_samples": 128,
    "tokens": 24,
    "lam": 0.0,
    "a": 1.0,
}
IMITATION: dict[str, Any] = {"lam": 0.5, "a": 0.9}
OPENING = 12  # tokens of the text with which each sample begins
UNRELATED = "formatstrings"
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
UNREPORTED = 1000  # the first selection seed
MOST_LOST = 0.02  # of the loss of an unrelated text


class Row(NamedTuple):
    """How a text becomes part of the model.

    Attributes:
      first_rate: that is tried.
      expands: whether an expert is trained, or the MLPs beside it.
      taught: whether by a teacher, or on the text.
      sleeps: whether by a whole night.
      imitates: whether the student speaks in it.
    """

    first_rate: float
    expands: bool = False
    taught: bool = False
    sleeps: bool = False
    imitates: bool = False


ROWS = {
    "sleep": Row(1e-2, expands=True, taught=True, sleeps=True),
    "with imitation": Row(1e-2, expands=True, taught=True, sleeps=True, imitates=True),
    "without expansion": Row(3e-4, taught=True),
    "without a teacher": Row(1e-2, expands=True),
    "fine-tuning": Row(3e-4),
}
STILL = {"before": "nothing read", "read": "the text in context"}


class Trained(NamedTuple):
    """A model that a run has trained, whose levels learn.

    Attributes:
      model: that reads.
      params: of it.
      tokenizer: of it.
    """

    model: LanguageModel
    params: Any
    tokenizer: Tokenizer


class Trials:
    """What is measured of each row and seed, run where it is not there.

    Args:
      path: file of them.
      run: folder of the model.
      settings: of the night.
    """

    def __init__(self, path: Path, run: str, settings: SleepConfig) -> None:
        self.path, self.run = path, run
        self.settings = settings
        self.loaded: Trained | None = None

    def key(self, row: str, seed: int, rate: float) -> dict[str, Any]:
        """What tells a trial from all others."""
        night = dataclasses.asdict(self.night_of(row))
        return {"row": row, "seed": seed, "rate": rate, "night": night}

    def night_of(self, row: str) -> SleepConfig:
        """The settings of a row's night."""
        imitates = row in ROWS and ROWS[row].imitates
        return dataclasses.replace(self.settings, **IMITATION) if imitates else self.settings

    def trial(self, row: str, seed: int, rate: float = 0.0) -> dict[str, Any]:
        """One of them."""
        if (there := self.there(row, seed, rate)) is not None:
            return there
        key = self.key(row, seed, rate)
        if self.loaded is None:
            self.loaded = load(self.run)
        trial = key | run_trial(self.loaded, row, self.night_of(row), seed, rate)
        add_json_line(self.path, trial)
        print({name: trial[name] for name in trial if name != "night"}, flush=True)
        return trial

    def there(self, row: str, seed: int, rate: float) -> dict[str, Any] | None:
        """One that has been run; settings that its line does not know are at their defaults."""
        key = self.key(row, seed, rate)
        night, defaults = key.pop("night"), dataclasses.asdict(SleepConfig())
        same = (one for one in find_json_lines(self.path, key) if defaults | one["night"] == night)
        return next(same, None)

    def found(self, row: str, seeds: Sequence[int], rate: float = 0.0) -> list[dict[str, Any]]:
        """Those of some seeds, if all are there; else none."""
        there = [self.there(row, seed, rate) for seed in seeds]
        trials = [trial for trial in there if trial is not None]
        return trials if len(trials) == len(there) else []

    def chosen(self, row: str, selection: Sequence[int]) -> float:
        """The rate of a row."""

        def score_at(rate: float) -> float:
            trials = [self.trial(row, seed, rate) for seed in selection]
            before = [self.trial("before", seed) for seed in selection]
            return score(means(trials), means(before))

        return climb(RATES, ROWS[row].first_rate, score_at)[0]


def means(trials: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of what is measured, over trials."""
    names = ("won", "log_likelihood", "unrelated")
    return {name: statistics.fmean(trial[name] for trial in trials) for name in names}


def score(after: Mapping[str, float], before: Mapping[str, float]) -> float:
    """The log-likelihood of right answers; below all of these, where too much is lost, what is lost."""
    lost = after["unrelated"] / before["unrelated"] - 1
    return after["log_likelihood"] if lost <= MOST_LOST else -1000 - lost


def load(run: str) -> Trained:
    """The model with levels, their step sizes as the settings have them."""
    model, params, tokenizer = load_model(run)
    model = LanguageModel(dataclasses.replace(model.config, in_context=LEVELS))
    params = nn.unbox(params)
    shapes = parameter_shapes(model)
    missing = {name: shape for name, shape in shapes.items() if name not in params}
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), nn.unbox(missing))
    return Trained(model, params | zeros, tokenizer)


def run_trial(
    trained: Trained, row: str, settings: SleepConfig, seed: int, rate: float
) -> dict[str, Any]:
    """Reads, learns as the row does, and asks."""
    model, params, tokenizer = trained
    text, questions = make_passages(seed)
    ids = np.asarray(tokenizer.encode(text), np.int32)
    begun, busy = time.monotonic(), time.process_time()
    state, found = init_state(model, params, 1), {}
    if row == "read" or row in ROWS and ROWS[row].taught:
        context = read(model, params, ids[None])
        state = context.state
    if row in ROWS:
        how = ROWS[row]
        prompts = np.lib.stride_tricks.sliding_window_view(ids, OPENING)
        optimizer = optax.adam(rate)
        key = jax.random.split(jax.random.key(seed), 1)
        if how.sleeps:
            state, night = sleep(model, params, context, key, settings, optimizer, prompts=prompts)
            found = {
                "kept": night.kept,
                "divergence": [round(float(x[0]), 4) for x in (night.before, night.after)],
            }
        else:
            context = context if how.taught else Context(state, jnp.zeros((1, 1)))
            openings = openings_of(prompts)
            lesson = begin_lesson(model, params, context, key, settings, openings)
            training = Training(optimizer, settings.steps, settings.samples)
            if how.taught:
                lesson = keep_samples(model, params, lesson, settings)
                sequences = from_teacher(lesson)
            else:
                sequences = from_text(ids, OPENING + settings.tokens, seed)
            train = train_expert if how.expands else train_mlps
            made = train(model, params, lesson, sequences, training)
            if how.expands:
                state = made
            else:
                params = made
                state = init_state(model, params, 1)
    taken = {
        "tokens": len(ids),
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_seconds": round(time.process_time() - busy, 1),
    }
    now = Trained(model, params, tokenizer)
    return taken | found | ask(now, state, questions) | {"unrelated": unrelated_loss(now, state)}


def ask(trained: Trained, state: ModelState, questions: Sequence[Question]) -> dict[str, float]:
    """Share of questions won, and mean log-likelihood of the right answers."""
    prompts = [f"\n\n{question.prompt}" for question in questions]
    answers = [question.answers for question in questions]
    found = log_likelihoods(*trained, prompts, answers, state, batch_size=16, length=24)
    return {
        "won": round(share_won(found), 4),
        "log_likelihood": round(float(found[:, 0].mean()), 3),
    }


def unrelated_loss(trained: Trained, state: ModelState) -> float:
    """Mean loss of eight parts of 128 tokens, each read from the state."""
    model, params, tokenizer = trained
    ids = np.asarray(tokenizer.encode(pydoc_data.topics.topics[UNRELATED]))
    texts = windows(ids, length=129, most=8)
    losses = row_losses(model, params, texts[:, :-1], texts[:, 1:], state)
    return round(float(losses.mean()), 4)


def reported(trials: Trials, selection: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
    """The reported trials of each row that has all seeds, at the rate that its selection chose."""
    groups = {}
    for row in (*STILL, *ROWS):
        rate = 0.0
        if row in ROWS:
            tried, before = dict(sweep(trials, row, selection)), trials.found("before", selection)
            if not tried or not before:
                continue
            rate = max(tried, key=lambda rate: score(tried[rate], means(before)))
        if group := trials.found(row, seeds, rate):
            groups[row] = group
    return groups


def sweep(
    trials: Trials, row: str, selection: Sequence[int]
) -> Iterator[tuple[float, dict[str, float]]]:
    """Rates of a row with means over the selection seeds, of all rates that have all of them."""
    for rate in RATES:
        if found := trials.found(row, selection, rate):
            yield rate, means(found)


def table(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Means over seeds with standard errors, in Markdown."""
    lines = [
        "| row | questions won, % | log-likelihood | unrelated loss | CPU seconds | rate |",
        "|---" * 6 + "|",
    ]
    for row, group in groups.items():
        cells = []
        for name, factor, digits in (
            ("won", 100, 1),
            ("log_likelihood", 1, 2),
            ("unrelated", 1, 3),
        ):
            values = factor * np.array([trial[name] for trial in group])
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
            cells.append(f"{values.mean():.{digits}f} ± {error:.{digits}f}")
        if row in ROWS:
            seconds = statistics.fmean(trial["cpu_seconds"] for trial in group)
            cells += [f"{seconds:.0f}", f"{group[0]['rate']:g}"]
        else:
            cells += ["", ""]
        lines.append(f"| {STILL.get(row, row)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(
    trials: Trials,
    groups: Mapping[str, Sequence[Mapping[str, Any]]],
    selection: Sequence[int],
    path: Path,
) -> None:
    """Draws what is known of the text over what it costs elsewhere, a line of rates for each row."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for row in ROWS:
        tried = list(sweep(trials, row, selection))
        if not tried:
            continue
        line = [(found["unrelated"], found["log_likelihood"]) for _, found in tried]
        axes.plot(*zip(*line, strict=True), marker="o", markersize=4, label=row)
    for row in STILL:
        if row in groups:
            mean = means(groups[row])
            place = (mean["unrelated"], mean["log_likelihood"])
            axes.plot(*place, "k*")
            axes.annotate(f"  {STILL[row]}", place, fontsize=8, va="center")
    axes.set_xlabel("loss of an unrelated text, nats a token")
    axes.set_ylabel("log-likelihood of right answers, nats")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", required=True, help="folder of the converted model")
    parser.add_argument("--path", type=Path, required=True, help="file that lines are added to")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help="all, if none")
    parser.add_argument("--seeds", type=int, default=3, help="that are reported")
    parser.add_argument("--selection", type=int, default=1, help="seeds that choose rates")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the night")
    parser.add_argument("--table", action="store_true", help="run nothing")
    given = parser.parse_args()
    changed = change_settings(SleepConfig, ConfigDict(as_values(SleepConfig(**NIGHT))), given.set)
    trials = Trials(given.path, given.run, read_settings(SleepConfig, changed))
    selection = range(UNREPORTED, UNREPORTED + given.selection)
    if not given.table:
        for seed in range(given.seeds):
            for row in STILL:
                trials.trial(row, seed)
        for row in given.rows or ROWS:
            rate = trials.chosen(row, selection)
            for seed in range(given.seeds):
                trials.trial(row, seed, rate)
    groups = reported(trials, selection, range(given.seeds))
    if not groups:
        parser.error(f"{given.path} has no row with all of {given.seeds} seeds")
    made = table(groups)
    write_whole(given.path.with_suffix(".md"), made)
    draw(trials, groups, selection, given.path.with_suffix(".png"))
    print(made)


if __name__ == "__main__":
    main()
