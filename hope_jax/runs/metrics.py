"""What a run writes down: metrics.jsonl, TensorBoard files, and a picture of the losses."""

import json
import pathlib

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import tensorboardX


class MetricsWriter:
    """Writes metrics to `metrics.jsonl` and TensorBoard.

    Args:
      workdir: folder of the run.
      step: steps taken so far; lines of later steps, from a run that was cut off, are dropped.
    """

    def __init__(self, workdir: str, step: int):
        self.folder = pathlib.Path(workdir)
        self.path = self.folder / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if line["step"] <= step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a")
        self._board = tensorboardX.SummaryWriter(
            str(self.folder / "tensorboard"), purge_step=step + 1
        )

    def write(self, step: int, **values: float) -> None:
        """Writes one line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._board.close()


def read_metrics(workdir: str) -> list[dict[str, float]]:
    """Reads the lines of `metrics.jsonl`, none if there is no such file; a torn last line is left out."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def plot_losses(workdir: str) -> pathlib.Path:
    """Draws the losses in `metrics.jsonl`.

    Args:
      workdir: folder of the run.

    Returns:
      Path of the picture, `loss.png`.
    """
    lines = read_metrics(workdir)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, label in (("loss", "training"), ("validation_loss", "validation")):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            marker = "." if name == "validation_loss" else ""
            axes.plot(*zip(*points, strict=True), label=label, marker=marker)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    path = pathlib.Path(workdir) / "loss.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
