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

from hope_jax.training import loop
from hope_jax.training.processes import join_processes
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


def launch(folder, interrupted):
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
        code = f"from tests.training.test_processes import member; member({str(folder)!r}, {interrupted})"
        with (folder / f"printed_{number}").open("w") as printed:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", code],
                    cwd=QUICKSTART.parents[1],
                    env=environment,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                )
            )
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
    assert (two / "run" / "checkpoints" / str(stopped)).is_dir()
    results = launch(two, interrupted=False)
    with contextlib.chdir(one):
        expected = loop.train(config_of(one, 1), "run")
    assert results[0] == results[1]
    np.testing.assert_allclose(float(results[0]), expected["validation_loss"], rtol=1e-4)
    found, wanted = losses(two / "run"), losses(one / "run")
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_another_number_of_processes_is_refused(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    with pytest.raises(ValueError, match="mesh.processes=3, but 1 processes are seen"):
        join_processes(3)
