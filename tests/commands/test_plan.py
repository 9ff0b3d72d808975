"""What `hope plan` refuses, before it compiles anything."""

import pytest

from hope_jax.commands import plan as command
from hope_jax.models.flops import Flops
from hope_jax.planning import topology
from hope_jax.planning.memory import Memory
from hope_jax.planning.plan import Plan
from hope_jax.planning.topology import GIB
from tests.commands.in_process import hope

CONFIG = """
from hope_jax.training.config import default_config

def get_config(variant):
    sizes = dict(vocab_size=8, width=8, num_layers=1, num_heads=1, mlp_width=8)
    config = default_config(**sizes, sequence_layer="attention")
    config.data.update(batch_size=8, sequence_length=8)
    return config
"""


@pytest.fixture(autouse=True)
def no_compilation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(CONFIG)

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
        "--config.mesh.fsdp=3": "fsdp=3, sequence=1, tensor=1 does not fit 8 devices",
        "--config.mesh.sequence=16": "sequence=16, tensor=1 does not fit 8 devices",
        "--config.data.sequence_length=12 --config.mesh.data=1 --config.mesh.sequence=8": (
            "data.sequence_length=12 does not divide into mesh.sequence=8 parts of whole chunks; make it "
            "a multiple of 8"
        ),
        "--config.mesh.expect_devices=4": "mesh.expect_devices=4, but what is seen is 8 devices",
        "--config.data.batch_size=12": "data.batch_size=12 does not divide",
        "--compare=nowhere.py": "nowhere.py is no file",
    }.items(),
)
def test_what_does_not_fit_is_refused(argument, said, capsys):
    assert hope("plan", "--config=tiny.py:one", *argument.split()) == 2
    assert said in capsys.readouterr().err


def test_a_config_is_needed(capsys):
    assert hope("plan") == 2
    assert "--config=FILE.py is missing" in capsys.readouterr().err


def test_without_the_tpus_compiler_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    assert hope("plan", "--config=tiny.py:one", "--topology=v5e:2x2") == 2
    assert "pip install 'hope_jax[tpu]'" in capsys.readouterr().err


def test_shapes_that_the_compiler_does_not_know_are_refused(capsys):
    pytest.importorskip("libtpu")
    assert hope("plan", "--config=tiny.py:one", "--topology=v5e:3x3") == 2
    assert "--topology=v5e:3x3 is no shape of v5e" in capsys.readouterr().err


def planned(config, devices, assembly):
    """A plan of a step that needs 20 GiB, or as many for each part of the batch, of 12."""
    total = 20.0 * GIB / config.accumulate
    memory = Memory(0, 0, 0, int(total), total, 12.0 * GIB)
    return Plan(
        config, devices, dict(assembly.mesh.shape), 10, Flops(5.0, 0.0), memory, None, [], [], 1.0
    )


def test_where_it_does_not_fit_it_names_what_would(monkeypatch, capsys):
    monkeypatch.setattr(command, "make_plan", planned)
    given = ["--config=tiny.py:one", "--config.data.batch_size=64"]
    assert hope("plan", *given, "--config.mesh.fsdp=8") == 1
    told = capsys.readouterr().out
    assert "one: does not fit: a chip needs 20.00 GiB and has 12.00 GiB." in told
    mended = "--config.model.remat=block --config.accumulate=2 fits, 10.00 GiB of 12.00 GiB"
    assert f"one: {mended}: it takes the batch in more parts" in told
    assert hope("plan", *given, "--config.mesh.fsdp=8", "--config.accumulate=2") == 0
    told = capsys.readouterr().out
    assert "| fits " in told and "does not fit" not in told
    assert hope("plan", *given, "--config.data.batch_size=8", "--config.mesh.fsdp=8") == 1
    assert "give it more of them, all in mesh.fsdp" in capsys.readouterr().out


def test_two_configs_stand_beside_each_other(monkeypatch, capsys):
    monkeypatch.setattr(command, "make_plan", planned)
    given = ["--config=tiny.py:one", "--compare=tiny.py:two"]
    assert hope("plan", *given, "--config.accumulate=2", "--config.mesh.data=4") == 2
    assert hope("plan", *given, "--config.data.batch_size=16", "--config.accumulate=2") == 0
    head = capsys.readouterr().out.splitlines()[0]
    assert [cell.strip() for cell in head.split("|")[2:5]] == ["one", "two", "one / two"]
