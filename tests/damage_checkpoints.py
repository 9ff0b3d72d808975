"""Damages every file of a checkpoint in every way, and sees what is restored; not run by pytest.

    python tests/damage_checkpoints.py --offsets=40

Each file of the newest of two checkpoints is deleted, cut at, zeroed from, and has a bit flipped at so
many offsets. What is then restored must be the newest to the bit, or the one before to the bit with the
damaged one set aside, or an error; never anything else. Prints one line of JSON; the exit code is 1 if
anything else came out.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hope_jax.runs.checkpoint_writer import CheckpointWriter
from hope_jax.runs.folder_error import RunFolderError
from hope_jax.runs.keep import Keep
from tests.runs.folders import make_config, make_state, place_after, target_of, write_run


def damages(content: bytes, offsets: int) -> Iterator[tuple[str, bytes | None]]:
    """Every damage of a file: a name, and what is then in it, None for no file."""
    yield "deleted", None
    for offset in sorted({*np.linspace(0, len(content) - 1, offsets).astype(int).tolist()}):
        yield f"cut at {offset}", content[:offset]
        yield f"zeroed from {offset}", content[:offset] + bytes(len(content) - offset)
        flipped = bytearray(content)
        flipped[offset] ^= 1 << offset % 8
        yield f"flipped at {offset}", bytes(flipped)


def restored(run: Path, target: Any) -> Any:
    """Step, leaves and place in the data of what a run would go on from; the error if there is one."""
    writer = CheckpointWriter(str(run), make_config(), Keep(2))
    try:
        state, place = writer.restore(target)
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)], place
    except (ValueError, RunFolderError) as error:
        return error
    finally:
        writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--offsets", type=int, default=40)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    counts: Counter[str] = Counter()
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "run")
        newest = run / "checkpoints" / "2"
        target = target_of(make_state(0))
        outcomes = {
            step: (
                [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(make_state(step))],
                place,
            )
            for step, place in ((1, place_after(1)), (2, place_after(2)))
        }
        files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
        for name in files:
            content = (newest / name).read_bytes()
            for damage, left in damages(content, given.offsets):
                if left == content:
                    continue
                if left is None:
                    (newest / name).unlink()
                else:
                    (newest / name).write_bytes(left)
                found = restored(run, target)
                aside = (run / "damaged" / "2").is_dir()
                if aside:
                    os.rename(run / "damaged" / "2", newest)
                    shutil.rmtree(run / "damaged")
                (newest / name).write_bytes(content)
                if isinstance(found, Exception):
                    counts["error"] += 1
                elif found == outcomes[1] and aside:
                    counts["the one before"] += 1
                elif found == outcomes[2] and not aside:
                    counts["the newest"] += 1
                else:
                    wrong.append(f"{name} {damage}")
    print(json.dumps({"files": len(files), "damages": counts.total() + len(wrong), **counts}))
    if wrong:
        print(json.dumps({"wrong": wrong}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
