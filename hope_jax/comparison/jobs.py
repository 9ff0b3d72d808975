"""Runs of a comparison, one after the other or several at once."""

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from types import FrameType

from hope_jax.comparison.plan import Trial


class TrialError(RuntimeError):
    """Raised when a run has failed otherwise than by divergence."""


def run_trials(
    trials: Iterable[Trial],
    jobs: int,
    work: Callable[[Trial], bool],
    done: Callable[[Trial], None],
) -> bool:
    """Runs trials, each in a process of its own if several go on at once.

    Those share the cores of a CPU evenly, and the memory of another device. What a run prints is then
    in `output.txt` in its folder.

    Args:
      trials: to run.
      jobs: how many go on at once.
      work: runs one, and says whether it has come to its end; a function of a module, or a `partial`
        of one, so that other processes find it.
      done: called with each that has ended.

    Returns:
      Whether all have; they have not if this process was asked to stop. What was under way is saved.

    Raises:
      TrialError: if a run has failed; the others were stopped and are saved.
    """
    if jobs == 1:
        for trial in trials:
            with contextlib.redirect_stdout(io.StringIO()):
                ended = work(trial)
            if not ended:
                return False
            done(trial)
        return True
    return _Processes(jobs, work, done).run(list(trials))


class _Processes:
    def __init__(self, jobs: int, work: Callable[[Trial], bool], done: Callable[[Trial], None]):
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.free = [set(cores[index::jobs]) for index in range(jobs)]
        self.share = 0.9 / jobs
        self.work, self.done = work, done
        self.running: dict[int, tuple[SpawnProcess, Trial, set[int]]] = {}
        self.stopped = False

    def run(self, trials: list[Trial]) -> bool:
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._stop)
        failed: Trial | None = None
        try:
            while self.running or (trials and not self.stopped):
                while trials and self.free and not self.stopped:
                    self._start(trials.pop(0))
                for sentinel in connection.wait(list(self.running)):
                    process, trial, cores = self.running.pop(int(sentinel))  # type: ignore[arg-type]
                    process.join()
                    self.free.append(cores)
                    if process.exitcode == 0:
                        self.done(trial)
                    else:
                        if not self.stopped and process.exitcode != _UNFINISHED:
                            failed = trial
                        self._stop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if failed is not None:
            raise TrialError(
                f"the run {failed} has failed; {failed.folder / 'output.txt'} says why"
            )
        return not self.stopped

    def _start(self, trial: Trial) -> None:
        cores = self.free.pop(0)
        process = multiprocessing.get_context("spawn").Process(
            target=_in_process, args=(self.work, trial, cores, self.share)
        )
        process.start()
        self.running[process.sentinel] = (process, trial, cores)

    def _stop(self, number: int = 0, frame: FrameType | None = None) -> None:
        del number, frame
        if not self.stopped:  # a second time would end them at once
            self.stopped = True
            for process, _, _ in self.running.values():
                process.terminate()


# Exit code of a process whose run was stopped and saved.
_UNFINISHED = 75


def _in_process(work: Callable[[Trial], bool], trial: Trial, cores: set[int], share: float) -> None:
    os.setsid()  # Ctrl-C is for the one that has begun this, which passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if cores:
        os.sched_setaffinity(0, cores)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{share:.3f}")
    trial.folder.mkdir(parents=True, exist_ok=True)
    output = os.open(trial.folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    sys.exit(0 if work(trial) else _UNFINISHED)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
