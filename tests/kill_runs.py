"""Kills a run again and again, anywhere, and sees that nothing is lost; not collected by pytest.

    python tests/kill_runs.py --kills=100 --seed=0 --folder=/tmp/kills

A Hope model whose block learns in context is trained with M3, a checkpoint every 2 steps, and
killed (kill -9) at random: while it starts and compiles, between steps, inside checkpoint writes, in the
last evaluation and the sample. `generate` and `evaluate` read the run all the while, one after the other.
A run that has come to its end is compared with one that was left in peace, and the next one is begun.
With the same --folder it begins where an earlier call has ended. Prints one line of JSON; what failed is
in it, and the exit code is then 1.
"""

# ruff: noqa: E402
import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

# Imported here once, so that each life is a fork that has only JAX's devices to find.
import numpy as np

import hope_jax.commands.evaluate
import hope_jax.commands.generate
import hope_jax.commands.train
import hope_jax.training.loop  # noqa: F401
from hope_jax.commands.main import main as hope
from hope_jax.runs.metrics import SPEEDS, read_metrics
from tests.runs.folders import read_board

STEPS = 24
CONFIG = f"""
import pathlib
from tests.training.runs import tiny_config

def get_config(variant=""):
    config = tiny_config(pathlib.Path(__file__).parent)
    config.model.update(
        sequence_layer="titans", num_layers=1, cms_levels=2, mlp_width=16,
        titans=dict(network="matrix", memory_chunk=8, generator_chunk=8),
        in_context=dict(chunks=(4, 8), step_size=0.1, blocks=1),
    )
    config.data.update(batch_size=2)
    config.optimizer.update(name="m3", learning_rate=0.02)
    config.optimizer.arguments = dict(ns_steps=2, slow_every=4)
    config.steps = {STEPS}
    config.evaluate.update(every=3, batches=2, final_batches=8, ngram_orders=(), sample_tokens=12)
    return config
"""


def start(work: Callable[[], Any], output: Path) -> int:
    """Runs something in a process of its own; its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        ctypes.CDLL(None).prctl(
            1, signal.SIGKILL
        )  # PR_SET_PDEATHSIG: it does not outlive the script
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end_of(number: int) -> int | None:
    """How a process has ended; None while it goes on."""
    done, status = os.waitpid(number, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def wait_for(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def train(workdir: Path) -> Callable[[], None]:
    return lambda: hope(["train", f"--config={workdir.parent}/config.py", f"--workdir={workdir}"])


class Reader:
    """Reads the run all the while, a process after the other."""

    def __init__(self, folder: Path):
        self.folder, self.number, self.counts = folder, 0, Counter()
        self.failures: list[str] = []
        (folder / "read.txt").write_text("ten green bottles")

    def go_on(self, workdir: Path) -> None:
        """Takes note of a reader that has ended, and starts the next."""
        if self.number:
            code = end_of(self.number)
            if code is None:
                return
            said = (self.folder / "read_output").read_text()
            none_yet = any(text in said for text in ("has no checkpoint yet", "holds no run"))
            if code == 0:
                self.counts["read"] += 1
            elif code == 2 and none_yet and "Traceback" not in said:
                self.counts["nothing yet"] += 1
            else:
                self.failures.append(f"reader ended with {code}: {said[-1500:]}")
        arguments = [
            ["generate", "--prompt=ten", "--num_tokens=4"],
            ["evaluate", f"--text={self.folder / 'read.txt'}", "--segment=16"],
        ][self.counts.total() % 2]
        command = [*arguments, f"--workdir={workdir}"]
        self.number = start(lambda: hope(command), self.folder / "read_output")


def compare(workdir: Path, whole: Path, answer: Path) -> None:
    """Writes how a run differs from one that was left in peace."""
    import jax
    import orbax.checkpoint as ocp

    wrong = []
    for part in ("params", "rest"):
        trees = [
            ocp.StandardCheckpointHandler().restore(run / "checkpoints" / str(STEPS) / part)
            for run in (workdir, whole)
        ]
        for (path, one), two in zip(
            jax.tree.leaves_with_path(trees[0]), jax.tree.leaves(trees[1]), strict=True
        ):
            if np.asarray(one).tobytes() != np.asarray(two).tobytes():
                wrong.append(f"{part}{jax.tree_util.keystr(path)} differs")
    speedless = [
        [{**line, **dict.fromkeys(SPEEDS, 0)} for line in read_metrics(str(run))]
        for run in (workdir, whole)
    ]
    if speedless[0] != speedless[1]:
        wrong.append(f"metrics differ: {speedless[0]} and {speedless[1]}")
    boards = [
        {
            key: sorted(set(values))
            for key, values in read_board(run).items()
            if key[0] not in SPEEDS
        }
        for run in (workdir, whole)
    ]
    if boards[0] != boards[1]:
        wrong.append("TensorBoard differs")
    wrong += [f"{workdir}/damaged is there"] if (workdir / "damaged").exists() else []
    left = {path.name for path in (workdir / "checkpoints").iterdir()}
    wrong += [f"checkpoints/ holds {left}"] if left != {str(STEPS - 2), str(STEPS)} else []
    answer.write_text(json.dumps(wrong))


def moment(draw: random.Random, workdir: Path, output: Path, seconds: float) -> tuple[str, Any]:
    """A moment to kill at: its name, and whether it has come."""
    begun = time.time()
    kind = draw.choice(["any time", "a step", "a checkpoint", "a checkpoint", "the end"])
    delay = {"any time": seconds, "a step": 1.0, "a checkpoint": 0.2, "the end": 2.0}[kind]
    delay = draw.uniform(0, delay)
    unseen = draw.randrange(4)  # checkpoints that are let go by
    seen: set[tuple[str, int]] = set()

    def has_come() -> bool:
        nonlocal begun
        folder = workdir / "checkpoints"
        now = kind == "any time"
        if kind == "a step":
            now = "step" in output.read_text()
        elif kind == "a checkpoint":
            for path in folder.glob("*.orbax-checkpoint-tmp"):
                seen.add((path.name, 0))
            now = len(seen) > unseen
        elif kind == "the end":
            now = (folder / str(STEPS)).is_dir()
        if not now:
            begun = time.time()
        return now and time.time() - begun >= delay

    return kind, has_come


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    folder = (given.folder or Path(tempfile.mkdtemp())).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.py").write_text(CONFIG)
    os.chdir(folder)
    draw, whole, output = random.Random(given.seed), folder / "whole", folder / "output"
    failures: list[str] = []
    while not (folder / "seconds").is_file():
        compiled = (whole / "loss.png").is_file()
        shutil.rmtree(whole, ignore_errors=True)
        begun = time.time()
        if wait_for(start(train(whole), output)):
            sys.exit(f"the run that is left in peace fails:\n{output.read_text()}")
        if compiled:
            (folder / "seconds").write_text(str(time.time() - begun))
    seconds = float((folder / "seconds").read_text())

    reader, workdir = Reader(folder), folder / "killed"
    kills = runs = 0
    where: Counter[str] = Counter()
    while not failures and not reader.failures:
        life = start(train(workdir), output)
        kind, has_come = moment(draw, workdir, output, seconds)
        code = None
        while code is None and (kills >= given.kills or not has_come()):
            reader.go_on(workdir)
            time.sleep(0.002)
            code = end_of(life)
        if code is None:
            os.kill(life, signal.SIGKILL)
            wait_for(life)
            kills += 1
            where[kind] += 1
            continue
        if code:
            failures.append(f"a life ended with {code}: {output.read_text()[-3000:]}")
            break
        wait_for(start(lambda: compare(workdir, whole, folder / "answer"), folder / "compared"))
        try:
            failures += json.loads((folder / "answer").read_text())
            (folder / "answer").unlink()
        except FileNotFoundError:
            failures.append((folder / "compared").read_text()[-3000:])
        runs += 1
        if not failures:
            shutil.rmtree(workdir)
        if kills >= given.kills:
            break
    if reader.number and end_of(reader.number) is None:
        os.kill(reader.number, signal.SIGKILL)
    failures += reader.failures
    told = {"kills": kills, "at": where, "finished runs": runs, "readers": reader.counts}
    print(json.dumps({**told, "seconds of a life": round(seconds, 1), "failures": failures}))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
