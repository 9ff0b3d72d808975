"""What is left of each day's facts after each of ten nights, beside what fine-tuning leaves.

    python experiments/sleep/words.py runs/facts/words.json
    python experiments/sleep/facts_pretrain.py --workdir=runs/facts/model
    python experiments/sleep/ten_nights.py --run=runs/facts/model --workdir=experiments/sleep/ten_nights
    python experiments/sleep/ten_nights.py --workdir=experiments/sleep/ten_nights --table  # alone

Each day a model that was trained on other worlds (facts_pretrain.py) reads eight facts about two people
of whom it has never heard, and learns them at night by one of `ARMS`, in `STEPS` steps. After each
night it is asked for the facts of all days without their texts, in the phrasings that do not go with how
they were told, with four answers to choose from (facts.py).

Who sleeps keeps one expert of each night, and reads the next day with all of them. A night's samples
begin as questions do, up to whom they are about, which the teacher says. Nothing of earlier days is read
again. Where its own words are rehearsed, it says texts by itself before it has read, and goes on reading
them as it does then: half of what is rehearsed, beside other documents. Where it asks itself, these are
questions about all whom it has met, with its own answers; where levels form a chain, a slower one is
handed on what a faster one holds by questions about those it was told of since then.

Rates, and the strength of elastic weights, are those at which the right answers of the first `CHOOSING`
days of a world that is not reported are likeliest after the last of these nights, all days alike: they
are followed on a grid until both neighbours are worse. A trial that has ended is a line of
WORKDIR/trials.jsonl, so that a command that is stopped and given again goes on.
"""

import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from facts import (
    RATES,
    Learnt,
    Model,
    World,
    elastic_adam,
    ends,
    fisher,
    held_out,
    measured,
    other_documents,
    parser_of,
    pieces_of,
    questions_begun,
    report,
    sleeper,
    spread,
    tune,
    with_rate,
    world_with,
)
from facts_pretrain import FIRST_NEW
from words import USED

from hope_jax.commands.trained_model import load_model
from hope_jax.data.json_lines import add_json_line, find_json_lines
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.evaluation.forgetting import averages, forgetting
from hope_jax.evaluation.grid import climb
from hope_jax.evaluation.heat_map import draw_field
from hope_jax.evaluation.world import KINDS, make_world
from hope_jax.inference.sampling import Context, read
from hope_jax.models import LanguageModel
from hope_jax.models.language_model import ModelState, init_state
from hope_jax.optim import consolidate
from hope_jax.sleep.config import SleepConfig
from hope_jax.sleep.cycle import sleep
from hope_jax.sleep.life import levels_due
from hope_jax.sleep.readers import as_batch, axes, readers_of
from hope_jax.sleep.samples import Openings, openings_of, say

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DAYS, PEOPLE = 10, 2
CHOOSING = 4  # days by which rates are chosen
STEPS = 150
TEXTS, PART = 256, 64  # that are rehearsed, or trained on beside the text, and how much of each
LINES = 512  # of what one answers oneself
PIECE = 32  # tokens of the text that are tuned on at a time
MATTERING = 8  # such pieces of a day that say which weights mattered
SELECTION, SEEDS = (1000,), (0, 1, 2)
STRENGTHS = tuple(10.0**power for power in range(-3, 7))  # of elastic weights
NIGHT: dict[str, Any] = {
    "steps": STEPS,
    "samples": 8,
    "kept_samples": 512,
    "tokens": 8,  # a question and its answer
    "lam": 0.0,
    "a": 1.0,
    "expert_width": 32,
    "rehearsal": 10.0,
}


def night_with(levels: int) -> dict[str, Any]:
    """Settings with room for all nights: each level sleeps half as often as the one before."""
    last = DAYS // 2 ** (levels - 1)  # of the slowest, whose experts stay
    return {**NIGHT, "experts": max(last, min(levels, 2))}


class Awake(NamedTuple):
    """Who goes from day to day.

    Attributes:
      params: of the model.
      state: with the experts of all nights; None before the first, and where there are none.
      held: what elastic weights remember; None for nothing.
      nights: that are over.
      met: names of whom it has heard, of each day.
    """

    params: Any
    state: ModelState | None = None
    held: Any = None
    nights: int = 0
    met: tuple[tuple[str, ...], ...] = ()


def days_of(tokenizer: Tokenizer, seed: int) -> list[World]:
    """What each day tells, and what is asked of it."""
    told = make_world(FIRST_NEW + seed, days=DAYS, people=PEOPLE, kinds=USED)
    random = np.random.default_rng([seed, 7])
    return [world_with(tokenizer, facts, random) for facts in told]


def evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """So many rows, each as often as any other, or once more."""
    return rows[np.arange(count) * len(rows) // count]


def quiet(reader: Model, awake: Awake) -> Context:
    """Who has read nothing today, with the experts of all nights before."""
    state = awake.state or init_state(reader.model, awake.params, 1)
    return Context(state, jnp.zeros((1, reader.model.config.vocab_size)))


# Ways to spend a night: `(reader, awake, world, seed, rate, strength, settings) -> (awake, found)`.


def night_of(
    reader: Model,
    awake: Awake,
    world: World,
    seed: int,
    rate: float,
    strength: float,
    settings: SleepConfig,
    own: Callable[[Model, Awake, int], np.ndarray] | None = None,
    by_name: bool = False,
) -> tuple[Awake, dict[str, Any]]:
    """Sleep; half of what is rehearsed may be own words, slower levels may be asked for by name."""
    del strength
    model, params, tokenizer = reader
    texts = other_documents(tokenizer, seed, TEXTS, PART)
    context = read(model, params, world.ids[None], quiet(reader, awake))
    begun, found = np.stack(questions_begun(tokenizer)), []
    today = tuple(dict.fromkeys(question.facts[0].name for question in world.questions))
    met = *awake.met, today
    for level in levels_due(periods(model), awake.nights + 1):
        # A text that is rehearsed holds the student to who it is, who knows nothing of what it is to be
        # given: that of the days since this level has slept.
        before = awake.nights + 1 - periods(model)[level]
        known = awake._replace(met=awake.met[:before])
        rehearsed = texts.copy()
        if own is not None and known.met:
            rehearsed[1::2] = own(reader, known, seed)
        state, night = sleep(
            model,
            params,
            context,
            jax.random.key(DAYS * seed + level)[None],
            dataclasses.replace(settings, level=level),
            sleeper(rate, settings.steps),
            # With no text in front of it, the teacher would name anybody of all days.
            prompts=questions_about(tokenizer, met[before:]) if by_name and level else begun,
            rehearsed=rehearsed,
        )
        found.append(ends([night.before[0], night.after[0]]))
        context = Context(state, context.logits)
    awake = Awake(params, context.state, None, awake.nights + 1, met)
    return awake, {"divergence": found}


def questions_about(tokenizer: Tokenizer, met: Iterable[Iterable[str]]) -> np.ndarray:
    """All questions about these people, of some days."""
    asked = [
        tokenizer.encode(way.format(name=name))
        for name in itertools.chain(*met)
        for kind in USED
        for way in KINDS[kind].asked
    ]
    return np.stack(asked)


def periods(model: LanguageModel) -> tuple[int, ...]:
    """Nights after which each level sleeps, its own chunks being as many times the fastest's."""
    return tuple(2**level for level in range(levels(model)))


def levels(model: LanguageModel) -> int:
    """How many levels learn in context."""
    learning = model.config.in_context_config
    assert learning is not None
    return len(learning.chunks)


def own_words(reader: Model, awake: Awake, seed: int) -> np.ndarray:
    """Texts that who has read nothing today says, each of which begins to ask about somebody."""
    begun = np.stack(questions_begun(reader.tokenizer))
    return speech(reader, awake, seed, begun, TEXTS // 2, PART - begun.shape[1])


def own_answers(reader: Model, awake: Awake, seed: int) -> np.ndarray:
    """Texts of questions about all whom it has met, with the answers that it gives to each alone."""
    asked = questions_about(reader.tokenizer, awake.met)
    # An answer, a full stop, and the line's end.
    lines = speech(reader, awake, seed, evenly(asked, LINES), LINES, 3)
    rows, columns = TEXTS // 2, PART // lines.shape[1]
    places = np.random.default_rng([seed, 8]).integers(len(lines), size=(rows, columns))
    return lines[places].reshape(rows, PART)


def speech(
    reader: Model, awake: Awake, seed: int, begun: np.ndarray, count: int, more: int
) -> np.ndarray:
    """So many texts that begin as some do, and go on for so many tokens more."""
    given = reader.model, reader.params, quiet(reader, awake), jax.random.key(seed)
    return np.asarray(_said(*given, openings_of(begun), count, more))


@functools.partial(jax.jit, static_argnames=("model", "count", "more"))
def _said(
    model: LanguageModel,
    params: Any,
    context: Context,
    key: Any,
    openings: Openings,
    count: int,
    more: int,
) -> Any:
    how: Any = {"num_tokens": more, "temperature": 1.0, "top_p": 1.0, "vocab_size": None}

    def one(alone: Any) -> Any:
        batch = as_batch(model, alone, count)
        return say(model, params, batch, key, openings, **how).tokens

    return jax.vmap(one, in_axes=(axes(model),))(readers_of(context))[0]


def tuned(
    reader: Model,
    awake: Awake,
    world: World,
    seed: int,
    rate: float,
    strength: float,
    settings: SleepConfig,
    others: bool = True,
) -> tuple[Awake, dict[str, Any]]:
    """Fine-tuning, on other documents too; weights that mattered for earlier days are held."""
    model, params, tokenizer = reader.model, awake.params, reader.tokenizer
    optimizer, pieces = elastic_adam(settings.steps), pieces_of(world, PIECE)
    state = with_rate(jax.jit(optimizer.init)(params), rate, strength=strength)
    if awake.held is not None:
        state = state._replace(inner_state=(awake.held, *state.inner_state[1:]))
    kinds = [pieces, other_documents(tokenizer, seed, TEXTS, PART)[:, :PIECE]]
    kinds, random = kinds if others else kinds[:1], np.random.default_rng([seed, 6])
    params, state, losses = tune(reader, params, state, kinds, random, settings, optimizer)
    held = None
    if strength:
        mattered = fisher(model, params, evenly(pieces, MATTERING))
        held = consolidate(state, params, mattered).inner_state[0]
    return Awake(params, None, held), {"loss": losses}


class Arm(NamedTuple):
    """A way to spend nights.

    Attributes:
      night: see above.
      first: rate that is tried first, of `RATES`.
      strength: of elastic weights that is tried first, of `STRENGTHS`, at the rate of fine-tuning with
        other documents; None for none.
    """

    night: Callable[..., tuple[Awake, dict[str, Any]]]
    first: float
    strength: float | None = None


TUNING = "fine-tuning with other documents"
ARMS = {
    "sleep": Arm(night_of, 3e-1),
    "sleep, own words rehearsed": Arm(functools.partial(night_of, own=own_words), 3e-1),
    "sleep, asking itself": Arm(functools.partial(night_of, own=own_answers, by_name=True), 3e-1),
    "fine-tuning": Arm(functools.partial(tuned, others=False), 1e-3),
    TUNING: Arm(tuned, 1e-3),
    "elastic weight consolidation": Arm(tuned, 1e-3, 1e2),
}


class Experiment(NamedTuple):
    """All that trials need.

    Attributes:
      reader: who learns.
      path: of the file of trials.
    """

    reader: Model
    path: Path

    def trial(
        self, name: str, seed: int, rate: float, strength: float = 0.0, days: int = DAYS
    ) -> dict[str, Any]:
        """Runs a trial, if it is not there."""
        number = levels(self.reader.model)
        key = {"arm": name, "seed": seed, "rate": rate, "strength": strength, "days": days}
        key |= {"levels": number, "night": night_with(number)}
        for row in find_json_lines(self.path, key):
            return row
        settings, begun = SleepConfig(**key["night"]), time.monotonic()
        worlds = days_of(self.reader.tokenizer, seed)[:days]
        awake = Awake(self.reader.params)
        other = [self.other(awake)]
        found: list[dict[str, Any]] = []
        asked, read_today = [self.asked(awake, worlds)], []
        for day, world in enumerate(worlds):
            who = Model(self.reader.model, awake.params, self.reader.tokenizer)
            context = read(*who[:2], world.ids[None], quiet(who, awake))
            read_today.append(measured(who, Learnt(awake.params, context.state), world.questions))
            awake, more = ARMS[name].night(
                self.reader, awake, world, DAYS * seed + day, rate, strength, settings
            )
            found.append(more)
            asked.append(self.asked(awake, worlds))
        row: dict[str, Any] = {**key, "nights": found, "read": read_today, "asked": asked}
        row["other"] = [*other, self.other(awake)]
        row["seconds"] = round(time.monotonic() - begun, 1)
        add_json_line(self.path, row)
        print({name: row[name] for name in (*key, "seconds") if name != "night"}, flush=True)
        return row

    def asked(self, awake: Awake, worlds: Sequence[World]) -> dict[str, Any]:
        """Of each day, whether its answers are right and how likely they are."""
        learnt = Learnt(awake.params, awake.state)
        days = [measured(self.reader, learnt, world.questions) for world in worlds]
        return {of: [day[of] for day in days] for of in days[0]}

    def other(self, awake: Awake) -> float:
        """The loss of other documents."""
        return held_out(self.reader, Learnt(awake.params, awake.state))["loss"]

    def chosen(self, name: str) -> tuple[float, float]:
        """The rate of an arm, and the strength of its elastic weights; of one level for any number."""
        arm = ARMS[name]
        if levels(self.reader.model) > 1:
            of_one = reported(self.path)[name, 1][0]  # whose trials are there
            return of_one["rate"], of_one["strength"]

        def score(rate: float, strength: float) -> float:
            rows = [self.trial(name, seed, rate, strength, CHOOSING) for seed in SELECTION]
            return statistics.fmean(remembered(row, "log_likelihood") for row in rows)

        if arm.strength is None:
            return climb(RATES, arm.first, lambda rate: score(rate, 0.0))[0], 0.0
        rate, _ = self.chosen(TUNING)
        return rate, climb(STRENGTHS, arm.strength, lambda strength: score(rate, strength))[0]


def matrix(row: Mapping[str, Any], of: str = "won") -> np.ndarray:
    """A trial's scores, of days after nights, the first row before all nights."""
    return np.array([night[of] for night in row["asked"]])


def remembered(row: Mapping[str, Any], of: str) -> float:
    """The mean score of all days after the last night."""
    return float(matrix(row, of)[-1].mean())


def fresh(row: Mapping[str, Any]) -> float:
    """What is right of each day after its own night."""
    return float(np.diagonal(matrix(row)[1:]).mean())


def rise(row: Mapping[str, Any]) -> float:
    """Of the loss of other documents, as a share of it."""
    first, last = row["other"]
    return last / first - 1


COLUMNS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "right with the text, %": lambda row: 100 * np.mean([day["won"] for day in row["read"]]),
    "after its own night, %": lambda row: 100 * fresh(row),
    "all days after the last, %": lambda row: 100 * remembered(row, "won"),
    "the first day after the last, %": lambda row: 100 * matrix(row)[-1, 0],
    "forgotten, %": lambda row: 100 * forgetting(matrix(row)),
    "log-likelihood after the last": lambda row: remembered(row, "log_likelihood"),
    "loss of other documents, + %": lambda row: 100 * rise(row),
}


Groups = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]


def named(arm: str, levels: int) -> str:
    """A way to spend nights, of a model with so many levels."""
    return arm if levels == 1 else f"{arm}, {levels} levels"


def table(groups: Groups) -> str:
    """Means over seeds and standard deviations, in Markdown."""
    head = ["way to spend nights", *COLUMNS, "rate", "strength", "worlds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, group in groups.items():
        cells = [spread([column(row) for row in group]) for column in COLUMNS.values()]
        numbers = [f"{group[0][number]:g}" for number in ("rate", "strength")]
        lines.append(f"| {' | '.join([named(*name), *cells, *numbers, str(len(group))])} |")
    return "\n".join(lines) + "\n"


def draw(groups: Groups, path: Path) -> None:
    """What is right of each day after each night, in the mean over seeds; below, of all days so far."""
    columns = 3
    rows = -(-(len(groups) + 1) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 3.2 * rows), layout="constrained", squeeze=False
    )
    *maps, over = grid.flat[: len(groups) + 1]
    for axes_ in grid.flat[len(groups) + 1 :]:
        axes_.set_axis_off()
    for axes_, (name, group) in zip(maps, groups.items(), strict=True):
        field = np.mean([matrix(row)[1:] for row in group], 0)
        draw_field(axes_, np.where(np.tri(*field.shape, dtype=bool), field, np.nan))
        for of, set_ticks in ((1, axes_.set_xticks), (0, axes_.set_yticks)):
            set_ticks(range(field.shape[of]), range(1, field.shape[of] + 1), fontsize=7)
        axes_.set_title(named(*name), fontsize=8)
        axes_.set_xlabel("facts of day", fontsize=7)
        axes_.set_ylabel("after night", fontsize=7)
        means = np.array([averages(matrix(row)) for row in group]) * 100
        nights = range(1, means.shape[1] + 1)
        (line,) = over.plot(nights, means.mean(0), label=named(*name))
        over.fill_between(nights, means.min(0), means.max(0), color=line.get_color(), alpha=0.2)
    over.axhline(25, color="gray", linestyle=":")
    over.set_ylim(0, 103)
    over.set_xlabel("after night", fontsize=7)
    over.set_title("right of all days so far, %", fontsize=8)
    over.legend(fontsize=6)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def reported(path: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The trials of each arm and number of levels at the rate of most seeds, in the order of `ARMS`."""
    groups: dict[tuple[str, int, float, float], dict[int, dict[str, Any]]] = {}
    for row in find_json_lines(path, {"days": DAYS}):
        if row["seed"] in SEEDS and row["night"] == night_with(row["levels"]):
            key = row["arm"], row["levels"], row["rate"], row["strength"]
            groups.setdefault(key, {})[row["seed"]] = row
    most = {key[:2]: rows for key, rows in sorted(groups.items(), key=lambda pair: len(pair[1]))}
    ordered = sorted(most, key=lambda key: (list(ARMS).index(key[0]), key[1]))
    return {key: [most[key][seed] for seed in SEEDS if seed in most[key]] for key in ordered}


def main() -> None:
    parser = parser_of(__doc__, ARMS)
    given = parser.parse_args()
    path = given.workdir / "trials.jsonl"
    if not given.table:
        given.workdir.mkdir(parents=True, exist_ok=True)
        experiment = Experiment(Model(*load_model(given.run)), path)
        for name in given.arms:
            numbers = experiment.chosen(name)
            for seed in SEEDS:
                experiment.trial(name, seed, *numbers)
    groups = reported(path)
    if not groups:
        parser.error(f"{path} has no way to spend all nights")
    report(given.workdir, groups, table, draw)


if __name__ == "__main__":
    main()
