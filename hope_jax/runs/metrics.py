"""What a run writes down: metrics.jsonl and TensorBoard files."""

import json
import pathlib
import time
from typing import Any, Protocol

from hope_jax.data.json_lines import read_json_lines
from hope_jax.data.whole_file import write_whole
from hope_jax.runs.folder_error import explained
from hope_jax.runs.left_out import left_out

with left_out("torch"):  # imported for a name in annotations, longer than all that a command needs
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

# What depends on the machine and its load; all else is equal to the bit when a run is cut off and goes
# on.
SPEEDS = ("tokens_per_second", "mfu", "inner_mfu", "goodput")


class AnyMetrics(Protocol):
    """What writes metrics down, or sends them somewhere, too."""

    def write(self, step: int, **values: float) -> None:
        """Writes one line."""

    def write_final(self, step: int, **values: float) -> None:
        """Writes the line of the evaluation at the end, in the place of one that is there."""

    def close(self) -> None:
        """Ends."""


class MetricsWriter:
    """Writes metrics to `metrics.jsonl` and TensorBoard; each line is handed to the system at once.

    Args:
      workdir: folder of the run.
      step: steps taken so far; lines of later steps, from a run that was cut off, are dropped, and so
        is what is no line.
    """

    def __init__(self, workdir: str, step: int):
        self.folder = pathlib.Path(workdir)
        self._lines = [line for line in read_metrics(workdir) if line["step"] <= step]
        with explained(workdir, "writing metrics"):
            self._rewrite()
            (self.folder / "tensorboard").mkdir(exist_ok=True)
            # TensorBoard reads files in the order of their names, which hold the time: here a number
            # comes before it, so that a clock that is set back changes nothing.
            number = len(list((self.folder / "tensorboard").iterdir()))
            self._board = EventsWriter(str(self.folder / "tensorboard" / f"events{number:06}"))
            # TensorBoard then forgets what earlier files say of later steps.
            start = SessionLog(status=SessionLog.START)
            self._board.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))
            self._board.flush()

    def _rewrite(self) -> None:
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        write_whole(self.folder / "metrics.jsonl", text)
        self._file = (self.folder / "metrics.jsonl").open("a")

    def write(self, step: int, **values: float) -> None:
        """Writes one line."""
        with explained(self.folder, "writing metrics"):
            self._write_board(step, values)
            self._lines.append({"step": step, **values})
            self._file.write(json.dumps(self._lines[-1]) + "\n")
            self._file.flush()

    def write_final(self, step: int, **values: float) -> None:
        """Writes the line of the evaluation at the end, in the place of one that is there."""
        line = {"step": step, **values}
        if line in self._lines:
            return
        with explained(self.folder, "writing metrics"):
            self._write_board(step, values)
            self._lines = [old for old in self._lines if not _is_final(old, line)] + [line]
            self._file.close()
            self._rewrite()

    def _write_board(self, step: int, values: dict[str, float]) -> None:
        # Before the line: then a line says that TensorBoard has it, too.
        for name, value in values.items():
            scalar = summary.scalar(name, value)
            self._board.write_event(Event(wall_time=time.time(), step=step, summary=scalar))
        self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        with explained(self.folder, "writing metrics"):
            self._file.close()
            self._board.close()


class NoMetrics:
    """Metrics of the processes that write none."""

    def write(self, step: int, **values: float) -> None:
        """Does nothing."""

    def write_final(self, step: int, **values: float) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def validation_losses(workdir: str | pathlib.Path) -> dict[int, float]:
    """The validation losses that a run has written, by step; of several of a step the last."""
    lines = read_metrics(workdir)
    return {
        int(line["step"]): line["validation_loss"] for line in lines if "validation_loss" in line
    }


def _is_final(old: dict[str, Any], line: dict[str, Any]) -> bool:
    return old["step"] == line["step"] and old.keys() == line.keys()


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, float]]:
    """Reads the lines of `metrics.jsonl`, none if there is no such file; what is no line is left out."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = (line for _, line in read_json_lines(path))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]
