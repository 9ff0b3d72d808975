"""A run of several processes, each with devices of its own."""

import contextlib
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from hope_jax.data.bucket import Bucket
from hope_jax.exit_codes import LOST
from hope_jax.runs import mirror
from hope_jax.runs.checkpoint_reader import find_damage
from hope_jax.runs.fetch import fetch_run, whole_steps
from hope_jax.training import loop, watch
from hope_jax.training.processes import join_processes
from hope_jax.training.watch import watch_processes
from tests.runs.folders import files_in, flip_bit
from tests.training.runs import change_batch, losses, tiny_config

STEPS = 16


def config_of(folder, processes, **changes):
    mesh = {"mesh.processes": processes, "mesh.fsdp": 2}
    return tiny_config(folder, **{"steps": STEPS, **mesh, **changes})


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


FEW = {"steps": 8, "evaluate.every": 100, "evaluate.sample_tokens": 0}


def doomed(folder: str, processes: int, victim: int) -> None:
    """Trains as one of several processes, of which one is killed in its sixth step."""
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        if os.environ["JAX_PROCESS_ID"] == str(victim):
            change_batch(patch, 5, lambda batch: os.kill(os.getpid(), signal.SIGKILL))
        loop.train(config_of(pathlib.Path(folder), processes, **FEW), "run")


def watched(folder: str) -> None:
    """Joins, and waits for another process that does not answer."""
    watch._SILENCE = 10  # seconds, in this process alone
    join_processes(2)
    with watch_processes(folder):
        pathlib.Path(folder, f"joined_{jax.process_index()}").touch()
        if jax.process_index() == 0:
            time.sleep(100)
        multihost_utils.process_allgather(np.int32(1))


def begin(folder, number, address, devices, work, given):
    """What a process does: it prints to a file, finds the others, and ends as a command does."""
    printed = os.open(folder / f"printed_{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.environ.update(JAX_COORDINATOR_ADDRESS=address, JAX_PROCESS_ID=str(number))
    jax.config.update("jax_num_cpu_devices", devices)
    work(str(folder), *given)
    jax.distributed.shutdown()


def start(folder, work, *given, count=2, devices=2):
    """Starts processes that call a function of this file, each a fork of one that has imported all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([__name__])
    started = [
        forks.Process(target=begin, args=(folder, number, address, devices, work, given))
        for number in range(count)
    ]
    for process in started:
        process.start()
    return started


def end_of(process, seconds):
    """The exit code of a process that ends in time."""
    process.join(seconds)
    return process.exitcode


def ends(folder, started):
    """Exit codes and outputs, once all have ended."""
    try:
        codes = [end_of(process, 300) for process in started]
    finally:
        for process in started:
            process.kill()
    return codes, [(folder / f"printed_{n}").read_text() for n in range(len(started))]


def launch(folder, interrupted):
    codes, texts = ends(folder, start(folder, member, interrupted))
    assert codes == [0, 0], "\n".join(text[-3000:] for text in texts)
    return [text.split("result ")[1].split()[0] for text in texts]


def host(folder: str, interrupted: bool) -> None:
    """Trains as one of two processes that share nothing but a bucket."""
    number = os.environ["JAX_PROCESS_ID"]
    os.environ["XDG_CACHE_HOME"] = f"{folder}/host_{number}"
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "_PAUSE", 0.3)
        if interrupted and number == "1":
            change_batch(
                patch, 2, lambda batch: (signal.raise_signal(signal.SIGINT), time.sleep(3))[0]
            )
        result = loop.train(
            config_of(pathlib.Path(folder), 2, **FEW), f"file://{folder}/bucket/run"
        )
    print("result", result and result["validation_loss"])


@pytest.mark.slow
def test_hosts_that_share_a_bucket_alone_train_as_one(tmp_path, monkeypatch):
    """Both are stopped, go on with nothing but what the bucket holds, and one goes on alone."""
    address = f"file://{tmp_path}/bucket/run"
    for interrupted in (True, False):
        codes, texts = ends(tmp_path, start(tmp_path, host, interrupted))
        assert codes == [0, 0], "\n".join(text[-3000:] for text in texts)
        results = [text.split("result ")[1].split()[0] for text in texts]
        assert (results == ["None", "None"]) == interrupted
        steps = whole_steps(Bucket(address).files())
        assert steps[0] < FEW["steps"] if interrupted else steps[0] == FEW["steps"]
        for number in (0, 1):
            shutil.rmtree(tmp_path / f"host_{number}")
    assert not [name for name in Bucket(address).files() if "/upload/" in name]
    with contextlib.chdir(tmp_path):
        expected = loop.train(config_of(tmp_path, 1, **FEW), "here")
        np.testing.assert_allclose(float(results[0]), expected["validation_loss"], rtol=1e-4)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "alone"))
        alone = loop.train(config_of(tmp_path, 1, **FEW), address)
    assert alone["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-4)
    assert losses(fetch_run(address, ()))[-1][0] == FEW["steps"]


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


def halves(folder: str, processes: int) -> None:
    """Trains on sequences of which each process has one half."""
    os.chdir(folder)
    mesh = {"mesh.fsdp": 1, "mesh.data": 1, "mesh.sequence": 4}
    loop.train(config_of(pathlib.Path(folder), processes, **FEW, **mesh), "run")


@pytest.mark.slow
def test_two_processes_have_parts_of_the_same_sequences(tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    for folder in (two, one):
        folder.mkdir()
    codes, texts = ends(two, start(two, halves, 2))
    assert codes == [0, 0], "\n".join(text[-3000:] for text in texts)
    with contextlib.chdir(one):
        loop.train(config_of(one, 1, **FEW), "run")
    np.testing.assert_allclose(losses(two / "run"), losses(one / "run"), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("victim, end", [(0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_one_that_dies_or_stands_still_ends_the_other_with_one_line(tmp_path, victim, end):
    """Either, while the second waits in a collective, and the first in nothing at all."""
    started = start(tmp_path, watched)
    try:
        deadline = time.time() + 120
        while len(list(tmp_path.glob("joined_*"))) < 2:
            assert time.time() < deadline
            time.sleep(0.1)
        time.sleep(1)
        os.kill(started[victim].pid, end)
        begun = time.time()
        assert end_of(started[1 - victim], 60) == LOST
    finally:
        for process in started:
            process.kill()
    lines = (tmp_path / f"printed_{1 - victim}").read_text().splitlines()
    said = [line for line in lines if line.startswith("hope: ")]
    assert len(said) == 1 and f"process {victim} of 2 (" in said[0], lines
    assert (
        ") has died or is cut off. " in said[0] and "or its beginning if there is none" in said[0]
    )
    assert not any("Traceback" in line or "stack trace" in line for line in lines), lines
    assert time.time() - begun < 60


@pytest.mark.slow
def test_of_four_one_is_killed_in_a_step_and_half_of_them_go_on(tmp_path):
    """The others name it and the last checkpoint; with two the run ends as with a single process."""
    four, one = tmp_path / "four", tmp_path / "one"
    for folder in (four, one):
        folder.mkdir()
    begun = start(four, doomed, 4, 2, count=4, devices=1)
    assert end_of(begun[2], 300) == -signal.SIGKILL
    died = time.time()
    codes, texts = ends(four, begun)
    assert time.time() - died < 60
    assert codes == [LOST, LOST, -signal.SIGKILL, LOST], "\n".join(text[-3000:] for text in texts)
    for text in texts[:2] + texts[3:]:
        (line,) = [line for line in text.splitlines() if line.startswith("hope: ")]
        assert line.startswith(
            f"hope: process 2 of 4 ({socket.gethostname()}) has died or is cut off"
        )
        # That of step 4 may not be whole yet.
        assert re.search("goes on from its last checkpoint, of step [24] in run$", line), line
        assert "Traceback" not in text
    codes, texts = ends(four, start(four, doomed, 2, -1, devices=1))
    assert codes == [0, 0], "\n".join(text[-3000:] for text in texts)
    with contextlib.chdir(one):
        loop.train(config_of(one, 1, **FEW), "run")
    found, wanted = losses(four / "run"), losses(one / "run")
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6, 7, 8]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_another_number_of_processes_is_refused(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    with pytest.raises(ValueError, match="mesh.processes=3, but of processes there are 1;"):
        join_processes(3)
