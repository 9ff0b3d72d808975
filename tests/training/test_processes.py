"""A run of several processes, each with devices of its own."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from hope_jax.runs.checkpoint_reader import find_damage
from hope_jax.training import loop
from hope_jax.training.processes import join_processes, watch_processes
from tests.runs.folders import files_in, flip_bit
from tests.training.runs import QUICKSTART, change_batch, losses, tiny_config

STEPS = 16


def config_of(folder, processes):
    return tiny_config(folder, **{"steps": STEPS, "mesh.processes": processes, "mesh.fsdp": 2})


def member(folder: str, interrupted: bool) -> None:
    """Trains as one of two processes; the second may be interrupted in its third step."""

    def interrupt(batch):
        signal.raise_signal(signal.SIGINT)
        time.sleep(3)  # in which the other process hears of it, though it be waiting

    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        if interrupted and os.environ["JAX_PROCESS_ID"] == "1":
            change_batch(patch, 2, interrupt)
        result = loop.train(config_of(pathlib.Path(folder), 2), "run")
    print("result", result and result["validation_loss"])


def watched(folder: str) -> None:
    """Joins, and waits for another process that does not answer."""
    join_processes(2)
    with watch_processes():
        pathlib.Path(folder, f"joined_{jax.process_index()}").touch()
        if jax.process_index() == 0:
            time.sleep(100)
        multihost_utils.process_allgather(np.int32(1))


def start(folder, code):
    """Starts two processes that run some code, printing to files."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = []
    for number in (0, 1):
        environment = {
            **os.environ,
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_PROCESS_ID": str(number),
            "JAX_NUM_CPU_DEVICES": "2",
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        }
        with (folder / f"printed_{number}").open("w") as printed:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", f"from tests.training.test_processes import *; {code}"],
                    cwd=QUICKSTART.parents[1],
                    env=environment,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                )
            )
    return started


def launch(folder, interrupted):
    started = start(folder, f"member({str(folder)!r}, {interrupted})")
    try:
        codes = [process.wait(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    texts = [(folder / f"printed_{number}").read_text() for number in (0, 1)]
    assert codes == [0, 0], "\n".join(text[-3000:] for text in texts)
    return [text.split("result ")[1].split()[0] for text in texts]


@pytest.mark.slow
def test_two_processes_train_as_one_and_stop_together(tmp_path):
    """One of two is interrupted; both save at one step, go on, and end where a single process does."""
    two, one = tmp_path / "two", tmp_path / "one"
    for folder in (two, one):
        folder.mkdir()
    assert launch(two, interrupted=True) == ["None", "None"]
    stopped = losses(two / "run")[-1][0]
    assert 3 <= stopped < STEPS
    # The newest checkpoint is damaged: one process sets it aside, and both take the one before.
    newest = two / "run" / "checkpoints" / str(stopped)
    assert find_damage(two / "run", stopped) is None
    flip_bit(next((newest / "params").rglob("d/*")), 50)
    files = files_in(newest)
    results = launch(two, interrupted=False)
    assert files_in(two / "run" / "damaged" / str(stopped)) == files
    with contextlib.chdir(one):
        expected = loop.train(config_of(one, 1), "run")
    assert results[0] == results[1]
    np.testing.assert_allclose(float(results[0]), expected["validation_loss"], rtol=1e-4)
    found, wanted = losses(two / "run"), losses(one / "run")
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_ends_the_other_with_one_line(tmp_path, victim):
    """Either is killed while the second waits in a collective, and the first in nothing at all."""
    started = start(tmp_path, f"watched({str(tmp_path)!r})")
    try:
        deadline = time.time() + 120
        while len(list(tmp_path.glob("joined_*"))) < 2:
            assert time.time() < deadline
            time.sleep(0.1)
        time.sleep(1)
        started[victim].kill()
        begun = time.time()
        assert started[1 - victim].wait(timeout=60) == 1
    finally:
        for process in started:
            process.kill()
    lines = (tmp_path / f"printed_{1 - victim}").read_text().splitlines()
    said = [line for line in lines if line.startswith("hope: ")]
    assert len(said) == 1 and f"process {victim} of 2 has died" in said[0], lines
    assert not any("Traceback" in line or "stack trace" in line for line in lines), lines
    assert time.time() - begun < 60


def test_another_number_of_processes_is_refused(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    with pytest.raises(ValueError, match="mesh.processes=3, but of processes there are 1;"):
        join_processes(3)
