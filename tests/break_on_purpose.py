"""Breaks the code on purpose, one line at a time, and reports which faults no test catches.

    python tests/break_on_purpose.py                 # all faults, two at a time
    python tests/break_on_purpose.py --only=m3       # those whose file or test holds the word

Each fault of `faults_on_purpose.py` is put into a copy of this repository, where the test beside it is
to fail. First all those tests run on the copy as it is, where they are to pass. Prints a line a fault,
and ends with 1 if one survives. It takes some half a minute a fault.
"""

import argparse
import concurrent.futures
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile

from faults_on_purpose import FAULTS, Fault

ROOT = pathlib.Path(__file__).parents[1]


def copy_repository(folder: pathlib.Path) -> pathlib.Path:
    """A copy of what git tracks, as it lies in the working tree, under a folder."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in names.stdout.decode().split("\0")[:-1]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def passes(folder: pathlib.Path, tests: list[str]) -> bool:
    """Whether tests pass in a copy, in a quarter of an hour for a single one.

    A test that is not there, or cannot be collected, is an error.
    """
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900 if len(tests) == 1 else None,
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)} did not run:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def put_in(folder: pathlib.Path, fault: Fault) -> None:
    """Changes the one place in a copy that the fault is about."""
    source = (folder / fault.path).read_text()
    if source.count(fault.old) != 1:
        raise RuntimeError(f"{fault.path} has {source.count(fault.old)} places with {fault.old!r}")
    (folder / fault.path).write_text(source.replace(fault.old, fault.new))


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a word in the fault's file or test")
    parser.add_argument("--jobs", type=int, default=2, help="tests at a time")
    given = parser.parse_args()
    faults = [fault for fault in FAULTS if given.only in fault.path + fault.test]
    with tempfile.TemporaryDirectory() as folder:
        copies: queue.Queue[pathlib.Path] = queue.Queue()
        for index in range(given.jobs):
            copies.put(copy_repository(pathlib.Path(folder) / str(index)))
        clean = copy_repository(pathlib.Path(folder) / "clean")

        def survives(fault: Fault) -> bool:
            copy = copies.get()
            try:
                put_in(copy, fault)
                return passes(copy, [fault.test])
            finally:
                shutil.copyfile(clean / fault.path, copy / fault.path)
                copies.put(copy)

        if not passes(clean, sorted({fault.test for fault in faults})):
            raise RuntimeError("a test of the list fails on the code as it is")
        survivors = 0
        with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
            for fault, alive in zip(faults, pool.map(survives, faults), strict=True):
                survivors += alive
                word = "SURVIVES" if alive else "caught"
                print(f"{word:<9} {fault.path}: {fault.new.strip()}  [{fault.test}]", flush=True)
    print(f"{len(faults)} faults, {survivors} survive")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
