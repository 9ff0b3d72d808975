"""What dreams add to nights: questions that join facts of different days.

    python experiments/sleep/words.py runs/facts/words.json
    python experiments/sleep/words.py runs/facts/friends.json --friends
    python experiments/sleep/facts_pretrain.py --workdir=runs/facts/model
    python experiments/sleep/facts_pretrain.py --friends --start=runs/facts/model \\
        --steps=600 --workdir=runs/facts/friends
    python experiments/sleep/dreaming.py --run=runs/facts/friends --nights=runs/facts/nights \\
        --workdir=experiments/sleep/dreaming
    python experiments/sleep/dreaming.py --table --workdir=experiments/sleep/dreaming  # runs nothing

A model that was trained on other worlds, also to say what is true of a friend where both facts stand
before the question, reads four facts about each of four people, and sleeps. On the next day it reads who
is whose friend, and sleeps again; then it also rehearses what it remembers of the first day. It is
asked, with no text before, "Where does the friend of TAVOMI live?".

Before each dream it recalls a friendship, as it begins, and by itself something about that friend. Both
lines stand in front of the dream twice: as a text tells them, before a blank line, and as who says them
aloud, behind it. Then the model mostly asks for what joins them, and answers. That is the dream, and it
is learned without what stands before. Questions about half of the people, in one phrasing, try the
dreams. Reported are those about the same people in other words, and those about the others, of whom no
trial knows.

Dreams are as the paper's, but for random experts, which are an arm of their own, and for what is
rehearsed while they are learned: other documents, and what is remembered of both days. The rate of
training on dreams is that at which right answers of a world that is not reported are likeliest, of
those which cost other documents 1% at most. A trial that has ended is a line of WORKDIR/trials.jsonl,
so that a command that is stopped and given again goes on.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from facts import (
    MOST_LOST,
    Learnt,
    Model,
    World,
    held_out,
    measured,
    openings_from,
    other_documents,
    parser_of,
    report,
    say_after,
    sleeper,
    spread,
)
from facts_pretrain import FIRST_NEW, PHRASINGS, days_of, joined_of, whole_chunks

from hope_jax.commands.trained_model import load_model
from hope_jax.data.json_lines import add_json_line, find_json_lines
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.evaluation.choices import log_likelihoods, row_losses, share_won
from hope_jax.evaluation.given_answers import Answers, answers_of
from hope_jax.evaluation.grid import climb
from hope_jax.evaluation.world import KINDS, Fact, Question, ask, tell
from hope_jax.inference.context_file import load_context, save_context
from hope_jax.inference.sampling import Context, read
from hope_jax.layers.experts import Experts
from hope_jax.models import LanguageModel
from hope_jax.models.in_context import HeldState
from hope_jax.models.language_model import ModelState
from hope_jax.sleep.config import DreamConfig, SleepConfig
from hope_jax.sleep.cycle import sleep
from hope_jax.sleep.dreams import Dreams, ReaderScore, dream
from hope_jax.sleep.expansion import experts_of
from hope_jax.sleep.samples import in_rows, openings_of
from hope_jax.sleep.seeding import Lesson, keep_texts

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PEOPLE, KINDS_EACH = 4, 4  # of a day; and what is told of each on the first
SELECTION, SEEDS = (1000,), (0, 1, 2)
NIGHT = SleepConfig(
    steps=400,
    samples=16,
    kept_samples=2048,
    tokens=12,
    lam=0.0,
    a=1.0,
    experts=2,
    expert_width=256,
    rehearsal=10.0,
)
NIGHT_RATE, OPENINGS, PART = 0.3, 256, 56
BEST, OTHERS, TEMPERATURE, LINE = 96, 32, 0.5, 6
DREAMING = DreamConfig(
    dreams=256,
    dream_tokens=10,
    without_openings=True,
    random_expert=False,
    best=BEST,
    others=OTHERS,
    trial_steps=10,
    trial_rate=3e-3,
    dream_steps=150,
)
RATES, FIRST_RATE = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), 1e-2  # of training on dreams


class Life(NamedTuple):
    """What is read from day to day, and what is asked in the end.

    Attributes:
      days: the world of each, with a question for each of its facts.
      tried: questions that join facts of two days, by which dreams are tried.
      reworded: the same in other words.
      asked: those about other people.
      recalled: beginnings of two lines each, what is told of a person's friend and of `{friend}`.
    """

    days: list[World]
    tried: list[Question]
    reworded: list[Question]
    asked: list[Question]
    recalled: list[tuple[str, str]]


def life_of(tokenizer: Tokenizer, seed: int) -> Life:
    """A world for which nothing was trained."""
    random = np.random.default_rng([seed, 8])
    told = days_of(FIRST_NEW + seed, PEOPLE, KINDS_EACH + 1, friends=True, days=2)
    facts, links = (
        [fact for fact in day if (fact.kind == "friend") == later] for later, day in enumerate(told)
    )
    days: list[World] = []
    recalled: list[tuple[str, str]] = []
    for day in (facts, links):
        # A friend's name stands nowhere else, and a name is learned where it is said more than once.
        ways = random.permuted(np.tile(np.arange(PHRASINGS), (len(day), 1)), axis=1)
        times = PHRASINGS if day == links else 1
        lines = [tell(*one) for one in zip(day * times, ways.T.ravel().tolist(), strict=False)]
        ids = whole_chunks(tokenizer, "".join(f"{line}\n" for line in lines) + "\n")
        asked = [spaced(question) for question in ask(day, random)]
        days.append(World(ids, 0, lines, asked))
    tried, reworded, asked = [], [], []
    for place, link in enumerate(links):
        for question in joined_of([link], facts, random):
            kind = KINDS[question.facts[1].kind]
            name = f"the friend of {link.name}"
            first, *others = (question._replace(prompt=way.format(name=name)) for way in kind.asked)
            if place % 2:
                asked += [first, *others]
            else:
                tried.append(first)
                reworded += others
            fact = question.facts[1]._replace(name="{friend}")
            recalled += itertools.product(told_up_to(link), told_up_to(fact))
    return Life(days, tried, reworded, asked, recalled)


def told_up_to(fact: Fact) -> list[str]:
    """How a fact is told, up to its value; the space before a friend is of the piece before."""
    end = "{value}" if fact.kind == "friend" else " {value}"
    return [way.split(end)[0].format(name=fact.name) for way in KINDS[fact.kind].told]


def asked_up_to(fact: Fact) -> list[str]:
    """How it is asked for, up to the answer."""
    end = " " if fact.kind == "friend" else ""
    return [f"{way.format(name=fact.name)}{end}" for way in KINDS[fact.kind].asked]


def spaced(question: Question) -> Question:
    """The question with the space before a friend in its prompt, where the tokenizer has it."""
    if question.facts[0].kind != "friend":
        return question
    answers = [answer.removeprefix(" ") for answer in (question.answer, *question.wrong)]
    return question._replace(
        prompt=f"{question.prompt} ", answer=answers[0], wrong=tuple(answers[1:])
    )


def nights(reader: Model, life: Life, seed: int) -> Context:
    """Reads and sleeps, day after day; who wakes from the last night."""
    model, params, tokenizer = reader
    woken: Context | None = None
    for number, day in enumerate(life.days):
        before = read(model, params, day.ids[None], woken)
        rows, lengths = (
            part[np.arange(OPENINGS) * len(part) // OPENINGS]
            for part in openings_from(tokenizer, day)
        )
        state, night = sleep(
            model,
            params,
            before,
            jax.random.fold_in(jax.random.key(seed), number)[None],
            NIGHT,
            sleeper(NIGHT_RATE, NIGHT.steps),
            prompts=rows,
            prompt_lengths=lengths,
            rehearsed=rehearsed_by(reader, woken, life.days[:number], seed),
        )
        woken = Context(state, before.logits)
        print(f"night {number}: divergence {night.before[0]:.3f}, {night.after[0]:.3f}", flush=True)
    assert woken is not None
    return woken


def rehearsed_by(
    reader: Model, woken: Context | None, days: Sequence[World], seed: int
) -> np.ndarray:
    """Other documents, half of them in the place of which are one's own words, if there are days."""
    rows = other_documents(reader.tokenizer, seed)[:, :PART]
    if woken is not None:
        rows[::2] = own_words(reader, woken, days, seed, rows[::2].shape)
    return rows


def own_words(
    reader: Model, woken: Context, days: Sequence[World], seed: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Texts of lines about some days, as who has woken remembers them."""
    facts = [question.facts[0] for day in days for question in day.questions]
    begun = [some for fact in facts for some in (*told_up_to(fact), *asked_up_to(fact))]
    lines = finished(reader, woken, begun, jax.random.key(seed))
    ids = [reader.tokenizer.encode(line) for line in lines]
    random = np.random.default_rng([seed, 9])
    rows = np.zeros(shape, np.int32)
    for row in rows:
        some = random.integers(len(ids), size=len(row))
        row[:] = np.concatenate([ids[place] for place in some])[: len(row)]
    return rows


def kept_nights(reader: Model, life: Life, seed: int, folder: Path) -> Context:
    """The nights, from a file where it is there."""
    path = folder / f"{seed}.msgpack"
    if not path.exists():
        save_context(path, nights(reader, life, seed), reader.model, reader.params)
    return load_context(path, reader.model, reader.params)


def choice_score(answers: Answers, model: LanguageModel, params: Any, state: ModelState) -> Any:
    """Mean log-probability of right answers among four, of which the first is right."""
    losses = row_losses(model, params, answers.tokens[0, :, :-1], answers.tokens[0, :, 1:], state)
    likely = -jnp.sum(losses * answers.told[0, :, 1:], -1).reshape(-1, 4)
    return jnp.mean(jax.nn.log_softmax(likely)[:, 0])


def moved(experts: Experts, model: LanguageModel, params: Any, state: ModelState) -> Any:
    """By which every dream helps: how far who has tried it is from some experts."""
    assert isinstance(state.adapting, HeldState)
    pairs = zip(experts[:3], state.adapting.experts[:3], strict=True)
    return sum(jnp.sum(jnp.abs(new - old)) for old, new in pairs)


def score_by(tokenizer: Tokenizer, questions: Sequence[Question]) -> ReaderScore:
    """By what dreams are tried."""
    rows = [(asked.prompt, said) for asked in questions for said in (asked.answer, *asked.wrong)]
    answers = answers_of(tokenizer, *zip(*rows, strict=True), batch_size=len(rows))
    return jax.tree_util.Partial(choice_score, answers)


def recall(reader: Model, woken: Context, life: Life, keys: Any) -> list[str]:
    """Two lines each, as the reader remembers them: told, as a text would, and then told aloud."""
    begun = [first for first, _ in life.recalled]
    links = finished(reader, woken, begun, keys[0])
    friends = [line.split(first)[1].strip(".\n") for first, line in zip(begun, links, strict=True)]
    pairs = zip(life.recalled, friends, strict=True)
    # Behind another line less is remembered than where nothing stands before.
    then = [second.format(friend=friend) for (_, second), friend in pairs]
    facts = finished(reader, woken, then, keys[1])
    return [f"{link}{fact}\n{link}{fact}" for link, fact in zip(links, facts, strict=True)]


def finished(reader: Model, woken: Context, texts: Sequence[str], key: Any) -> list[str]:
    """Texts with what the reader says until the line ends."""
    model, params, tokenizer = reader
    rows, lengths = in_rows([tokenizer.encode(text) for text in texts])
    given = np.pad(rows, ((0, 0), (0, LINE)))
    said = np.asarray(say_after(model, params, woken, given, lengths, key, TEMPERATURE))
    ends = [tokenizer.decode(row[size:][:LINE]) for row, size in zip(said, lengths, strict=True)]
    return [text + end.split("\n")[0] + "\n" for text, end in zip(texts, ends, strict=True)]


def joined_said(life: Life, text: str) -> list[bool]:
    """Of each answer in a text to a question that joins facts of two days, whether it is right."""
    joined = life.tried + life.reworded + life.asked
    right = {question.prompt: question.answer for question in joined}
    said = [(line.split("?")[0] + "?", line) for line in text.split("\n") if line.endswith(".")]
    return [line == asked + right[asked] for asked, line in said if asked in right]


class Arm(NamedTuple):
    """How dreams are made and chosen.

    Attributes:
      changes: of `DREAMING`.
      trials: whether they are tried; else every one helps.
      rehearse: whether texts are rehearsed while they are learned.
    """

    changes: Mapping[str, Any] = {}
    trials: bool = True
    rehearse: bool = True


ALONE = "nights alone"
ARMS = {
    ALONE: None,
    "dreams": Arm(),
    "without trials": Arm(trials=False),
    "without gradient selection": Arm({"best": 0, "others": BEST + OTHERS}),
    "with random experts": Arm({"random_expert": True}),
    "learned with what was recalled": Arm({"without_openings": False}),
    "without rehearsal": Arm(rehearse=False),
}


class Experiment(NamedTuple):
    """All that trials need.

    Attributes:
      reader: who learns.
      nights: folder of the nights.
      path: of the file of trials.
    """

    reader: Model
    nights: Path
    path: Path

    def trial(self, name: str, seed: int, rate: float) -> dict[str, Any]:
        """Runs a trial, if it is not there."""
        arm, (model, params, tokenizer) = ARMS[name], self.reader
        settings = None
        if arm is not None:
            settings = dataclasses.replace(DREAMING, dream_rate=rate, **arm.changes)
        key = {
            "arm": name,
            "seed": seed,
            "night": asleep(),
            "dreaming": settings and dataclasses.asdict(settings) | {"temperature": TEMPERATURE},
        }
        for row in find_json_lines(self.path, key):
            return row
        life = life_of(tokenizer, seed)
        woken = kept_nights(self.reader, life, seed, self.nights)
        begun, state, found = time.monotonic(), woken.state, {}
        if arm is not None:
            score = score_by(tokenizer, life.tried)
            if not arm.trials:
                score = jax.tree_util.Partial(moved, experts_of(state))
            state, dreams = self.dreamt(life, woken, seed, settings, score, arm.rehearse)
            found = told_of(tokenizer, life, dreams)
        row = {**key, **found, "seconds": round(time.monotonic() - begun, 1)}
        row |= self.asked(life, Learnt(params, state))
        if settings is None:
            row["unread"] = self.asked(life, Learnt(params, None))
            joined = life.reworded + life.asked
            row["told both"] = self.told_both(joined)
            front = read(model, params, np.concatenate([day.ids for day in life.days])[None])
            row["in front"] = measured(self.reader, Learnt(params, front.state), joined)["won"]
        add_json_line(self.path, row)
        print({part: row[part] for part in row if part not in ("night", "dreaming")}, flush=True)
        return row

    def chosen(self, name: str) -> float:
        """The rate of training on dreams, for all that do: what answers best at little cost to others."""
        if ARMS[name] is None:
            return 0.0

        def score(rate: float) -> float:
            trials = [self.trial("dreams", seed, rate) for seed in SELECTION]
            alone = [self.trial(ALONE, seed, 0.0) for seed in SELECTION]
            lost = statistics.fmean(map(added, trials, alone))
            groups = [trial[group] for trial in trials for group in ("reworded", "asked")]
            likely = statistics.fmean(group["log_likelihood"] for group in groups)
            # Where all cost too much, the one that costs least.
            return likely if lost <= MOST_LOST else -1000 - lost

        return climb(RATES, FIRST_RATE, score)[0]

    def dreamt(
        self,
        life: Life,
        woken: Context,
        seed: int,
        settings: DreamConfig,
        score: ReaderScore,
        rehearse: bool = True,
    ) -> tuple[ModelState, Dreams]:
        """Dreams of who has woken from the last night, who learns from them."""
        model, params, tokenizer = self.reader
        keys = jax.random.split(jax.random.key(seed), 3)
        begun = recall(self.reader, woken, life, keys[:2])
        openings = openings_of(*in_rows([tokenizer.encode(text) for text in begun]))
        night = dataclasses.replace(NIGHT, temperature=TEMPERATURE)
        lesson = Lesson(woken, woken.state, keys[2:], openings)
        if rehearse:
            texts = rehearsed_by(self.reader, woken, life.days, seed)
            lesson = keep_texts(model, params, lesson, texts, night)
        return dream(model, params, lesson, night, settings, score)

    def asked(self, life: Life, who: Learnt) -> dict[str, Any]:
        """What is answered, and what other documents lose."""
        single = [question for day in life.days for question in day.questions]
        groups = dict(single=single, tried=life.tried, reworded=life.reworded, asked=life.asked)
        found: dict[str, Any] = {
            name: measured(self.reader, who, group) for name, group in groups.items()
        }
        return found | {"unrelated": held_out(self.reader, who)}

    def told_both(self, questions: Sequence[Question]) -> float:
        """Share won with both facts told before each question, and nothing else known."""
        model, params, tokenizer = self.reader
        found = log_likelihoods(
            model,
            params,
            tokenizer,
            ["".join(f"{tell(x, 0)}\n" for x in asked.facts) + asked.prompt for asked in questions],
            [(asked.answer, *asked.wrong) for asked in questions],
        )
        return share_won(found)


def told_of(tokenizer: Tokenizer, life: Life, dreams: Dreams) -> dict[str, Any]:
    """What dreams were, and what came of them."""
    tokens, _, ends = (leaf[0] for leaf in dreams.samples)
    said = [
        joined_said(life, tokenizer.decode(row[:end]))
        for row, end in zip(tokens, ends, strict=True)
    ]
    tried, helped = dreams.tried[0], dreams.tried[0][dreams.reward[0] > 0]
    groups = {"all": range(len(said)), "tried": tried, "helped": helped}
    known = {question.facts[0].name for question in life.tried}
    trials: dict[str, list[list[int]]] = {name: [[0, 0], [0, 0]] for name in ("tried", "others")}
    for place, reward in zip(tried, dreams.reward[0], strict=True):
        text = tokenizer.decode(tokens[place][: ends[place]])
        about = trials["tried" if any(name in text for name in known) else "others"]
        if said[place]:
            about[not all(said[place])][0] += int(reward)
            about[not all(said[place])][1] += 1
    best = np.argsort(-dreams.scores[0])
    examples = {
        tokenizer.decode(tokens[tried[place]][: ends[tried[place]]]): float(dreams.scores[0, place])
        for place in (*best[:6], *best[-6:])
    }
    return {
        "helped": float(dreams.reward.mean()),
        "score": [float(dreams.before[0]), float(dreams.after[0])],
        "losses": [float(dreams.losses[0, place]) for place in (0, -1)],
        "said": {
            name: [
                sum(sum(said[place]) for place in group),
                sum(len(said[place]) for place in group),
            ]
            for name, group in groups.items()
        },
        # Those that helped, and all, of dreams with right answers and with wrong ones.
        "trials": trials,
        "examples": examples,
    }


def asleep() -> dict[str, Any]:
    """How nights go, as trials tell it."""
    others = {"learning_rate": NIGHT_RATE, "people": PEOPLE, "kinds": KINDS_EACH}
    return dataclasses.asdict(NIGHT) | others


def added(row: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """To the loss of other documents, as a share of what it is after another trial."""
    loss, before = (found["unrelated"]["loss"] for found in (row, other))
    return loss / before - 1


def right_share(row: Mapping[str, Any], which: str) -> float:
    """Of answers in dreams that join facts of two days, those that are right; none is 0."""
    right, all_said = row["said"][which]
    return right / max(all_said, 1)


Row = Mapping[str, Any]
ANSWERED: dict[str, Callable[[Row], float]] = {
    "joined, about others, %": lambda found: 100 * found["asked"]["won"],
    "joined, reworded, %": lambda found: 100 * found["reworded"]["won"],
    "log-likelihood of both": lambda found: statistics.fmean(
        found[group]["log_likelihood"] for group in ("asked", "reworded")
    ),
    "by which dreams are tried, %": lambda found: 100 * found["tried"]["won"],
    "single facts, %": lambda found: 100 * found["single"]["won"],
}
DREAMT: dict[str, Callable[[Row], float]] = {
    "dreams that helped, %": lambda row: 100 * row["helped"],
    "joined answers in dreams that are right, %": lambda row: 100 * right_share(row, "all"),
    "in those tried, %": lambda row: 100 * right_share(row, "tried"),
    "in those that helped, %": lambda row: 100 * right_share(row, "helped"),
}


# Who is dreamt of, and whether the answer is right.
TRIALS = {
    "right, of those tried": ("tried", 0),
    "wrong, of those tried": ("tried", 1),
    "right, of others": ("others", 0),
    "wrong, of others": ("others", 1),
}


def that_helped(rows: Sequence[Row], about: str, wrong: int) -> str:
    """Of the dreams of all seeds that were tried, of one of `TRIALS`, those that helped."""
    helped, whole = (sum(row["trials"][about][wrong][part] for row in rows) for part in (0, 1))
    return f"{helped} of {whole}"


def table(groups: Mapping[str, Sequence[Row]]) -> str:
    """Means over seeds and standard deviations, in Markdown."""
    helped = [f"helped, {name}" for name in TRIALS]
    head = ["", *ANSWERED, "other documents lose, %", *DREAMT, *helped, "seconds", "rate"]
    alone = groups[ALONE]
    first = [row["unread"] for row in alone]
    lines = []

    def line(name: str, found: Sequence[Row], *more: str) -> None:
        cells = [spread([column(row) for row in found]) for column in ANSWERED.values()]
        cells += [spread([100 * lost for lost in map(added, found, first)]), *more]
        lines.append("| " + " | ".join([name, *cells, *[""] * (len(head) - 1 - len(cells))]) + " |")

    line("nothing read", first)
    for name, rows in groups.items():
        more = []
        if name != ALONE:
            more = [spread([column(row) for row in rows]) for column in DREAMT.values()]
            more += [that_helped(rows, *which) for which in TRIALS.values()]
            more += [spread([row["seconds"] for row in rows])]
            more += [f"{rows[0]['dreaming']['dream_rate']:g}"]
        line(name, rows, *more)
    asked = {"both days in front, all joined": "in front", "both facts told before": "told both"}
    for name, which in asked.items():
        won = spread([100 * row[which] for row in alone])
        lines.append("| " + " | ".join([name, won, *[""] * (len(head) - 2)]) + " |")
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]) + "\n"


def draw(groups: Mapping[str, Sequence[Row]], path: Path) -> None:
    """What is answered after nights and dreams; a point for each seed."""
    columns = ("joined, reworded, %", "joined, about others, %", "single facts, %")
    figure, halves = plt.subplots(1, 3, figsize=(10, 3), layout="constrained", sharey=True)
    for half, column in zip(halves, columns, strict=True):
        unread = statistics.fmean(ANSWERED[column](row["unread"]) for row in groups[ALONE])
        half.axvline(unread, color="gray", linestyle=":", label="nothing read")
        half.set_xlabel(column, fontsize=8)
        for place, rows in enumerate(groups.values()):
            values = [ANSWERED[column](row) for row in rows]
            half.barh(place, statistics.fmean(values), color="C0", alpha=0.6)
            half.plot(values, [place] * len(values), "k.", markersize=4)
    halves[0].set_yticks(range(len(groups)), list(groups), fontsize=8)
    halves[0].invert_yaxis()
    halves[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def reported(path: Path) -> dict[str, list[Row]]:
    """The trials of each arm that has all seeds, in the order of `ARMS`."""
    groups: dict[str, dict[float, dict[int, Row]]] = {}
    for row in find_json_lines(path, {}):
        if row["seed"] in SEEDS and row["arm"] in ARMS and row["night"] == asleep():
            rate = (row["dreaming"] or {}).get("dream_rate", 0.0)
            groups.setdefault(row["arm"], {}).setdefault(rate, {})[row["seed"]] = row
    found = {}
    for name in ARMS:
        for rows in groups.get(name, {}).values():
            if len(rows) == len(SEEDS):
                found[name] = [rows[seed] for seed in SEEDS]
    return found


def main() -> None:
    parser = parser_of(__doc__, ARMS)
    parser.add_argument("--nights", type=Path, help="folder in which states are kept")
    given = parser.parse_args()
    path = given.workdir / "trials.jsonl"
    if not given.table:
        given.workdir.mkdir(parents=True, exist_ok=True)
        experiment = Experiment(Model(*load_model(given.run)), given.nights, path)
        for name in given.arms:
            rate = experiment.chosen(name)
            for seed in SEEDS:
                experiment.trial(name, seed, rate)
    groups = reported(path)
    if ALONE not in groups:
        parser.error(f"{path} has no nights of all seeds")
    report(given.workdir, groups, table, draw)


if __name__ == "__main__":
    main()
