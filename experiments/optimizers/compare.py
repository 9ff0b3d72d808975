"""AdamW, Muon, M3 and relatives on small models, each at its own best learning rate.

    python experiments/optimizers/compare.py language --folder=runs/language
    python experiments/optimizers/compare.py plain --folder=runs/plain --rows adamw muon m3
    python experiments/optimizers/compare.py language --folder=runs/long --times=10 --rows muon m3

Tasks are in tasks.py, rows below. All rows have the same seeds, batches, steps, warm-up, cosine decay
to a twentieth and no weight decay. Learning rates lie on a grid of factor 1.6: each row walks
over it from where it begins until the best, by the mean held-out loss of the selection seeds, has a worse
one on either side. Then five other seeds are run at that rate, which the table reports, with differences
from a baseline seed by seed and their standard errors. Every run is a line of FOLDER/runs.jsonl, so
that a command that is stopped and given again goes on. Writes FOLDER/TASK.md and FOLDER/TASK.png.
"""

import argparse
import functools
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from tasks import Task, language, plain, vision

from hope_jax.comparison.picture import draw_rows
from hope_jax.comparison.plan import Trial
from hope_jax.comparison.table import line_of
from hope_jax.comparison.trial import Result
from hope_jax.optim import m3

TASKS = {"language": language, "plain": plain, "vision": vision}
CHUNK = 25  # steps compiled together
SELECTION, REPORTED = (0, 1), (2, 3, 4, 5, 6)
CENTRE, FACTOR = 0.02, 1.6


class Row(NamedTuple):
    """An optimiser.

    Attributes:
      about: what it is, in words.
      start: where on the grid of learning rates the walk begins.
      make: from the task and a schedule.
    """

    about: str
    start: int
    make: Callable[[Task, optax.Schedule], optax.GradientTransformation]


def m3_row(about: str, **options: Any) -> Row:
    return Row(
        about,
        1,
        lambda task, rate: m3(
            rate,
            **{"adam_b2": 0.99, "weight_dimension_numbers": task.dimension_numbers, **options},
        ),
    )


ROWS = {
    "adamw": Row(
        "optax.adamw", -2, lambda task, rate: optax.adamw(rate, b2=0.99, weight_decay=0.0)
    ),
    "nadamw": Row(
        "optax.nadamw", -2, lambda task, rate: optax.nadamw(rate, b2=0.99, weight_decay=0.0)
    ),
    "ademamix": Row(
        # Its own default, b3 = 0.9999, remembers far more steps than these runs have.
        "optax.contrib.ademamix, b3 0.99",
        -4,
        lambda task, rate: optax.contrib.ademamix(rate, b2=0.99, b3=0.99),
    ),
    "muon as it comes": Row(
        "optax.contrib.muon, which takes every two-dimensional leaf for a matrix",
        1,
        lambda task, rate: optax.contrib.muon(rate, adam_b2=0.99, consistent_rms=0.2),
    ),
    "muon": Row(
        "optax.contrib.muon on the leaves that M3 has",
        1,
        lambda task, rate: optax.contrib.muon(
            rate,
            adam_b2=0.99,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=task.dimension_numbers,
        ),
    ),
    "m3": m3_row("m3 by default"),
    "m3 of 0.1": m3_row(
        "alpha 0.5, slow_every 16, b3 0.9, no Nesterov",
        alpha=0.5,
        slow_every=16,
        b3=0.9,
        nesterov=False,
    ),
    "0.5 / 16 / 0.9": m3_row("alpha 0.5, slow_every 16, b3 0.9", alpha=0.5, slow_every=16, b3=0.9),
    "0": m3_row("alpha 0: no slow momentum", alpha=0),
    "0, no nesterov": m3_row("alpha 0, no Nesterov", alpha=0, nesterov=False),
    "0, no V": m3_row("alpha 0, no second moment: Muon", alpha=0, second_moment="none"),
    "0, V of update": m3_row(
        "alpha 0, second moment of the update", alpha=0, second_moment="update"
    ),
    **{
        f"{alpha} / {every} / {b3}": m3_row(
            f"alpha {alpha}, slow_every {every}, b3 {b3}: remembers some {every / (1 - b3):.0f} steps",
            alpha=alpha,
            slow_every=every,
            b3=b3,
        )
        for alpha in (0.1, 0.2, 0.5, 1.0)
        for every, b3 in ((2, 0.5), (4, 0.75), (8, 0.75), (16, 0.75))
    },
    "0.2 / 4 / 0.75, no V": m3_row(
        "alpha 0.2, slow_every 4, b3 0.75, no second moment",
        alpha=0.2,
        slow_every=4,
        b3=0.75,
        second_moment="none",
    ),
}


def runner(
    task: Task, row: Row, steps: int, warmup: int
) -> Callable[[float, int], tuple[float, list[tuple[int, float]]]]:
    """A function that compiles once: (learning rate, seed) -> held-out loss and training losses."""

    def optimizer(rate: Any) -> optax.GradientTransformation:
        schedule = optax.warmup_cosine_decay_schedule(
            0.0 if warmup else 1.0, 1.0, warmup, steps, 0.05
        )
        return row.make(task, lambda count: rate * schedule(count))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def chunk(params: Any, state: Any, key: jax.Array, rate: jax.Array) -> tuple[Any, Any, Any]:
        def step(carry, key):
            params, state = carry
            loss, gradients = jax.value_and_grad(task.loss)(params, task.batch(key))
            updates, state = optimizer(rate).update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), loss

        (params, state), losses = jax.lax.scan(step, (params, state), jax.random.split(key, CHUNK))
        return params, state, losses

    init = jax.jit(lambda key: (lambda p: (p, optimizer(1.0).init(p)))(task.init(key)))
    evaluate = jax.jit(task.loss)

    def run(rate: float, seed: int) -> tuple[float, list[tuple[int, float]]]:
        params, state = init(jax.random.key(seed))
        losses: list[float] = []
        for index in range(steps // CHUNK):
            key = jax.random.fold_in(jax.random.key(1000 + seed), index)
            params, state, some = chunk(params, state, key, rate)
            losses += np.asarray(some).tolist()
        held_out = float(np.mean([evaluate(params, data) for data in task.held_out]))
        curve = [
            (end, statistics.mean(losses[end - CHUNK : end]))
            for end in range(CHUNK, len(losses) + 1, CHUNK)
        ]
        return held_out if math.isfinite(held_out) else math.inf, curve

    return run


def rate_at(place: int) -> float:
    """A learning rate of the grid, in three digits."""
    return float(f"{CENTRE * FACTOR**place:.3g}")


class Runs:
    """Runs that are made once and written down."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        lines = path.read_text().splitlines() if path.is_file() else []
        self.done: dict[tuple[Any, ...], dict[str, Any]] = {}
        for line in map(json.loads, lines):
            self.done[self._key(line)] = line

    @staticmethod
    def _key(line: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(line[name] for name in ("task", "steps", "warmup", "row", "rate", "seed"))

    def get(self, run: Callable[[float, int], Any], **about: Any) -> dict[str, Any]:
        key = self._key(about)
        if key not in self.done:
            start = time.perf_counter()
            loss, curve = run(about["rate"], about["seed"])
            seconds = time.perf_counter() - start
            line = {**about, "loss": loss, "seconds": round(seconds, 2), "curve": curve}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self.done[key] = line
            print(json.dumps({**about, "loss": round(loss, 4)}), flush=True)
        return self.done[key]


def walk(start: int, loss_at: Callable[[int], float]) -> int:
    """The place of a grid whose loss is below that of either side.

    Example:
      >>> walk(0, lambda place: (place - 4) ** 2)
      4
    """
    losses = {place: loss_at(place) for place in (start - 1, start, start + 1)}
    while True:
        best = min(losses, key=lambda place: losses[place])
        beyond = [place for place in (best - 1, best + 1) if place not in losses]
        if not beyond:
            return best
        losses[beyond[0]] = loss_at(beyond[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--baseline", default="muon", choices=list(ROWS), metavar="ROW")
    parser.add_argument("--warmup", type=int, default=40)
    parser.add_argument("--times", type=int, default=1, help="times as many steps")
    parser.add_argument(
        "--start", type=int, default=0, help="places by which all walks begin higher"
    )
    given = parser.parse_args()
    rows = list(dict.fromkeys([given.baseline, *given.rows]))
    task = TASKS[given.task]()
    steps = given.times * task.steps
    given.folder.mkdir(parents=True, exist_ok=True)
    runs = Runs(given.folder / "runs.jsonl")
    results: dict[str, list[Result]] = {}
    seconds: dict[str, float] = {}
    for name in rows:
        row = ROWS[name]
        run = runner(task, row, steps, given.warmup)
        about = {"task": given.task, "steps": steps, "warmup": given.warmup, "row": name}
        get = lambda rate, seed: runs.get(run, **about, rate=rate, seed=seed)  # noqa: B023
        best = walk(
            row.start + given.start,
            lambda place: statistics.mean(get(rate_at(place), seed)["loss"] for seed in SELECTION),  # noqa: B023
        )
        lines = [get(rate_at(best), seed) for seed in REPORTED]
        seconds[name] = statistics.median(line["seconds"] for line in lines)
        results[name] = [
            Result(
                Trial(name, (("rate", rate_at(best)),), line["seed"], given.folder, {}),
                line["loss"],
                line["curve"],
                math.nan,
            )
            for line in lines
        ]
        write(given, task, steps, results, seconds)
        jax.clear_caches()


def write(
    given: argparse.Namespace,
    task: Task,
    steps: int,
    results: dict[str, list[Result]],
    seconds: dict[str, float],
) -> None:
    count = sum(x.size for x in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0))))
    base = results[given.baseline]
    lines = [line_of(row, own[0].trial.tuned, (), own, base, own) for row, own in results.items()]
    folder, name = given.folder, given.task
    options = f" --warmup={given.warmup}" if given.warmup != 40 else ""
    options += f" --times={given.times}" if given.times != 1 else ""
    quoted = " ".join(f"'{row}'" if " " in row else row for row in results)
    text = [
        f"{name}: {count:,} parameters, {task.size}, {steps} steps, {given.warmup} of warm-up.",
        "",
        "```",
        f"python experiments/optimizers/compare.py {name} --folder={folder}{options} --rows {quoted}",
        "```",
        "",
        f"| row | what it is | learning rate | held-out loss | minus {given.baseline} | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for line in sorted(lines, key=lambda line: line.loss.mean):
        rate = dict(line.tuned or ())["rate"]
        minus = "" if line.row == given.baseline else str(line.difference)
        text.append(
            f"| {line.row} | {ROWS[line.row].about} | {rate:g} | {line.loss} | {minus} | "
            f"{seconds[line.row]:.1f} |"
        )
    text += [
        "",
        f"Nats per prediction, held out; mean and standard error over seeds {REPORTED}. The rate, of a "
        f"grid of factor {FACTOR}, is that of the least mean over seeds {SELECTION}, which are not "
        "reported; it has a worse one on either side. Seconds are of one core beside other work.",
        "",
        f"![Rows]({name}.png)",
    ]
    (folder / f"{name}.md").write_text("\n".join(text) + "\n")
    draw_rows(lines, given.baseline, folder / f"{name}.png")


if __name__ == "__main__":
    main()
