"""Checkpoints that are damaged, or belong to another config."""

import jax
import numpy as np
import pytest

from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.runs.checkpoint import Checkpoints
from hope_jax.training.optimizer import make_optimizer
from hope_jax.training.sharding import make_mesh
from hope_jax.training.step import abstract_state, init_state
from tests.training.runs import tiny_config


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of steps 1 and 2, its config, and the state in both."""
    config = tiny_config(tmp_path)
    model = LanguageModel(LanguageModelConfig.from_config_dict(config.model))
    optimizer = make_optimizer(config.optimizer, config.steps)
    mesh = make_mesh()
    state = init_state(model, optimizer, mesh, 0)
    workdir = tmp_path / "run"
    checkpoints = Checkpoints(str(workdir), config, 3)
    for step in (1, 2):
        checkpoints.save(step, state._replace(step=state.step + step), {"place": step})
    checkpoints.close()
    return workdir, config, abstract_state(model, optimizer, mesh), state


def test_what_is_saved_comes_back(saved):
    workdir, config, target, state = saved
    checkpoints = Checkpoints(str(workdir), config, 3)
    restored, place = checkpoints.restore(target)
    checkpoints.close()
    assert int(restored.step) == 2 and place == {"place": 2}
    jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)
    assert jax.tree.all(
        jax.tree.map(lambda leaf, want: leaf.sharding == want.sharding, restored, target)
    )


def test_damaged_latest_checkpoint_falls_back_and_says_so(saved, caplog):
    workdir, config, target, _ = saved
    for path in (workdir / "checkpoints" / "2").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    checkpoints = Checkpoints(str(workdir), config, 3)
    restored, place = checkpoints.restore(target)
    checkpoints.close()
    assert int(restored.step) == 1 and place == {"place": 1}
    assert "damaged" in caplog.text and "2" in caplog.text


def test_other_settings_are_named(saved):
    workdir, config, _, _ = saved
    config.model.width = 32
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"model\.width") as error:
        Checkpoints(str(workdir), config, 3)
    assert "optimizer.learning_rate" in str(error.value)
