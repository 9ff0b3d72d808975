"""Wakes and sleeps in turn on a stream of text: `hope live --workdir=DIR --files='stream/**/*.txt'`.

A reader goes through the files in the order of their names, as one text. Before a level's next slower one
changes, it sleeps: what it has learned moves into an expert beside that. Where a level sleeps is said by
`nights`, by default the chunk size of the next slower one.

The reader is in the file `--state`, by default `live.msgpack` in the run's folder: it is taken up where
there is one, and the file holds at the end what it has become. `hope generate` and `hope evaluate` take
it like any state. A table and a picture of loss and nights lie beside it, with the endings `.live.json`
and `.live.png`. What is interrupted anywhere, also in a night, goes on when the same command is given
again, to the same bits; until then, how far it has come is in `FILE.live`.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from rich.console import Console

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hope_jax.commands.config import (
    change_settings,
    config_table,
    define_config_flags,
    read_config,
)
from hope_jax.commands.evaluate import read_text
from hope_jax.commands.generate import check_states
from hope_jax.commands.nights import (
    NightConfig,
    begin,
    define_night_flags,
    digest_of,
    dropped,
    in_use,
    optimizer_of,
    plain,
    rehearsed_of,
    stopping,
)
from hope_jax.commands.trained_model import load_model
from hope_jax.counts import count
from hope_jax.data.corpus import named_paths, read_documents
from hope_jax.data.token_stream import encode_document
from hope_jax.data.tokenizers import Tokenizer
from hope_jax.data.whole_file import write_whole
from hope_jax.inference.array_file import named_leaves
from hope_jax.inference.context_file import (
    context_content,
    context_of_arrays,
    fingerprint,
    load_context,
)
from hope_jax.inference.sampling import Context
from hope_jax.models.language_model import init_state
from hope_jax.runs.fetch import fetch_run
from hope_jax.settings import as_values, read_settings, setting
from hope_jax.sleep.cycle import Night, NightSoFar
from hope_jax.sleep.expansion import FullError, make_room
from hope_jax.sleep.life import Life, block_size, levels_due, live, night_periods, tokens_read
from hope_jax.sleep.progress_file import ProgressFile, leaves_of, numbered
from hope_jax.training.config import MeshSizes
from hope_jax.training.sharding import make_mesh, on_mesh


@dataclasses.dataclass(frozen=True)
class LiveConfig(NightConfig):
    """Nights that come in the middle of a text."""

    keep_context: bool = setting(
        "whether what attention and memories hold is kept over a night; else it is forgotten", True
    )
    nights: tuple[int, ...] | None = setting(
        "tokens after which each level sleeps, fastest first; None for the chunk size of the next slower "
        "level, and `experts` times its own for the slowest",
        None,
        least=1,
    )
    mesh: MeshSizes = setting("the devices", MeshSizes())


class Stream:
    """Documents one after the other as tokens, in blocks; it knows by a digest what it has given.

    Args:
      files: pattern of files.
      tokenizer: of their text.
      first: tokens of the first block.
      size: of the others; the last may be shorter.

    Attributes:
      digest: of all tokens given.
      last_bytes: of text, for which the last block stands: those of a document are shared out evenly.
    """

    def __init__(self, files: str, tokenizer: Tokenizer, first: int, size: int):
        self.digest, self.last_bytes = hashlib.sha256(), 0.0
        self._documents = read_documents([files])
        self._tokenizer, self._first, self._size = tokenizer, first, size

    def __iter__(self) -> Iterator[np.ndarray]:
        ids, weights, size = np.zeros(0, np.int32), np.zeros(0), self._first
        for _, text in self._documents:
            more = np.asarray(encode_document(text, self._tokenizer), np.int32)
            ids = np.concatenate([ids, more])
            each = len(text) / max(1, len(more))
            weights = np.concatenate([weights, np.full(len(more), each)])
            while len(ids) >= size:
                yield self._given(ids[:size], weights[:size])
                ids, weights, size = ids[size:], weights[size:], self._size
        if len(ids):
            yield self._given(ids, weights)

    def _given(self, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
        self.digest.update(np.ascontiguousarray(ids).tobytes())
        self.last_bytes = float(weights.sum())
        return ids[None]


def new_report() -> dict[str, Any]:
    """The report of a life in which nothing has happened."""
    return {"reading": [], "nights": []}


def note_reading(
    report: dict[str, Any], life: Life, losses: np.ndarray, size: float, of: int
) -> None:
    """Adds a block to the report, in which there is a row for every `of` tokens."""
    rows, place = report["reading"], (life.position - 1) // of
    if not rows or (rows[-1]["position"] - 1) // of != place:
        rows.append({"position": 0, "tokens": 0, "bytes": 0.0, "nats": 0.0})
    row = rows[-1]
    row["position"] = life.position
    row["tokens"] += int(losses.size)
    row["bytes"] += size
    row["nats"] += float(losses.sum(dtype=np.float64))
    row["bits_per_byte"] = row["nats"] / math.log(2) / max(row["bytes"], 1e-9)


def note_night(report: dict[str, Any], life: Life, level: int, night: Night) -> dict[str, Any]:
    """Adds a night to the report."""
    row = {
        "position": life.position,
        "level": level,
        "kept": night.kept,
        "before": float(night.before[0]),
        "after": float(night.after[0]),
    }
    report["nights"].append(row)
    return row


def draw(report: dict[str, Any], path: Path) -> None:
    """Loss and nights over the stream, as a picture."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    reading = report["reading"]
    axes.plot(*([row[name] for row in reading] for name in ("position", "bits_per_byte")), ".-")
    for night in report["nights"]:
        colour = f"C{1 + night['level']}" if night["kept"] else "0.8"
        axes.axvline(night["position"], color=colour, linewidth=0.8, linestyle=":")
    for level in sorted({night["level"] for night in report["nights"]}):
        axes.plot([], [], ":", color=f"C{1 + level}", label=f"nights of level {level}")
    if report["nights"]:
        axes.legend()
    axes.set(xlabel="tokens read", ylabel="bits per byte")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def summary(report: dict[str, Any]) -> str:
    """The report in a few lines."""
    reading, nights = report["reading"], report["nights"]
    tokens, size, nats = (sum(row[name] for row in reading) for name in ("tokens", "bytes", "nats"))
    bits = nats / math.log(2) / max(size, 1e-9)
    lost = sum(not night["kept"] for night in nights)
    slept = count(len(nights), "night") + (f", {lost} of them dropped" if lost else "")
    return f"{count(tokens, 'token')} read at {bits:.4f} bits per byte, {slept}"


UNEXPECTED = "quote patterns: --files='a/**/*.txt'"


def define_flags() -> None:
    """Defines the command's flags."""
    define_config_flags()
    flags.DEFINE_string("workdir", None, "Folder of the training run.")
    flags.DEFINE_string("files", None, "Pattern of the files that are read.")
    flags.DEFINE_string("state", None, "File of the reader (default: WORKDIR/live.msgpack).")
    define_night_flags()


def run() -> None:
    """Runs the command."""
    given = flags.FLAGS
    config = ConfigDict() if given.config is None else read_config(given.config)
    settings = read_settings(LiveConfig, change_settings(LiveConfig, config, given.set))
    if given.print_config:
        print(config_table(LiveConfig, ConfigDict(as_values(settings))), end="")
        return
    if not given.workdir or not given.files:
        raise ValueError("give the folder of the run as --workdir=DIR, and --files=PATTERN")
    if settings.level:
        raise ValueError(f"level={settings.level}: the schedule says who sleeps; see nights")
    named_paths(given.files)
    other = None if given.rehearse is None else read_text(given.rehearse, "--rehearse")
    workdir = fetch_run(given.workdir)
    state_file = Path(given.state or Path(workdir) / "live.msgpack")
    check_states(None, str(state_file))
    progress = ProgressFile(Path(f"{state_file}.live"), given.save_every)
    report_file = state_file.with_suffix(".live.json")
    there = str(state_file) if state_file.is_file() else None
    if progress.held is not None and there and progress.held["end"] == digest_of(there):
        progress.delete()
        print(f"this stream was at its end, and only its progress was left; see {report_file}")
        return
    optimizer, mesh = optimizer_of(settings), make_mesh(**dataclasses.asdict(settings.mesh))
    model, params, tokenizer = load_model(workdir, mesh)
    periods = night_periods(model.config, settings.experts, settings.nights)
    rehearsed = rehearsed_of(other, given.rehearse, tokenizer, settings)
    arguments = {
        "--state": digest_of(there),
        "--rehearse": digest_of(given.rehearse),
        "the model": fingerprint(params),
        "--seed": given.seed,
        **plain(settings),
        "nights": list(periods),
    }
    del arguments["experts"]  # more room changes nothing of what was
    held = progress.go_on(arguments)
    if there is not None:
        context = load_context(there, model, params)
    else:
        # Nothing foretells the first token: all are as likely.
        blank = jnp.zeros((1, model.config.vocab_size), jnp.float32)
        context = Context(init_state(model, params, 1), blank)
    start = tokens_read(model, context.state)
    size = block_size(periods)
    stream = Stream(given.files, tokenizer, size - start % size, size)
    # Who was taken up at such a place has slept there.
    life, report = Life(context, start, len(levels_due(periods, start))), new_report()
    blocks, console = iter(stream), Console(soft_wrap=True)
    if held is not None:
        life, report = restored(held, progress.path, model, params), json.loads(held["report"])
        position = start
        while position < life.position and (block := next(blocks, None)) is not None:
            position += block.shape[1]
        if stream.digest.hexdigest() != held["stream"]:
            raise ValueError(
                f"--files={given.files} does not begin with the text that was read before; put that "
                f"back, or delete {progress.path} to begin anew"
            )
        console.print(f"going on at token {life.position:,}, as {progress.path} says")

    room = make_room(model, life.context.state, settings.experts, settings.expert_width)
    life = life._replace(context=life.context._replace(state=room))
    latest = life

    def write(now: Life, end: str | None = None) -> None:
        """Keeps how far the reader has come, at the end with a digest of what it has become."""
        words = {
            "report": json.dumps(report),
            "stream": stream.digest.hexdigest(),
            "position": now.position,
            "slept": now.slept,
            "end": end,
        }
        arrays = {f"context {name}": leaf for name, leaf in named_leaves(now.context).items()}
        if now.night is not None:
            arrays |= numbered(now.night, "night ")
        progress.keep(arguments, words, arrays)

    with (
        on_mesh(mesh),
        console.status("reading (compiles first)") as status,
        stopping(progress) as keep,
    ):

        def came_to(now: Life) -> None:
            nonlocal latest
            latest = now
            keep(lambda: write(now))

        def on_read(now: Life, losses: np.ndarray) -> None:
            note_reading(report, now, losses, stream.last_bytes, periods[0])
            row = report["reading"][-1]
            said = f"token {now.position:,}  {row['bits_per_byte']:.4f} bits per byte"
            status.update(said)
            if now.position % periods[0] == 0:
                console.print(said)
            came_to(now)

        def on_step(now: Life, level: int, so_far: NightSoFar) -> None:
            divergence = float(so_far.steps.divergence[-1, 0])
            step = f"step {len(so_far.steps.loss)}/{settings.steps}  divergence {divergence:.4f}"
            status.update(f"night of level {level} at token {now.position:,}  {step}")
            came_to(now)

        def on_night(now: Life, level: int, night: Night) -> None:
            row = note_night(report, now, level, night)
            said = f"divergence {row['before']:.4f} before, {row['after']:.4f} after"
            said = (
                said if night.kept else f"{dropped(night)}; all is as it was, and reading goes on"
            )
            console.print(f"night of level {level} at token {now.position:,}: {said}")
            came_to(now)

        try:
            life = live(
                model,
                params,
                life,
                blocks,
                periods,
                jax.random.key(given.seed),
                settings,
                optimizer,
                rehearsed=rehearsed,
                vocab_size=tokenizer.vocab_size,
                wake=lambda woken: (
                    woken if settings.keep_context else begin(model, params, tokenizer, woken)
                ),
                on_read=on_read,
                on_step=on_step,
                on_night=on_night,
            )
        except FullError as error:
            write(latest)
            kept = ",".join(map(str, periods))
            raise ValueError(
                f"{error}, and give --config.nights={kept}; it then goes on from token "
                f"{latest.position:,}"
            ) from error
    write_whole(report_file, json.dumps(report, indent=1) + "\n")
    draw(report, state_file.with_suffix(".live.png"))
    content = context_content(life.context, model, params)
    write(life, end=hashlib.sha256(content).hexdigest())
    write_whole(state_file, content)
    progress.delete()
    print(f"{summary(report)}\n{in_use(model, life.context.state)}")


def restored(held: dict[str, Any], path: Path, model: Any, params: Any) -> Life:
    """The life that was kept in a file."""
    arrays, mark = held["arrays"], "context "
    named = {name[len(mark) :]: leaf for name, leaf in arrays.items() if name.startswith(mark)}
    context = context_of_arrays(path, named, model, params)
    return Life(context, held["position"], held["slept"], leaves_of(arrays, "night "))
