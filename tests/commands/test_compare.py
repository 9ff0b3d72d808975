"""A comparison of two tiny variants, and the rows that ship."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from hope_jax.commands import compare
from hope_jax.models.flops import count_flops
from hope_jax.models.parameter_count import parameter_count
from hope_jax.runs.config_file import load_config_file
from tests.training.runs import QUICKSTART, tiny_config


def ablations():
    return load_config_file(QUICKSTART.with_name("ablations.py"))


def test_rows_have_the_same_number_of_parameters():
    module = ablations()
    counts = {row: parameter_count(module.model_config(row)) for row in module.ROWS}
    for row, count in counts.items():
        assert abs(count / counts["hope"] - 1) <= 0.02, (row, count, counts["hope"])
    assert len(counts) == 41
    config = module.get_config("no_decay")
    assert config.model.titans.retention == "none"
    with pytest.raises(ValueError, match="unknown row 'nothing'"):
        module.get_config("nothing")


def test_flops_are_those_of_the_products():
    x, w = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
    assert count_flops(lambda x, w: x @ w, x, w) == 2 * 2 * 3 * 4 * 5
    # The backward pass has two products of the same size.
    loss = lambda w, x: jnp.sum(jnp.sin(x @ w))
    assert count_flops(jax.grad(loss), w, x) == 2 * 2 * 2 * 3 * 4 * 5
    inside = jax.jit(jax.checkpoint(lambda x: jax.vmap(lambda row: row @ w)(x)))
    branches = lambda x: jax.lax.cond(x.sum() > 0, inside, lambda x: x @ jnp.ones((4, 5)), x)
    assert count_flops(branches, x) == 2 * 2 * 3 * 4 * 5
    dearest = lambda x: jax.lax.platform_dependent(
        x, tpu=lambda x: x @ jnp.ones((4, 4)), default=lambda x: x + 1
    )
    assert count_flops(dearest, x) == 0  # no TPU here


def test_variants_are_trained_once_and_tabled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small, large = (tiny_config(tmp_path, steps=3) for _ in range(2))
    large.model.mlp_width = 32
    configs = {"small": small, "large": large}
    folder = tmp_path / "runs"
    runs = compare.compare(configs, folder, 2, [1e-2, 1e-3])
    assert [(run.variant, run.seed) for run in runs] == [
        (name, seed) for name in configs for seed in (0, 0, 1)
    ]
    best = min(runs[:2], key=lambda run: run.loss)
    assert runs[2].rate == best.rate
    assert len({run.loss for run in runs}) == 6 and all(math.isfinite(run.loss) for run in runs)
    table = (folder / "table.md").read_text().splitlines()
    assert len(table) == 4
    mean = (best.loss + runs[2].loss) / 2
    assert f"{mean:.4f}" in table[2] and "| 2 |" in table[2]
    assert (folder / "losses.png").stat().st_size > 5_000

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(compare, "train", never)
    again = compare.compare(configs, folder, 2, [1e-2, 1e-3])
    assert [run.loss for run in again] == [run.loss for run in runs]
    large.steps = 4
    with pytest.raises(ValueError, match="other settings"):
        compare.compare(configs, folder, 2, [1e-2, 1e-3])


def test_a_run_that_diverges_is_a_row_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def diverges(config, workdir):
        raise compare.NonFiniteLossError("step 1: loss nan")

    monkeypatch.setattr(compare, "train", diverges)
    folder = tmp_path / "runs"
    (folder / "one" / "rate_0.1" / "seed_0").mkdir(parents=True)
    (run,) = compare.compare({"one": tiny_config(tmp_path)}, folder, 1, [0.1])
    assert run.loss == math.inf
    kept = json.loads((folder / "one" / "rate_0.1" / "seed_0" / "result.json").read_text())
    assert kept["loss"] == math.inf
    assert "| diverged |  | 0 | 1 of 1 |" in (folder / "table.md").read_text()


def test_what_is_asked_for_wrongly_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"file.py:one,two"):
        compare.load_configs("nowhere.py:one", [])
    with pytest.raises(ValueError, match=r"file.py:one,two"):
        compare.load_configs(str(QUICKSTART), [])
    with pytest.raises(ValueError, match="data.batch is no setting; nearest: data.batch_size"):
        compare.load_configs(f"{QUICKSTART}:hope", ["data.batch=4"])
    configs = compare.load_configs(f"{QUICKSTART}:hope,transformer", ["data.batch_size=4"])
    assert [config.data.batch_size for config in configs.values()] == [4, 4]
