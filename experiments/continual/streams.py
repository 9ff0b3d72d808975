"""What is kept of a stream that is read, beside what is kept of it by training on it, at equal tokens.

    python experiments/continual/streams.py --stream=classes --workdir=runs/continual/classes \
        --run=runs/continual/attention --levels=runs/continual/levels --set groups=4 classes=2 shots=4

One stream (`hope evaluate --suite=classes` or `languages`), the same for all rows of a seed, and the same
questions after each of its stages. Rows:

* `read`: the model of --run reads the stream, with nothing that learns, and is asked from what it read.
* `levels`: the same of the model of --levels, whose levels learn while it reads.
* `fine-tuning`: the model of --run is trained on the tokens of each stage in turn (Adam, pieces of
  --window tokens, each from a fresh context), and asked without having read anything.
* `replay`: half of every batch is drawn from pieces of earlier stages that were kept.
* `elastic weights`: fine-tuning held to what mattered for earlier stages.
* `fine-tuning, then read`: as fine-tuning, and it reads the stages so far before it is asked.

What is trained has so many --readings: at 1, each stage's tokens are trained on as often as the others
read them. Rates lie on a grid of factor about 3, and strengths of elastic weights on one of factor 10;
each row takes those with the highest average at the end over --selection seeds that are not reported,
rates followed until both neighbours are worse.

A trial that has ended is a line of WORKDIR/trials.jsonl, so that a command that is stopped and given
again goes on. --table runs nothing, and writes WORKDIR/results.md and WORKDIR/results.png of what is
there, as is done at the end.
"""

import argparse
import dataclasses
import functools
import math
import statistics
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from ml_collections import ConfigDict

from hope_jax.commands.config import change_settings, config_table
from hope_jax.commands.trained_model import load_model
from hope_jax.data.json_lines import add_json_line, find_json_lines
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.data.whole_file import write_whole
from hope_jax.evaluation.grid import climb
from hope_jax.evaluation.stream import (
    MEASURES,
    Asking,
    Place,
    Stage,
    ask_after,
    ask_stream,
    measures_of,
    nothing_read,
    percent,
    places_of,
    scores_of,
)
from hope_jax.evaluation.streams import STREAMS, Kind
from hope_jax.inference.sampling import Context, read_in_segments
from hope_jax.models import LanguageModel
from hope_jax.models.parameter_count import parameter_shapes
from hope_jax.settings import as_values, read_settings
from hope_jax.training.stages import Training, train_in_stages

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FIRST_RATE = 1e-3
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
UNREPORTED = 1000  # the first selection seed


class Row(NamedTuple):
    """How a stream is learnt.

    Attributes:
      trains: whether parameters change.
      rehearses: whether pieces of earlier stages are trained on again.
      holds: whether weights are elastic.
      reads: whether it has read the stages so far when it is asked.
    """

    trains: bool = True
    rehearses: bool = False
    holds: bool = False
    reads: bool = False


ROWS = {
    "read": Row(trains=False, reads=True),
    "levels": Row(trains=False, reads=True),
    "fine-tuning": Row(),
    "replay": Row(rehearses=True),
    "elastic weights": Row(holds=True),
    "fine-tuning, then read": Row(reads=True),
}


class Reader(NamedTuple):
    """A model that a run has trained.

    Attributes:
      model: that reads.
      params: of the model.
      tokenizer: of the model.
    """

    model: LanguageModel
    params: Any
    tokenizer: Tokenizer


class Trials:
    """Trials in a file, a JSON object a line.

    Args:
      path: of the file.
      marks: what tells trials of one stream, run and setting from others.
    """

    def __init__(self, path: Path, marks: Mapping[str, Any]) -> None:
        self.path, self.marks = path, dict(marks)

    def found(self, **key: Any) -> list[dict[str, Any]]:
        """Those with these entries."""
        return list(find_json_lines(self.path, key | self.marks))

    def add(self, trial: Mapping[str, Any]) -> dict[str, Any]:
        """Keeps one."""
        whole = {**self.marks, **trial}
        add_json_line(self.path, whole)
        return whole


def without_levels(reader: Reader) -> Reader:
    """The same model with nothing that learns while it reads."""
    model = LanguageModel(dataclasses.replace(reader.model.config, in_context=None))
    kept = parameter_shapes(model)
    return Reader(model, {name: reader.params[name] for name in kept}, reader.tokenizer)


def tokens_of(tokenizer: Tokenizer, stage: Stage) -> np.ndarray:
    """Of all its documents."""
    return np.concatenate([tokenizer.encode(text) for text in stage.documents]).astype(np.int32)


def have_read(reader: Reader, stages: Sequence[Stage], segment: int) -> Context:
    """The context of a model that has read some stages."""
    context = nothing_read(*reader)
    for stage in stages:
        ids = tokens_of(reader.tokenizer, stage)[None]
        context = read_in_segments(reader.model, reader.params, ids, segment, context)
    return context


def ask_trained(
    stages: Sequence[Stage],
    asking: Asking,
    reader: Reader,
    places: Sequence[Place],
    training: Training,
    seed: int,
    reads: bool,
) -> Iterator[dict[str, Any]]:
    """Trains on each stage in turn, and asks in between.

    Yields:
      As `hope_jax.evaluation.stream.ask_stream`.
    """
    texts = [tokens_of(reader.tokenizer, stage) for stage in stages]
    trained = train_in_stages(reader.model, reader.params, texts, training, seed)
    for read in range(len(stages) + 1):
        params = next(trained) if read else reader.params
        here = [place for place in places if place.read == read]
        if here:
            now = reader._replace(params=params)
            context = have_read(now, stages[:read] if reads else (), asking.segment)
            yield from ask_after(stages, asking, *now, here, context)


def matrices(stages: Sequence[Stage], lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Scores by stages read and stage asked, None where not asked, for each measure."""
    as_json = lambda row: [None if math.isnan(score) else round(float(score), 4) for score in row]
    return {
        measure: [as_json(row) for row in scores_of(stages, lines, measure)]
        for measure in measures_of(stages)
    }


def scores_in(trial: Mapping[str, Any], measure: str) -> np.ndarray:
    """R of a trial."""
    return np.array(trial["scores"][measure], float)


class Experiment(NamedTuple):
    """All that trials need.

    Attributes:
      kind: of stream.
      settings: of the stream, but for its seed.
      readers: of each row.
      runs: that they are from.
      trials: where they are kept.
      training: what is not tuned of it.
      selection: seeds that choose.
      seeds: that are reported.
    """

    kind: Kind
    settings: Any
    readers: Mapping[str, Reader]
    runs: Mapping[str, str | None]
    trials: Trials
    training: Training
    selection: Sequence[int]
    seeds: Sequence[int]

    def trial(self, row: str, seed: int, readings: int, rate: float, strength: float) -> dict:
        """Runs a trial, if it is not there; of a selection seed, it asks at the end alone."""
        key = dict(
            row=row,
            run=self.runs[row],
            seed=seed,
            readings=readings,
            rate=rate,
            strength=strength,
        )
        if found := self.trials.found(**key):
            return found[0]
        how, reader = ROWS[row], self.readers[row]
        settings = dataclasses.replace(self.settings, seed=seed)
        stages = self.kind.make(settings)
        places = places_of(stages)
        if seed in self.selection:
            places = [place for place in places if place.read == len(stages)]
        begun = time.monotonic()
        if how.trains:
            training = self.training._replace(
                rate=rate,
                readings=readings,
                strength=strength,
                memory=self.training.memory if how.rehearses else 0,
            )
            lines = list(
                ask_trained(stages, settings.asking, reader, places, training, seed, how.reads)
            )
        else:
            lines = list(ask_stream(stages, settings.asking, *reader, places))
        trial = self.trials.add(
            {
                **key,
                "tokens": sum(len(tokens_of(reader.tokenizer, stage)) for stage in stages),
                "seconds": round(time.monotonic() - begun, 1),
                "names": [stage.name for stage in stages],
                "scores": matrices(stages, lines),
            }
        )
        end = {
            name: percent(float(np.mean(scores_in(trial, measure)[-1])))
            for measure, name in measures_of(stages).items()
        }
        print(f"{key}: {end} at the end, {trial['seconds']} s", flush=True)
        return trial

    def at_end(self, row: str, readings: int, strength: float, rate: float) -> float:
        """Mean average at the end over the selection seeds, of the finest measure there is."""
        ends = []
        for seed in self.selection:
            trial = self.trial(row, seed, readings, rate, strength)
            measure = list(trial["scores"])[-1]
            ends.append(float(scores_in(trial, measure)[-1].mean()))
        return statistics.fmean(ends)

    def chosen(self, row: str, readings: int) -> tuple[float, float]:
        """The rate and strength of a row."""
        if not ROWS[row].trains:
            return 0.0, 0.0
        best = (-math.inf, 0.0, 0.0)
        for strength in STRENGTHS if ROWS[row].holds else (0.0,):
            at_end = functools.partial(self.at_end, row, readings, strength)
            rate, score = climb(RATES, FIRST_RATE, at_end)
            # The first of equals, which changes least.
            best = max(best, (score, rate, strength), key=lambda one: one[0])
        return best[1:]

    def run(self, row: str, readings: int) -> None:
        """All trials of a row that are not there."""
        rate, strength = self.chosen(row, readings)
        for seed in self.seeds:
            self.trial(row, seed, readings, rate, strength)


def reported(
    trials: Trials, runs: Mapping[str, str | None], seeds: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """The reported trials of each row that has all seeds, by its name and readings, in order."""
    groups: dict[tuple[str, int, float, float], list[dict[str, Any]]] = {}
    for trial in trials.found():
        if trial["seed"] in seeds and trial["run"] == runs[trial["row"]]:
            key = tuple(trial[name] for name in ("row", "readings", "rate", "strength"))
            groups.setdefault(key, []).append(trial)
    whole = {key: group for key, group in groups.items() if len(group) == len(seeds)}
    order = sorted(whole, key=lambda key: (list(ROWS).index(key[0]), key[1]))
    return {name_of(*key[:2]): whole[key] for key in order}


def name_of(row: str, readings: int) -> str:
    """What a row is called in tables."""
    if not ROWS[row].trains:
        return row
    return f"{row}, {readings} reading{'s' * (readings > 1)}"


def table(groups: Mapping[str, Sequence[Mapping[str, Any]]], stages: Sequence[Stage]) -> str:
    """What each row keeps, in Markdown: means over seeds with standard errors."""
    lines = []
    for measure, name in measures_of(stages).items():
        lines += [
            f"**{name[0].upper()}{name[1:]}**, in per cent",
            "",
            "| row | " + " | ".join(MEASURES) + " | rate | strength | seconds |",
            "|---" * (len(MEASURES) + 4) + "|",
        ]
        for row, group in groups.items():
            cells = []
            for of in MEASURES.values():
                values = 100 * np.array([of(scores_in(trial, measure)) for trial in group])
                error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else math.nan
                cells.append(f"{values.mean():.1f} ± {error:.1f}")
            first = group[0]
            cells += [f"{first[key]:g}" if first[key] else "" for key in ("rate", "strength")]
            cells.append(f"{statistics.fmean(trial['seconds'] for trial in group):.0f}")
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def draw(
    groups: Mapping[str, Sequence[Mapping[str, Any]]], stages: Sequence[Stage], path: Path
) -> None:
    """Draws a field for each number of stages read and each stage asked, a panel for each row."""
    measure, name = list(measures_of(stages).items())[-1]
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    size = (1 + 2.4 * columns, 0.6 + 2.5 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axes in grid.flat[len(groups) :]:
        axes.set_axis_off()
    for axes, (row, group) in zip(grid.flat, groups.items(), strict=False):
        field = np.mean([scores_in(trial, measure) for trial in group], axis=0)
        axes.imshow(field, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for (read, stage), score in np.ndenumerate(field):
            if not math.isnan(score):
                color = "white" if score < 0.5 else "black"
                axes.text(
                    stage,
                    read,
                    f"{100 * score:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=color,
                )
        axes.set_title(row, fontsize=8)
        axes.set_xticks(range(len(stages)), range(1, len(stages) + 1), fontsize=7)
        axes.set_yticks(range(len(stages) + 1), range(len(stages) + 1), fontsize=7)
    for some in grid:
        some[0].set_ylabel("stages read", fontsize=8)
    figure.supxlabel("questions of stage", fontsize=8)
    figure.suptitle(f"{name} (%), mean of {len(next(iter(groups.values())))} seeds", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--stream", choices=STREAMS, default="classes")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the trials")
    parser.add_argument("--run", required=True, help="folder of the model's run")
    parser.add_argument("--levels", help="folder of the run whose levels learn while they read")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help="all, if none")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the stream")
    parser.add_argument(
        "--readings", type=int, nargs="+", default=[1, 4], help="of what is trained"
    )
    parser.add_argument("--window", type=int, default=Training(0).window, help="tokens of a piece")
    parser.add_argument("--memory", type=int, default=8, help="pieces that replay keeps")
    parser.add_argument("--seeds", type=int, default=3, help="that are reported")
    parser.add_argument("--selection", type=int, default=2, help="seeds that choose rates")
    parser.add_argument("--table", action="store_true", help="run nothing")
    given = parser.parse_args()
    kind = STREAMS[given.stream]
    try:
        config = change_settings(kind.settings, ConfigDict(as_values(kind.settings())), given.set)
        settings = read_settings(kind.settings, config.to_dict())
        stages = kind.make(settings)
    except ValueError as error:
        parser.error(str(error))
    marks = {
        "stream": zlib.crc32(repr((given.stream, dataclasses.replace(settings, seed=0))).encode()),
        "window": given.window,
        "memory": given.memory,
        "selection": given.selection,
    }
    trials = Trials(given.workdir / "trials.jsonl", marks)
    seeds = range(given.seeds)
    rows = given.rows or [row for row in ROWS if row != "levels" or given.levels]
    runs = {**dict.fromkeys(ROWS, given.run), "levels": given.levels}
    if not given.table:
        given.workdir.mkdir(parents=True, exist_ok=True)
        base = without_levels(Reader(*load_model(given.run)))
        readers = dict.fromkeys(rows, base)
        if "levels" in rows:
            if given.levels is None:
                parser.error("the row levels needs a run whose levels learn: --levels=DIR")
            readers["levels"] = Reader(*load_model(given.levels))
        experiment = Experiment(
            kind,
            settings,
            readers,
            runs,
            trials,
            Training(0.0, window=given.window, memory=given.memory),
            range(UNREPORTED, UNREPORTED + given.selection),
            seeds,
        )
        for row in rows:
            for readings in given.readings if ROWS[row].trains else [1]:
                experiment.run(row, readings)
    groups = reported(trials, runs, seeds)
    if not groups:
        parser.error(f"{trials.path} has no row with all of {given.seeds} seeds")
    shown = config_table(kind.settings, config).strip()
    made = table(groups, stages)
    write_whole(given.workdir / "results.md", f"{made}\n```\n{shown}\n```\n")
    draw(groups, stages, given.workdir / "results.png")
    print(made)


if __name__ == "__main__":
    main()
