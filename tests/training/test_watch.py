"""What processes tell each other, over sockets of one process."""

import socket
import threading

import numpy as np
import pytest

from hope_jax.exit_codes import FAILED, LOST
from hope_jax.training import watch
from hope_jax.training.watch import Others
from tests.runs.folders import write_run

HOSTS = ("first", "second", "third")


class First:
    """The first of three processes, with the ends of the connections that the two others hold."""

    def __init__(self, monkeypatch, workdir):
        self.codes, self.ended = [], threading.Event()
        names = np.zeros((3, 64), np.uint8)
        for row, name in zip(names, HOSTS, strict=True):
            row[: len(name)] = np.frombuffer(name.encode(), np.uint8)
        monkeypatch.setattr(watch.multihost_utils, "process_allgather", lambda _: names)
        monkeypatch.setattr(watch.jax, "process_count", lambda: 3)
        monkeypatch.setattr(watch.os, "_exit", self._end)
        group = watch._Group(str(workdir))
        pairs = [socket.socketpair() for _ in range(2)]
        group.watches = [watch._Watch(n, pair[0], group) for n, pair in enumerate(pairs, 1)]
        self.others = [pair[1] for pair in pairs]
        self.told = Others(group.watches)
        for one in group.watches:
            one.begin()
        for other in self.others:
            other.settimeout(3)

    def _end(self, code):
        self.codes.append(code)
        self.ended.set()

    def heard_by(self, number):
        """What the process of a number hears first, besides that the first is alive."""
        for _ in range(10):
            heard = self.others[number - 1].recv(watch._WORD.size, socket.MSG_WAITALL)
            word = watch._Word(*watch._WORD.unpack(heard))
            if word.kind != watch._ALIVE:
                return word
        return None


@pytest.fixture
def first(monkeypatch, tmp_path):
    write_run(tmp_path / "run")
    monkeypatch.setattr(watch, "_GRACE", 0.3)
    made = First(monkeypatch, tmp_path / "run")
    yield made
    made.told._say(watch._DONE)


@pytest.mark.parametrize(
    "word, said, code",
    [
        (None, "has died or is cut off", LOST),
        (watch._HUNG, "hangs; its output says where", LOST),
        (watch._FAILED, "has failed; its output says why", FAILED),
    ],
)
def test_what_becomes_of_one_is_passed_on_and_said(first, tmp_path, capfd, word, said, code):
    second = first.others[1]
    second.sendall(watch._WORD.pack(watch._ALIVE, 2) * 3)
    assert not first.ended.wait(0.2)
    if word is None:
        second.close()
    else:
        second.sendall(watch._WORD.pack(word, 2))
    assert first.heard_by(1) == (word or watch._LOST, 2)
    assert first.ended.wait(5) and first.codes == [code]
    assert capfd.readouterr().err == (
        f"hope: process 2 of 3 (third) {said}. This one ends, too: start all of them again, and the run "
        f"goes on from its last checkpoint, of step 2 in {tmp_path}/run\n"
    )


def test_one_that_is_silent_is_lost_and_one_that_is_done_is_not(monkeypatch, tmp_path):
    monkeypatch.setattr(watch, "_SILENCE", 0.6)
    first = First(monkeypatch, tmp_path / "no run")
    first.others[0].sendall(watch._WORD.pack(watch._DONE, 1))
    first.others[0].close()
    for _ in range(5):
        first.others[1].sendall(watch._WORD.pack(watch._ALIVE, 2))
        assert not first.ended.wait(0.2)
    assert first.ended.wait(5) and first.codes == [LOST]


def test_one_that_fails_itself_is_not_ended_by_another(first):
    """As all fail where settings do not fit: each says why, in its time of grace."""
    first.others[1].sendall(watch._WORD.pack(watch._FAILED, 2))
    assert first.heard_by(1) == (watch._FAILED, 2)
    first.told._say(watch._FAILED)
    assert not first.ended.wait(0.6)


def test_a_hang_is_told(first):
    first.told.say_hung()
    assert [first.heard_by(number) for number in (1, 2)] == [(watch._HUNG, 0)] * 2
