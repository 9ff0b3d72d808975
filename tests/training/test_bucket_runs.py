"""Training with a bucket behind it: the same bits, whatever becomes of machines and networks."""

import contextlib
import os
import pathlib
import signal

import jax
import numpy as np
import pytest

from hope_jax.data.bucket import Bucket
from hope_jax.exit_codes import UNSENT
from hope_jax.runs.checkpoint_reader import PARTS
from hope_jax.runs.fetch import fetch_run, whole_steps
from hope_jax.runs.metrics import SPEEDS, read_metrics
from hope_jax.runs.mirror import UnsentError
from hope_jax.training import loop
from tests.commands.in_process import hope
from tests.runs.buckets import RUN, flaky, lose_machine  # noqa: F401
from tests.training.runs import change_batch, tiny_config


def told(workdir):
    """What a run has measured, but for speeds."""
    lines = read_metrics(workdir)
    return [{n: x for n, x in line.items() if n not in SPEEDS} for line in lines]


def stop(batch):
    signal.raise_signal(signal.SIGTERM)


def params_of(workdir):
    """The files of the newest parameters, as arrays that need no model."""
    import orbax.checkpoint as ocp

    folder = pathlib.Path(fetch_run(workdir, PARTS)).absolute()
    step = max(int(name) for name in os.listdir(folder / "checkpoints"))
    return step, ocp.StandardCheckpointHandler().restore(
        folder / "checkpoints" / str(step) / "params"
    )


@pytest.mark.slow
def test_a_run_whose_machine_is_taken_away_ends_with_the_same_bits_elsewhere(
    tmp_path,
    flaky,  # noqa: F811
    monkeypatch,
):
    config = tiny_config(tmp_path)
    with contextlib.chdir(tmp_path):
        expected = loop.train(config, "here", quiet=True)
        with monkeypatch.context() as patch:
            change_batch(patch, 2, stop)
            assert loop.train(config, RUN, quiet=True) is None
        assert whole_steps(Bucket(RUN).files())[0] == 3
        lose_machine(tmp_path)
        assert loop.train(config, RUN, quiet=True) == expected
    assert told(fetch_run(RUN, ())) == told(tmp_path / "here")
    (step, found), (_, wanted) = params_of(RUN), params_of(str(tmp_path / "here"))
    assert step == config.steps
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert "loss.png" in Bucket(RUN).files()


@pytest.mark.slow
def test_a_bucket_that_goes_does_not_stop_a_run_and_the_same_command_sends_the_rest(
    tmp_path,
    flaky,  # noqa: F811
    monkeypatch,
):
    config = tiny_config(tmp_path, **{"evaluate.sample_tokens": 0})

    def cut(operation, path):
        if "lock" not in path:
            raise OSError("the network is down")

    change_batch(monkeypatch, 2, lambda batch: flaky(cut))
    with contextlib.chdir(tmp_path):
        with pytest.raises(UnsentError, match="lacks the checkpoint of step 6, ") as raised:
            loop.train(config, RUN, quiet=True)
        assert raised.value.exit_code == UNSENT
        flaky(lambda operation, path: None)
        assert loop.train(config, RUN, quiet=True) is not None
    assert whole_steps(Bucket(RUN).files()) == [6, 4]
    assert [line["step"] for line in told(fetch_run(RUN, ())) if "loss" in line] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


@pytest.mark.slow
def test_commands_take_a_run_in_a_bucket(tmp_path, flaky, capsys):  # noqa: F811
    config = tmp_path / "config.py"
    config.write_text(
        "import pathlib\nfrom tests.training.runs import tiny_config\n"
        "def get_config(variant=''):\n"
        "    return tiny_config(pathlib.Path(__file__).parent, **{'evaluate.sample_tokens': 0})\n"
    )
    (tmp_path / "more.txt").write_text("green bottles")
    with contextlib.chdir(tmp_path):
        assert hope("train", f"--config={config}", f"--workdir={RUN}") == 0
        said = capsys.readouterr().out
        assert f"hope generate --workdir={RUN}" in said
        assert hope("generate", f"--workdir={RUN}", "--prompt=gr", "--num_tokens=2") == 0
        assert hope("evaluate", f"--workdir={RUN}", "--text=more.txt") == 0
        assert hope("evaluate", f"--workdir={RUN}/checkpoints/4", "--text=more.txt") == 0
        # It goes on without its config, and another begins with its weights.
        assert hope("train", f"--workdir={RUN}", "--config.steps=7") == 0
        assert whole_steps(Bucket(RUN).files())[0] == 7
        other = RUN.replace("/a", "/b")
        assert hope("train", f"--workdir={other}", f"--from_run={RUN}", "--config.steps=2") == 0
        assert f"beginning from the weights of {RUN} at step 7" in capsys.readouterr().out
        assert hope("train", f"--workdir={other}") == 0
        assert hope("compare", f"--config={config}", f"--workdir={RUN}") == 2
        assert hope("generate", "--workdir=flaky://bucket/none", "--prompt=a") == 2
        assert "flaky://bucket/none holds no run" in capsys.readouterr().err
