"""The command, in a process of its own."""

import subprocess
import sys

from tests.training.runs import QUICKSTART


def test_unknown_key_is_refused_with_the_nearest(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "hope_jax",
            "train",
            f"--config={QUICKSTART}",
            f"--workdir={tmp_path}",
            "--config.optimizer.learning_rat=0.1",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=QUICKSTART.parents[1],
    )
    assert done.returncode != 0
    assert "learning_rate" in done.stderr
