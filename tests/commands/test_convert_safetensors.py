"""A run's model as safetensors, and back."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest
from flax import linen as nn
from safetensors.flax import load_file, save_file

from hope_jax.commands.first_checkpoint import write_first_checkpoint
from hope_jax.commands.trained_model import load_model
from hope_jax.data.bucket import Bucket
from hope_jax.exit_codes import UNSENT
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.models.safetensors_folder import read_params, write_params
from hope_jax.runs import mirror
from hope_jax.runs.fetch import fetch_run, whole_steps
from tests.commands.in_process import hope
from tests.runs.buckets import RUN, Flaky, flaky  # noqa: F401
from tests.training.runs import load_config


@pytest.fixture(scope="module")
def said():
    """What the export of `run` prints."""
    return []


@pytest.fixture(scope="module")
def run(tmp_path_factory, said):
    """A run of a Hope with bfloat16 parameters and levels that learn in context, and its export."""
    folder = tmp_path_factory.mktemp("run")
    config = load_config("hope")
    config.model.update(width=16, num_layers=2, num_heads=2, mlp_width=16, param_dtype="bfloat16")
    levels = (8,) * config.model.cms_levels
    config.model.in_context = {"chunks": levels, "step_size": 0.1, "blocks": 1}
    model = LanguageModel(LanguageModelConfig.from_config_dict(config.model))
    shapes = nn.unbox(
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    )
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda leaf: jax.numpy.asarray(draw(leaf.shape), leaf.dtype), shapes)
    write_first_checkpoint(str(folder / "run"), config, params)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert hope("convert", f"--workdir={folder}/run", f"--to_hub={folder}/hub") == 0
    said.append(printed.getvalue())
    return folder


def test_a_model_goes_out_and_back_to_the_bit(run):
    assert hope("convert", f"--from_safetensors={run}/hub", f"--workdir={run}/new") == 0
    (model, params, _), (other, back, _) = (load_model(str(run / n)) for n in ("run", "new"))
    assert model.config == other.config and model.config.adapting_blocks == 1
    assert "bfloat16" in {str(leaf.dtype) for leaf in jax.tree.leaves(params)}
    assert jax.tree.structure(params) == jax.tree.structure(back)
    for mine, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(back), strict=True):
        assert mine.dtype == theirs.dtype
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()


def test_a_run_is_made_in_a_bucket_which_gets_all_of_it(run, flaky, monkeypatch, capsys):  # noqa: F811
    call = "convert", f"--from_safetensors={run}/hub", f"--workdir={RUN}"

    def cut(operation, path):
        if operation in ("write", "put") and "/checkpoints/" in path:
            raise OSError("the line is dead")

    with monkeypatch.context() as patch:
        patch.setattr(Flaky, "before", cut)
        patch.setattr(mirror, "_PATIENCE", 0.1)
        assert hope(*call) == UNSENT
    assert whole_steps(Bucket(RUN).files()) == []
    assert hope(*call) == 0
    assert hope(*call) != 0
    assert f"--workdir={RUN} holds a run already" in capsys.readouterr().err
    (_, params, _), (_, back, _) = (load_model(fetch_run(str(n))) for n in (run / "run", RUN))
    for mine, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(back), strict=True):
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()


def test_layers_whose_names_have_dots_come_back(tmp_path):
    params = {"blocks": {"mine.Layer": {"kernel": np.ones((2, 3), np.float32)}}}
    write_params(tmp_path, params)
    back = read_params(tmp_path, params)
    assert jax.tree.structure(back) == jax.tree.structure(params)


def test_the_card_says_what_was_measured(run):
    card = (run / "hub" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: hope_jax\n")
    assert "Validation loss: not measured" in card and "bfloat16" in card


def test_the_licence_is_left_to_the_author_who_is_told(run, said):
    assert "license" not in (run / "hub" / "README.md").read_text()
    assert "a line such as license: apache-2.0 at the top" in said[0]


def test_weights_that_do_not_fit_are_named(run, tmp_path, capsys):
    weights = load_file(run / "hub" / "model.safetensors")
    del weights["embedding"]
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((run / "hub" / "config.json").read_text())
    command = ("convert", f"--from_safetensors={tmp_path}", f"--workdir={tmp_path}/new")
    assert hope(*command) == 2 and "lacks embedding" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert hope(*command) == 2 and "cannot be read" not in capsys.readouterr().err
