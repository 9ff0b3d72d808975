"""Profiles of chosen steps, for TensorBoard and xprof."""

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from hope_jax.runs.folder_error import explained


class StepProfiler:
    """Profiles steps into the folder `profile` of a run; those that follow each other, as one.

    Args:
      workdir: folder of the run.
      steps: that are profiled; none if empty.
    """

    def __init__(self, workdir: str, steps: Collection[int]):
        self.folder, self.steps = Path(workdir) / "profile", frozenset(steps)
        self._runs = False

    def begin(self, step: int) -> contextlib.AbstractContextManager[Any]:
        """A context for the work of a step, whose number the profile then shows."""
        if step not in self.steps:
            return contextlib.nullcontext()
        if not self._runs:
            with explained(self.folder.parent, "writing a profile"):
                jax.profiler.start_trace(self.folder)
            self._runs = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def end(self, step: int, values: Any) -> None:
        """Writes the profile if the next step is none of it; waits then for what the step gives."""
        if self._runs and step + 1 not in self.steps:
            jax.block_until_ready(values)
            self.close()

    def close(self) -> None:
        """Writes what there is."""
        if self._runs:
            self._runs = False
            with explained(self.folder.parent, "writing a profile"):
                jax.profiler.stop_trace()
