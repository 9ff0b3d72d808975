r"""Two languages, one after the other: what is left of both, after nights and after other ways to learn.

    python experiments/sleep/languages_pretrain.py --workdir=runs/languages
    python experiments/sleep/two_languages.py --run=runs/languages/part3 \
        --workdir=experiments/sleep/two_languages  # with --table it runs nothing

A model that was trained on other languages (languages_pretrain.py) meets the text of a generated
language, twelve words and four phrases, and then that of another one. After each of them, and before, it
translates without the texts into both: the 28 phrases of each language that its text does not tell.

By nights, it reads the text of the first language and sleeps, reads that of the second as who it has
become, and sleeps again. Samples begin as lines of the text do, half of them with the language's name
alone. In both nights documents of the training are rehearsed; in the second one also what the reader
itself says, before it, when it is given the first language's name.

Others train all weights on pieces of one text and then of the other. All take `STEPS` steps a language.
An arm's rate is that at which right translations of both languages are likeliest at the end, of two
languages that are not reported, on a grid of which both neighbours are tried; at that rate its strength
likewise. A trial that has ended is a line of WORKDIR/trials.jsonl, so that a command that is stopped and
given again goes on.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from facts import (
    Learnt,
    Model,
    elastic_adam,
    fisher,
    other_documents,
    parser_of,
    report,
    say_after,
    sleeper,
    spread,
    tune,
    with_rate,
)
from jaxtyping import Array
from languages_pretrain import (
    ENGLISH_ADJECTIVES,
    ENGLISH_NOUNS,
    FIRST_NEW,
    PHRASES,
    TRAINED,
    batches,
    document,
    lesson_of,
    line,
    lines_of,
    with_order,
)

from hope_jax.commands.trained_model import load_model
from hope_jax.data.json_lines import add_json_line, find_json_lines
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.evaluation.choices import log_likelihoods, row_losses
from hope_jax.evaluation.chrf import chrf
from hope_jax.evaluation.forgetting import forgetting
from hope_jax.evaluation.grid import climb
from hope_jax.evaluation.languages import make_languages
from hope_jax.inference.sampling import Context, read
from hope_jax.models import LanguageModel
from hope_jax.models.language_model import ModelState, init_state
from hope_jax.optim import consolidate
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.cycle import sleep
from hope_jax.sleep.expansion import make_room
from hope_jax.sleep.samples import in_rows
from hope_jax.sleep.student import forget_context

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LANGUAGES = 2
STEPS = 120
DOCUMENTS, PART = 256, 96  # other documents, and tokens of each
SAID = 64  # sequences of an earlier language that a reader says
LINE = 10  # tokens of one that translates a phrase
PIECE = 60  # tokens of a text that are tuned on at a time
SELECTION, SEEDS = 1000, (0, 1, 2)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # of Adam
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
NIGHT: dict[str, Any] = {
    "steps": STEPS,
    "samples": 16,
    "kept_samples": 512,
    "tokens": 12,
    "lam": 0.0,
    "a": 1.0,
    "experts": LANGUAGES,
    "expert_width": 256,
    "rehearsal": 10.0,
}


class Subject(NamedTuple):
    """A language that is read about and asked for.

    Attributes:
      name: of the language, as tokens.
      ids: of its text, whole chunks.
      lines: of the text.
      questions: phrases that it does not tell, up to where their translations begin; and these.
    """

    name: np.ndarray
    ids: np.ndarray
    lines: list[str]
    questions: list[tuple[str, str]]


def subjects_of(tokenizer: Tokenizer, seed: int) -> list[Subject]:
    """Two languages for which nothing was trained."""
    random = np.random.default_rng([FIRST_NEW + seed, 8])
    made = []
    for language in make_languages(random, LANGUAGES):
        language = with_order(language, last=True)
        counts = len(ENGLISH_NOUNS), len(ENGLISH_ADJECTIVES), PHRASES
        lesson = lesson_of(language, random, *counts)
        lines, name = lines_of(lesson), tokenizer.encode(language.name)
        ids = tokenizer.encode("".join(lines))
        new = [pair for pair in lesson.phrases if pair not in lesson.told]
        questions = [line(language, pair) for pair in new]
        made.append(Subject(name, ids, lines, questions))
    return made


def openings_from(tokenizer: Tokenizer, subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """How lines of a text begin, cut behind the name or later, and as often the name alone.

    Returns:
      Rows, filled up at their ends, and how much of each counts.
    """
    lines, least = [tokenizer.encode(one) for one in subject.lines], len(subject.name)
    begun = [ids[:size] for ids in lines for size in range(least, len(ids))]
    begun += [subject.name] * len(begun)
    return in_rows(begun)


# What is asked, and what is found.


def with_room(model: LanguageModel, params: Any, state: ModelState | None) -> Context:
    """A reader who is asked or sleeps; None for one who has read nothing."""
    state = init_state(model, params, 1) if state is None else state
    state = make_room(model, state, NIGHT["experts"], NIGHT["expert_width"])
    return Context(state, jnp.zeros((1, model.config.vocab_size)))


def answers_of(reader: Model, learnt: Learnt, prompts: Sequence[str]) -> list[str]:
    """What is said at its likeliest, up to the end of the line, with levels held as they are."""
    model, tokenizer = reader.model, reader.tokenizer
    rows = [tokenizer.encode(prompt) for prompt in prompts]
    given = np.stack([np.pad(row, (0, LINE - len(row))) for row in rows])
    lengths = np.array([len(row) for row in rows])
    context = with_room(model, learnt.params, learnt.state)
    said = say_after(model, learnt.params, context, given, lengths, jax.random.key(0), 0.0)
    texts = [
        tokenizer.decode(ids[size:]) for ids, size in zip(np.asarray(said), lengths, strict=True)
    ]
    return [text.split("\n")[0] + "\n" for text in texts]


def measured(reader: Model, learnt: Learnt, subject: Subject) -> dict[str, float]:
    """How well a language is translated."""
    prompts, answers = zip(*subject.questions, strict=True)
    said = answers_of(reader, learnt, prompts)
    pairs = list(zip(said, answers, strict=True))
    likely = log_likelihoods(
        reader.model,
        learnt.params,
        reader.tokenizer,
        prompts,
        [(answer,) for answer in answers],
        learnt.state,
        batch_size=len(prompts),
        length=LINE,
    )
    return {
        "exact": round(statistics.fmean(mine == answer for mine, answer in pairs), 4),
        "chrf": round(statistics.fmean(chrf(*pair) for pair in pairs), 4),
        "log_likelihood": round(float(likely.mean()), 3),
    }


def held_out(reader: Model, learnt: Learnt) -> float:
    """Mean loss of documents of other languages."""
    batch = next(batches(reader.tokenizer, TRAINED, FIRST_NEW - TRAINED, 48, 160))
    state = learnt.state or init_state(reader.model, learnt.params, 1)
    losses = row_losses(reader.model, learnt.params, batch["tokens"], batch["targets"], state)
    return float(np.asarray(losses).mean())


# Ways to learn: each tells who is asked about which language after each text.


Stages = Iterator[Sequence[Learnt]]


def read_in_turn(reader: Model, subjects: Sequence[Subject], **_: Any) -> Stages:
    """Both texts in one context."""
    context = None
    for subject in subjects:
        context = read(reader.model, reader.params, subject.ids[None], context)
        yield [Learnt(reader.params, context.state)] * LANGUAGES


def read_alone(reader: Model, subjects: Sequence[Subject], **_: Any) -> Stages:
    """Each language's own text in front."""
    contexts = [read(reader.model, reader.params, subject.ids[None]) for subject in subjects]
    for count, _ in enumerate(subjects, 1):
        unread = Learnt(reader.params, None)
        yield [
            Learnt(reader.params, context.state) if place < count else unread
            for place, context in enumerate(contexts)
        ]


def levels_alone(reader: Model, subjects: Sequence[Subject], **_: Any) -> Stages:
    """What the levels have made of both texts, with attention to none."""
    model, params = reader.model, reader.params
    context = None
    for subject in subjects:
        context = read(model, params, subject.ids[None], context)
        context = context._replace(state=forget_context(model, params, context.state))
        yield [Learnt(params, context.state)] * LANGUAGES


def nights(
    reader: Model,
    subjects: Sequence[Subject],
    *,
    seed: int,
    rate: float,
    settings: SleepConfig,
    others: bool,
    recalls: bool,
    **_: Any,
) -> Stages:
    """A night after each text; `recalls` has the second rehearse what is said of the first language."""
    model, params, tokenizer = reader
    state = None
    for number, subject in enumerate(subjects):
        key = jax.random.fold_in(jax.random.key(seed), number)
        before = with_room(model, params, state)
        rehearsed = [other_documents(tokenizer, seed, DOCUMENTS, PART, document)] if others else []
        if recalls:
            rehearsed += [recalled(reader, before, one, key) for one in subjects[:number]]
        prompts, lengths = openings_from(tokenizer, subject)
        state, _ = sleep(
            model,
            params,
            read(model, params, subject.ids[None], before),
            key[None],
            settings,
            sleeper(rate, settings.steps),
            prompts=prompts,
            prompt_lengths=lengths,
            rehearsed=np.concatenate(rehearsed) if rehearsed else None,
        )
        yield [Learnt(params, state)] * LANGUAGES


def recalled(reader: Model, context: Context, subject: Subject, key: Array) -> np.ndarray:
    """What a reader says with a language's name, and nothing else, to begin with."""
    rows = np.zeros((SAID, PART), np.int32)
    rows[:, : len(subject.name)] = subject.name
    lengths = np.full(SAID, len(subject.name))
    key = jax.random.fold_in(key, 1)
    return np.asarray(say_after(reader.model, reader.params, context, rows, lengths, key, 1.0))


def tuned(
    reader: Model,
    subjects: Sequence[Subject],
    *,
    seed: int,
    rate: float,
    strength: float,
    settings: SleepConfig,
    others: bool,
    **_: Any,
) -> Stages:
    """All weights are trained on one text and then on the other, and with `others` on documents too.

    With a strength, they are held to what mattered for other documents, and then for the first text.
    """
    random, params = np.random.default_rng([seed, 6]), reader.params
    rest = other_documents(reader.tokenizer, seed, DOCUMENTS, PART, document)
    optimizer = elastic_adam(settings.steps)
    held = first = with_rate(jax.jit(optimizer.init)(params), rate, strength=strength)
    if strength:
        held = consolidate(held, params, fisher(reader.model, params, rest[: 2 * settings.samples]))
    for subject in subjects:
        pieces = np.lib.stride_tricks.sliding_window_view(subject.ids, PIECE)
        kinds = [pieces, rest[:, :PIECE]] if others else [pieces]
        params, held, _ = tune(reader, params, held, kinds, random, settings, optimizer)
        if strength:
            held = consolidate(held, params, fisher(reader.model, params, pieces))
        held = anew(first, held)
        yield [Learnt(params, None)] * LANGUAGES


def anew(first: Any, held: Any) -> Any:
    """The optimiser's state of a new stage: all as at first, but what holds the weights."""
    elastic, *_ = held.inner_state
    _, *rest = first.inner_state
    return first._replace(inner_state=(elastic, *rest))


class Arm(NamedTuple):
    """A way to learn.

    Attributes:
      learn: tells who is asked after each text.
      rate: that is tried first, of `RATES`; None where there is none.
      strength: likewise of `STRENGTHS`.
      more: what else it is given.
    """

    learn: Callable[..., Stages]
    rate: float | None = None
    strength: float | None = None
    more: Mapping[str, Any] = {}


ARMS = {
    "its own text in front": Arm(read_alone),
    "both texts in front": Arm(read_in_turn),
    "the levels that have read them": Arm(levels_alone),
    "nights": Arm(nights, 1e-1, more={"others": True, "recalls": True}),
    "nights, nothing said of the first language": Arm(
        nights, 1e-1, more={"others": True, "recalls": False}
    ),
    "fine-tuning": Arm(tuned, 3e-4, more={"others": False}),
    "fine-tuning with other documents": Arm(tuned, 3e-4, more={"others": True}),
    "elastic weights": Arm(tuned, 3e-4, 10.0, more={"others": False}),
}


class Enough(Exception):
    """Raised when no more trials are to be begun."""


class Experiment(NamedTuple):
    """All that trials need.

    Attributes:
      reader: who learns.
      path: of the file of trials.
      until: when no trial is begun any more, by `time.monotonic`.
    """

    reader: Model
    path: Path
    until: float = math.inf

    def trial(
        self, name: str, seed: int, rate: float | None, strength: float | None
    ) -> dict[str, Any]:
        """Runs a trial, if it is not there."""
        arm = ARMS[name]
        key = {"arm": name, "seed": seed, "rate": rate, "strength": strength, "night": NIGHT}
        for row in find_json_lines(self.path, key):
            return row
        if time.monotonic() > self.until:
            raise Enough
        subjects = subjects_of(self.reader.tokenizer, seed)
        stages = arm.learn(
            self.reader,
            subjects,
            seed=seed,
            rate=rate,
            strength=strength or 0.0,
            settings=SleepConfig(**NIGHT),
            **arm.more,
        )
        unread = [Learnt(self.reader.params, None)] * LANGUAGES
        scores, lost = self.unread(seed, unread, subjects)
        spent = 0.0
        for _ in subjects:
            begun = time.monotonic()
            who = jax.block_until_ready(next(stages))
            spent += time.monotonic() - begun
            scores.append(self.asked(who, subjects))
        lost.append(round(held_out(self.reader, who[0]), 5))
        row = {**key, "seconds": round(spent, 1), "scores": scores, "unrelated": lost}
        add_json_line(self.path, row)
        shown = [[(one["exact"], one["log_likelihood"]) for one in stage] for stage in scores]
        print(name, seed, rate, strength, shown, lost, row["seconds"], flush=True)
        return row

    def asked(self, who: Sequence[Learnt], subjects: Sequence[Subject]) -> list[dict[str, float]]:
        """How well each language is translated."""
        return [measured(self.reader, *pair) for pair in zip(who, subjects, strict=True)]

    def unread(
        self, seed: int, who: Sequence[Learnt], subjects: Sequence[Subject]
    ) -> tuple[list[Any], list[float]]:
        """Scores, and loss elsewhere, of who has read nothing; any trial of a seed has them."""
        for row in find_json_lines(self.path, {"seed": seed}):
            return row["scores"][:1], row["unrelated"][:1]
        return [self.asked(who, subjects)], [round(held_out(self.reader, who[0]), 5)]

    def chosen(self, name: str) -> tuple[float | None, float | None]:
        """Rate and strength of an arm."""
        arm = ARMS[name]

        def score(rate: float | None, strength: float | None) -> float:
            row = self.trial(name, SELECTION, rate, strength)
            return statistics.fmean(one["log_likelihood"] for one in row["scores"][-1])

        rate, strength = arm.rate, arm.strength
        if rate is not None:
            rate, _ = climb(RATES, rate, lambda rate: score(rate, strength))
        if strength is not None:
            strength, _ = climb(STRENGTHS, strength, lambda strength: score(rate, strength))
        return rate, strength


def matrix(row: Mapping[str, Any], measure: str) -> np.ndarray:
    """R of a trial: by texts that were read and language that is asked for."""
    return np.array([[one[measure] for one in stage] for stage in row["scores"]])


COLUMNS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "first language, after its text, %": lambda row: 100 * matrix(row, "exact")[1, 0],
    "first, after both, %": lambda row: 100 * matrix(row, "exact")[2, 0],
    "second, after both, %": lambda row: 100 * matrix(row, "exact")[2, 1],
    "forgotten, %": lambda row: 100 * forgetting(matrix(row, "exact")),
    "log-likelihood": lambda row: float(matrix(row, "log_likelihood")[2].mean()),
    "chrF": lambda row: float(matrix(row, "chrf")[2].mean()),
    "loss of other documents, + %": lambda row: (
        100 * (row["unrelated"][-1] / row["unrelated"][0] - 1)
    ),
}


def table(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Means over seeds and standard deviations, in Markdown."""
    head = ["way to learn", *COLUMNS, "seconds", "rate", "strength"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    unread = [
        {"scores": row["scores"][:1] * (LANGUAGES + 1), "unrelated": row["unrelated"][:1]}
        for row in next(iter(groups.values()))
    ]
    for name, group in {"nothing read": unread, **groups}.items():
        cells = [spread([column(row) for row in group]) for column in COLUMNS.values()]
        known = "seconds" in group[0]
        cells.append(spread([row["seconds"] for row in group]) if known else "")
        for setting in ("rate", "strength"):
            value = group[0].get(setting)
            cells.append("" if value is None else f"{value:g}")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines) + "\n"


def draw(groups: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """What is right of each language by texts read, a line for each way to learn."""
    figure, panels = plt.subplots(1, LANGUAGES, figsize=(9, 3.4), layout="constrained", sharey=True)
    for place, panel in enumerate(panels):
        for number, (name, group) in enumerate(groups.items()):
            values = 100 * np.stack([matrix(row, "exact")[:, place] for row in group])
            panel.errorbar(
                np.arange(LANGUAGES + 1) + 0.02 * number,
                values.mean(0),
                values.std(0, ddof=1),
                label=name,
                color=f"C{number}",
                marker=".",
                capsize=2,
            )
        panel.set_xticks(range(LANGUAGES + 1), ["nothing", "the first text", "both texts"])
        panel.set_title(f"{('first', 'second')[place]} language", fontsize=9)
        panel.set_xlabel("read so far", fontsize=8)
    panels[0].set_ylabel("translations that are right, %", fontsize=8)
    panels[0].legend(fontsize=6)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def reported(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The trials of each arm that has all seeds, in the order of `ARMS`."""
    groups: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for row in find_json_lines(path, {"night": NIGHT}):
        key = row["arm"], row["rate"], row["strength"]
        groups.setdefault(key, {})[row["seed"]] = row
    whole = {arm: rows for (arm, *_), rows in groups.items() if set(SEEDS) <= set(rows)}
    return {arm: [whole[arm][seed] for seed in SEEDS] for arm in ARMS if arm in whole}


def main() -> None:
    parser = parser_of(__doc__, ARMS)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no trial afterwards")
    given = parser.parse_args()
    path = given.workdir / "trials.jsonl"
    if not given.table:
        given.workdir.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + 60 * given.minutes
        experiment = Experiment(Model(*load_model(given.run)), path, until)
        try:
            for name in given.arms:
                chosen = experiment.chosen(name)
                for seed in SEEDS:
                    experiment.trial(name, seed, *chosen)
        except Enough:
            print(f"{given.minutes:g} minutes are over; the same command goes on")
    groups = reported(path)
    if not groups:
        parser.error(f"{path} has no way to learn with all seeds")
    report(given.workdir, groups, table, draw)


if __name__ == "__main__":
    main()
