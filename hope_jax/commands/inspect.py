"""Shows what learning in context does: `hope inspect --workdir=DIR --text=FILE`.

Draws, for a text, the loss by position with and without updates, and for each frequency of levels
the distance of its weights from where they began and the size of their changes, both over the norm of
the slow weights. A level whose distance stays at nothing does not learn; one that levels off is
saturated; one that grows without end, while the loss rises above that without updates, diverges.
Writes `inspect.png` and `inspect.md` to the run's folder, or to --output.
"""

from pathlib import Path

import matplotlib
import numpy as np
from absl import flags

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hope_jax.commands.evaluate import read_text
from hope_jax.commands.trained_model import load_model
from hope_jax.data.whole_folder import check_writable
from hope_jax.inference.level_trace import LevelTrace, trace_levels
from hope_jax.runs.checkpoint_reader import run_and_step
from hope_jax.runs.fetch import fetch_run


def table(trace: LevelTrace, rows: int = 10) -> str:
    """The trace in so many stretches of the text, as Markdown."""
    size, levels = trace.chunks[0], len(trace.chunks)
    heads = ["tokens", "loss", "without updates"]
    heads += [f"distance at {chunk}" for chunk in trace.chunks]
    heads += [f"largest change at {chunk}" for chunk in trace.chunks]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    edges = np.unique(np.linspace(0, len(trace.distance), rows + 1).astype(int))
    for first, last in zip(edges, edges[1:], strict=False):
        span = slice(first * size, min(last * size, len(trace.losses)))
        cells = [f"{span.start} to {span.stop}"]
        cells += [f"{part[span].mean():.4f}" for part in (trace.losses, trace.plain_losses)]
        cells += [f"{trace.distance[last - 1, level]:.2e}" for level in range(levels)]
        cells += [f"{trace.change[first:last, level].max():.2e}" for level in range(levels)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(trace: LevelTrace, path: Path) -> None:
    """The trace as a picture."""
    size = trace.chunks[0]
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(7, 8), sharex=True, layout="constrained"
    )
    span = max(size, len(trace.losses) // 100)
    starts = np.arange(0, len(trace.losses), span)
    for losses, name in ((trace.losses, "with updates"), (trace.plain_losses, "without")):
        counts = np.diff(np.append(starts, len(losses)))
        top.plot(starts + counts / 2, np.add.reduceat(losses, starts) / counts, label=name)
    top.set(ylabel="loss (nats per token)")
    places = size * (1 + np.arange(len(trace.distance)))
    for level, chunk in enumerate(trace.chunks):
        middle.plot(places, trace.distance[:, level], label=f"every {chunk} tokens")
        changed = trace.change[:, level] > 0
        bottom.plot(places[changed], trace.change[changed, level], ".-", label=f"every {chunk}")
    middle.set(ylabel="distance from slow weights")
    bottom.set(ylabel="size of a change", xlabel="tokens read")
    if (trace.change > 0).any():
        bottom.set_yscale("log")
    for axes in (top, middle, bottom):
        axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


UNEXPECTED = "give the file as --text=FILE"


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", None, "Folder of the training run.", required=True)
    flags.DEFINE_string("text", None, "File to read.", required=True)
    flags.DEFINE_string(
        "output", None, "Folder of picture and table; that of the run if not given."
    )


def run() -> None:
    """Runs the command."""
    given = flags.FLAGS
    text = read_text(given.text)
    workdir = fetch_run(given.workdir)
    folder = Path(given.output or run_and_step(workdir)[0])
    check_writable(folder / "inspect.md", "--output" if given.output else "--workdir")
    model, params, tokenizer = load_model(workdir)
    ids = np.asarray([*tokenizer.before, *tokenizer.encode(text)], np.int32)
    trace = trace_levels(model, params, ids)
    folder.mkdir(parents=True, exist_ok=True)
    draw(trace, folder / "inspect.png")
    lines = table(trace)
    (folder / "inspect.md").write_text(lines)
    print(lines + f"drawn in {folder / 'inspect.png'}")
