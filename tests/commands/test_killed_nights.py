# ruff: noqa: F811 (fixtures of another file)
"""Processes of `hope sleep` and `hope live` that are killed in a night, and go on to the same bits."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from hope_jax.inference.array_file import unpacked
from tests.commands.test_sleep import workdir  # noqa: F401

STEPS = 40
NIGHT = (
    f"--config.steps={STEPS}",
    "--config.samples=2",
    "--config.tokens=4",
    "--config.experts=2",
    "--config.expert_width=3",
    "--config.lam=0",
    "--config.a=1",
    "--save-every=0",
)


@contextlib.contextmanager
def begun(*arguments):
    """A process of its own, which is gone in the end."""
    command = [sys.executable, "-m", "hope_jax", *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said_by(process):
    """What a process that has ended well has said."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def is_in_a_night(progress):
    """Whether steps of a night have been kept."""
    if not progress.exists():
        return False
    return any(name.startswith("night ") for name in unpacked(progress, "progress", "")["arrays"])


@pytest.mark.parametrize("name, ending", [("sleep", ".night"), ("live", ".live")])
def test_a_process_killed_in_a_night_goes_on_to_the_same_bits(workdir, name, ending):
    whole, state = (workdir / f"{name}_{kind}.msgpack" for kind in ("whole", "killed"))
    progress = state.with_name(state.name + ending)

    def command(state):
        given = [f"--state-in={workdir / 'read.msgpack'}", f"--state-out={state}"]
        if name == "live":
            text = workdir / "killed_stream.txt"
            text.write_text("ten green bottles hang on the wall")
            given = [f"--state={state}", f"--files={text}", "--config.nights=16"]
        return name, f"--workdir={workdir / 'run'}", *given, *NIGHT

    with begun(*command(whole)) as undisturbed, begun(*command(state)) as process:
        end = time.monotonic() + 240
        while not is_in_a_night(progress) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert is_in_a_night(progress) and not state.exists()
        with begun(*command(state)) as process:
            assert "going on" in said_by(process)
        said_by(undisturbed)
    assert state.read_bytes() == whole.read_bytes() and not progress.exists()
