"""Processes of one run: how they find each other, stop at the same step, and end together."""

import contextlib
import os
import secrets
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Seconds without a word from a host, which may have lost power or network, until it is given up.
_SILENCE = 30
# Seconds that a process which has heard of another's failure has to fail of itself, as all do when
# settings do not fit, and say why.
_GRACE = 10
_ALIVE, _DONE, _FAILED = b"a", b"d", b"f"


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
            **who, heartbeat_timeout_seconds=_SILENCE, shutdown_timeout_seconds=_SILENCE
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


@contextlib.contextmanager
def watch_processes() -> Iterator[None]:
    """Ends this process, with one line and code 1, as soon as another of the launch is lost within.

    JAX itself notices a dead process too, but waits in a collective or a barrier for up to minutes,
    and then aborts amid stack traces. Here the first process has a connection to each of the others,
    which the system closes when either end dies.
    """
    if jax.process_count() == 1:
        yield
        return
    watches = [_Watch(name, connection) for name, connection in _connections()]
    try:
        yield
    except BaseException as error:
        for watch in watches:
            watch.say(_FAILED)
        if isinstance(error, jax.errors.JaxRuntimeError):
            time.sleep(2)  # in which a watch may find out that it was another's death
        raise
    for watch in watches:
        watch.say(_DONE)


def _connections() -> list[tuple[str, socket.socket]]:
    """Of the first process one to each of the others, of those the one to it; none if one fails."""
    first, count = jax.process_index() == 0, jax.process_count()
    listener = socket.create_server(("", 0), backlog=count) if first else None
    host = os.environ.get("JAX_COORDINATOR_ADDRESS", "").rpartition(":")[0] or socket.getfqdn()
    told = np.zeros(512, np.uint8)
    secret = secrets.token_bytes(16)
    if listener is not None:
        about = secret + struct.pack("!H", listener.getsockname()[1]) + host.encode()
        told[: len(about)] = np.frombuffer(about, np.uint8)
    about = np.asarray(multihost_utils.broadcast_one_to_all(told)).tobytes().rstrip(b"\0")
    secret, port, host = about[:16], struct.unpack("!H", about[16:18])[0], about[18:].decode()
    connections: list[tuple[str, socket.socket]] = []
    try:
        if listener is not None:
            listener.settimeout(_GRACE)
            while len(connections) < count - 1:
                connection, _ = listener.accept()
                connection.settimeout(_GRACE)
                hello = connection.recv(20, socket.MSG_WAITALL)
                if hello[:16] == secret:
                    number = struct.unpack("!I", hello[16:])[0]
                    connections.append((f"process {number}", connection))
        else:
            connection = socket.create_connection((host.strip("[]"), port), timeout=_GRACE)
            connection.sendall(secret + struct.pack("!I", jax.process_index()))
            connections.append(("process 0", connection))
    except OSError:
        connections = []
    finally:
        if listener is not None:
            listener.close()
    reached = multihost_utils.process_allgather(np.int32(bool(connections)))
    return connections if np.all(reached) else []


class _Watch:
    """One connection, and the threads that speak and listen on it."""

    def __init__(self, name: str, connection: socket.socket):
        self.name, self.connection = name, connection
        self.over = threading.Event()
        connection.settimeout(_SILENCE)
        for work in (self._speak, self._listen):
            threading.Thread(target=work, daemon=True).start()

    def say(self, word: bytes) -> None:
        """Tells the other how this process leaves."""
        self.over.set()
        with contextlib.suppress(OSError):
            self.connection.sendall(word)

    def _speak(self) -> None:
        while not self.over.wait(_SILENCE / 6):
            with contextlib.suppress(OSError):
                self.connection.sendall(_ALIVE)

    def _listen(self) -> None:
        word = _ALIVE
        while word == _ALIVE:
            try:
                word = self.connection.recv(1)
            except OSError:
                word = b""
        if word == _DONE:
            return
        if word == _FAILED:
            time.sleep(_GRACE)
        if not self.over.is_set():
            how = "has failed; its output says why" if word == _FAILED else "has died or is cut off"
            print(
                f"hope: {self.name} of {jax.process_count()} {how}. This one ends, too: start all of "
                f"them again, and the run goes on from its last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)


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
