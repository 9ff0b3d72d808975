"""Processes of one run: how they find each other, and stop at the same step."""

import os
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

# Seconds until JAX itself gives up a process, amid stack traces: later than `watch_processes` does.
_LONG = 60


def join_processes(count: int) -> None:
    """Joins the other processes of the launch; call it before anything else that uses devices.

    Cloud TPUs, Slurm, Open MPI and Kubernetes tell a process who the others are. Elsewhere the
    environment does: `JAX_COORDINATOR_ADDRESS`, host and port of the first process, and
    `JAX_PROCESS_ID`, counted from 0.

    Args:
      count: `mesh.processes`; with 1 there is nobody to join.

    Raises:
      ValueError: if another number of processes is there.
    """
    if count == 1:
        return
    number = os.environ.get("JAX_PROCESS_ID")
    if number is not None and not (number.isdecimal() and int(number) < count):
        raise ValueError(
            f"JAX_PROCESS_ID={number} must be a number from 0 to {count - 1}, for mesh.processes={count}"
        )
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "host:1")
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
        raise ValueError(
            f"JAX_COORDINATOR_ADDRESS={address} must be HOST:PORT, such as 10.0.0.1:1234"
        )
    who: dict[str, Any] = (
        {} if number is None else {"num_processes": count, "process_id": int(number)}
    )
    try:
        jax.distributed.initialize(
            **who, heartbeat_timeout_seconds=_LONG, shutdown_timeout_seconds=_LONG
        )
    except ValueError as error:  # of what it knows; what it then meets are other errors
        raise ValueError(
            f"mesh.processes={count}, but nothing tells this process who the others are: set "
            f"JAX_COORDINATOR_ADDRESS=HOST:PORT, of the first, and JAX_PROCESS_ID=0 to {count - 1}, or "
            f"mesh.processes to 1"
        ) from error
    if jax.process_count() != count:
        raise ValueError(
            f"mesh.processes={count}, but of processes there are {jax.process_count()}; start the same "
            f"command on every host"
        )


class StopRequest:
    """Notes SIGINT and SIGTERM while it is entered, so that a step is finished and saved first.

    With several processes the signal may reach one of them only, and at any step; all then agree on
    a step that none of them has begun.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # JAX itself waits for the SIGTERM of one process among several, and tells the others.
        alone = jax.process_count() == 1
        for number in (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,):
            self._before[number] = signal.signal(number, self._note if alone else _terminate)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None:  # asked twice: at once
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
        self.signal = number

    @property
    def noted(self) -> bool:
        """Whether this process alone was asked to stop; among several none is alone."""
        return self.signal is not None

    def reached(self, step: int) -> bool:
        """Whether to stop before `step`; every process asks before each of its steps."""
        if jax.process_count() == 1:
            return self.noted
        return multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> None:
    del number, frame
    signal.raise_signal(signal.SIGTERM)
