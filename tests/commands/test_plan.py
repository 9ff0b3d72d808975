"""What `hope plan` refuses, before it compiles anything."""

import pytest

from hope_jax.commands import plan as command
from hope_jax.planning import topology
from tests.commands.in_process import hope
from tests.training.runs import QUICKSTART


@pytest.fixture(autouse=True)
def no_compilation(monkeypatch):
    def compiled(*_):
        raise AssertionError("reached compilation")

    monkeypatch.setattr(command, "make_plan", compiled)


@pytest.mark.parametrize(
    "argument, said",
    {
        "--topology=v9:2x2": "--topology=v9:2x2 is not known; give v5e, v5p, v6e",
        "--topology=v5p": "--topology=v5p must have 3 sizes, such as v5p:2x2x1",
        "--topology=v5e:2x2x1": "--topology=v5e:2x2x1 must have 2 sizes, such as v5e:2x2",
        "--topology=v6e:0x2": "--topology=v6e:0x2 must have 2 sizes",
        "--config.mesh.fsdp=3": "fsdp=3, tensor=1 does not fit 8 devices",
        "--config.mesh.expect_devices=4": "mesh.expect_devices=4, but what is seen is 8 devices",
        "--config.data.batch_size=12": "data.batch_size=12 does not divide",
        "--compare=nowhere.py": "nowhere.py is no file",
    }.items(),
)
def test_what_does_not_fit_is_refused(argument, said, capsys):
    assert hope("plan", f"--config={QUICKSTART}", argument) == 2
    assert said in capsys.readouterr().err


def test_a_config_is_needed(capsys):
    assert hope("plan") == 2
    assert "--config=FILE.py is missing" in capsys.readouterr().err


def test_without_the_tpus_compiler_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    assert hope("plan", f"--config={QUICKSTART}", "--topology=v5e:2x2") == 2
    assert "pip install 'hope_jax[tpu]'" in capsys.readouterr().err


def test_shapes_that_the_compiler_does_not_know_are_refused(capsys):
    pytest.importorskip("libtpu")
    assert hope("plan", f"--config={QUICKSTART}", "--topology=v5e:3x3") == 2
    assert "--topology=v5e:3x3 is no shape of v5e" in capsys.readouterr().err
