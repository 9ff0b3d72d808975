"""Processes of one run watch each other, so that all end when one does, and say which it was."""

import contextlib
import os
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from hope_jax.exit_codes import FAILED, LOST
from hope_jax.runs.checkpoint_reader import checkpoint_steps

# Seconds without a word from a host, which may have lost power or network, or have stopped, until it is
# given up.
_SILENCE = 30
# Seconds that a process which has heard of another's failure has to fail of itself, as all do when
# settings do not fit, and say why.
_GRACE = 10

# What is said of a process: a letter, and its number.
_ALIVE, _DONE, _FAILED, _HUNG, _LOST = (letter.encode() for letter in "adfhl")
_SAID = {
    _FAILED: "has failed; its output says why",
    _HUNG: "hangs; its output says where",
    _LOST: "has died or is cut off",
}
_WORD = struct.Struct("!cH")


class Others:
    """The other processes of the launch: of the first all, of each of those the first."""

    def __init__(self, watches: Sequence["_Watch"] = ()):
        self._watches = watches

    def say_hung(self) -> None:
        """Tells them that this process hangs, and is about to end."""
        self._say(_HUNG)

    def _say(self, kind: bytes) -> None:
        for watch in self._watches:
            watch.over.set()
            watch.say(kind, jax.process_index())


@contextlib.contextmanager
def watch_processes(workdir: str) -> Iterator[Others]:
    """Ends this process, with one line, as soon as another of the launch is lost within.

    With code 76 where that has died, is cut off or hangs, and 1 where it has failed and says why. JAX
    itself notices a dead process too, but waits in a collective or a barrier for up to minutes, and
    then aborts amid stack traces. Here the first process has a connection to each of the others, which
    the system closes when either end dies, and passes on what it learns.

    Args:
      workdir: folder of the run, whose last checkpoint is named.
    """
    if jax.process_count() == 1:
        yield Others()
        return
    group = _Group(workdir)
    for number, connection in _connections():
        group.watches.append(_Watch(number, connection, group))
    others = Others(group.watches)
    for watch in group.watches:
        watch.begin()
    try:
        yield others
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            time.sleep(2)  # in which a watch may find out that it was another's death
        others._say(_FAILED)
        raise
    others._say(_DONE)


def _connections() -> list[tuple[int, socket.socket]]:
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
    connections: list[tuple[int, socket.socket]] = []
    try:
        if listener is not None:
            listener.settimeout(_GRACE)
            while len(connections) < count - 1:
                connection, _ = listener.accept()
                connection.settimeout(_GRACE)
                hello = connection.recv(20, socket.MSG_WAITALL)
                if hello[:16] == secret:
                    connections.append((struct.unpack("!I", hello[16:])[0], connection))
        else:
            connection = socket.create_connection((host.strip("[]"), port), timeout=_GRACE)
            connection.sendall(secret + struct.pack("!I", jax.process_index()))
            connections.append((0, connection))
    except OSError:
        connections = []
    finally:
        if listener is not None:
            listener.close()
    reached = multihost_utils.process_allgather(np.int32(bool(connections)))
    return connections if np.all(reached) else []


class _Group:
    """All connections of this process, and how it ends by what one of them tells."""

    def __init__(self, workdir: str):
        self.workdir = workdir
        self.watches: list[_Watch] = []
        name = np.zeros(64, np.uint8)
        mine = socket.gethostname().encode()[: len(name)]
        name[: len(mine)] = np.frombuffer(mine, np.uint8)
        names = np.asarray(multihost_utils.process_allgather(name))
        self._hosts = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in names]
        self._ending = threading.Lock()

    def end(self, word: "_Word") -> None:
        """Passes on what has been heard of a process, says it, and ends this one."""
        if not self._ending.acquire(blocking=False):
            return
        for watch in self.watches:
            watch.say(*word)
        if word.kind == _FAILED:
            time.sleep(_GRACE)
            if any(watch.over.is_set() for watch in self.watches):
                self._ending.release()
                return
        print(
            f"hope: process {word.number} of {jax.process_count()} ({self._hosts[word.number]}) "
            f"{_SAID[word.kind]}. This one ends, too: start all of them again, and the run goes on from "
            f"{_last_checkpoint(self.workdir)}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(FAILED if word.kind == _FAILED else LOST)


class _Word(NamedTuple):
    """What is said of a process: that it is alive, done, has failed, hangs or is lost."""

    kind: bytes
    number: int


class _Watch:
    """One connection, and the threads that speak and listen on it."""

    def __init__(self, number: int, connection: socket.socket, group: _Group):
        self.number, self.connection, self.group = number, connection, group
        self.over = threading.Event()
        self._speaking = threading.Lock()
        connection.settimeout(_SILENCE)

    def begin(self) -> None:
        """Begins to speak and to listen."""
        for work in (self._speak, self._listen):
            threading.Thread(target=work, daemon=True).start()

    def say(self, kind: bytes, number: int) -> None:
        """Tells the other something of a process."""
        with contextlib.suppress(OSError), self._speaking:
            self.connection.sendall(_WORD.pack(kind, number))

    def _speak(self) -> None:
        while not self.over.wait(_SILENCE / 6):
            self.say(_ALIVE, jax.process_index())

    def _listen(self) -> None:
        word = _Word(_ALIVE, self.number)
        while word.kind == _ALIVE:
            try:
                heard = self.connection.recv(_WORD.size, socket.MSG_WAITALL)
                word = _Word(*_WORD.unpack(heard))
            except (OSError, struct.error):  # silent for too long, or closed
                word = _Word(_LOST, self.number)
        if word.kind != _DONE and not self.over.is_set():
            self.group.end(word)


def _last_checkpoint(workdir: str) -> str:
    """The newest checkpoint, in words; a folder that hangs, too, is not waited for."""
    found: list[int] = []

    def look() -> None:
        with contextlib.suppress(Exception):
            found.extend(checkpoint_steps(workdir))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(_GRACE)
    if not found:
        return f"its last checkpoint in {workdir}, or its beginning if there is none"
    return f"its last checkpoint, of step {found[0]} in {workdir}"
