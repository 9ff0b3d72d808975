"""The picture of a run's losses."""

import pathlib

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from jaxtyping import Float

from hope_jax.runs.folder_error import explained
from hope_jax.runs.metrics import read_metrics

# A mean is over this share of the run's lines; where that is fewer than _FEWEST, there is none.
_SHARE = 30
_FEWEST = 3


def plot_losses(workdir: str) -> pathlib.Path:
    """Draws the losses in `metrics.jsonl`, single batches faint and their running mean strong.

    The lines differ in more than colour, so that a print in grey can be read. A run of few steps is
    drawn as it is.

    Args:
      workdir: folder of the run.

    Returns:
      Path of the picture, `loss.png`.
    """
    lines = read_metrics(workdir)
    training, validation = (
        np.array([(line["step"], line[name]) for line in lines if name in line]).reshape(-1, 2).T
        for name in ("loss", "validation_loss")
    )
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    steps, losses = training
    count = len(steps) // _SHARE
    if count >= _FEWEST:
        axes.plot(steps, losses, color="0.75", linewidth=0.8, label="training, single batches")
        span = count * float(np.median(np.diff(steps)))
        label = f"training, mean of {span:,.0f} steps"
        axes.plot(steps, running_mean(losses, count), color="C0", linewidth=2, label=label)
    elif len(steps):
        axes.plot(steps, losses, color="C0", label="training")
    if validation.size:
        axes.plot(*validation, "o--k", linewidth=1, markerfacecolor="white", label="validation")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.set_title(_title(workdir, lines), parse_math=False)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    path = pathlib.Path(workdir) / "loss.png"
    with explained(workdir, "drawing the losses"):
        figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def running_mean(values: Float[np.ndarray, " N"], count: int) -> Float[np.ndarray, " N"]:
    """The mean of `count` values around each, fewer at both ends.

    Example:
      >>> running_mean(np.array([0.0, 3.0, 6.0, 3.0]), 3).tolist()
      [1.5, 3.0, 4.0, 4.5]
    """
    window = np.ones(count)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def _title(workdir: str, lines: list[dict[str, float]]) -> str:
    """The run's name, and how good it was at last."""
    name = pathlib.Path(workdir).absolute().name
    measured = [line for line in lines if "validation_loss" in line]
    if not measured:
        return name
    last = measured[-1]
    bits = f", {last['bits_per_byte']:.3f} bits per byte" if "bits_per_byte" in last else ""
    loss = f"validation {last['validation_loss']:.3f} nats per token"
    return f"{name}: {loss}{bits} at step {last['step']:,}"
