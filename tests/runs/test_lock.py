"""Two who would write in one folder."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from hope_jax.runs.lock import FolderLock

HOLD = "import sys, time, pathlib\nfrom hope_jax.runs.lock import FolderLock\n"
HOLD += "held = FolderLock(pathlib.Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(60)"


def test_the_holder_is_named_and_death_frees_the_folder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {other.pid} on .*, started at 20"):
            FolderLock(tmp_path)
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    lock = FolderLock(tmp_path)
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    with pytest.raises(ValueError, match=f"process {os.getpid()}"):
        FolderLock(tmp_path)
    lock.release()
    FolderLock(tmp_path).release()


def test_without_locks_in_the_file_system_there_is_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    FolderLock(tmp_path).release()
    assert "start no second training" in caplog.text


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        FolderLock(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
