"""Metrics that are also sent to Weights & Biases."""

import importlib
import secrets
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from hope_jax.data.whole_file import write_whole
from hope_jax.runs.folder_error import explained
from hope_jax.runs.metrics import MetricsWriter

_FILE = "wandb.txt"


def find_wandb(project: str) -> Any:
    """The library, before anything else is begun.

    Args:
      project: `log.wandb`.

    Raises:
      ValueError: if it is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ValueError(
            f"log.wandb={project!r} needs Weights & Biases: pip install wandb, or set log.wandb to ''"
        ) from error


class WandbMetrics:
    """Writes metrics as a writer does, and sends them to Weights & Biases, too.

    A run that goes on is the same run there: its name is kept in the run's folder. Lines of steps that
    are taken again after a kill are not sent again: they are equal.

    Args:
      metrics: that writes them to the folder.
      library: of `find_wandb`.
      config: whole, of the run.
    """

    def __init__(self, metrics: MetricsWriter, library: Any, config: ConfigDict):
        self.metrics, folder = metrics, Path(metrics.folder)
        with explained(folder, "writing the name of the run at Weights & Biases"):
            if not (folder / _FILE).is_file():
                write_whole(folder / _FILE, secrets.token_hex(8) + "\n")
            name = (folder / _FILE).read_text().strip()
        self._run = library.init(
            project=config.log.wandb,
            id=name,
            name=folder.absolute().name,
            dir=str(folder),
            config=config.to_dict(),
            resume="allow",
        )
        self._sent = int(self._run.step)

    def write(self, step: int, **values: float) -> None:
        """Writes one line."""
        self.metrics.write(step, **values)
        self._send(step, values)

    def write_final(self, step: int, **values: float) -> None:
        """Writes the line of the evaluation at the end, in the place of one that is there."""
        self.metrics.write_final(step, **values)
        self._send(step, values)

    def _send(self, step: int, values: dict[str, float]) -> None:
        if step >= self._sent:
            self._run.log(values, step=step)
            self._sent = step

    def close(self) -> None:
        """Closes the files, and ends what is sent."""
        self.metrics.close()
        self._run.finish()
