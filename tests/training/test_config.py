"""Configs are whole, whatever they began with, and every setting can be set from outside."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from hope_jax.commands.config import change_settings, config_table, parse
from hope_jax.models import LanguageModelConfig
from hope_jax.runs import run_config
from hope_jax.runs.config_file import load_config_file
from hope_jax.runs.run_config import find_changes, keep_config
from hope_jax.settings import describe
from hope_jax.training.config import RunConfig, default_config, whole_config
from tests.training.runs import QUICKSTART, load_config

SIZES = {"vocab_size": 256, "width": 8, "num_layers": 4, "num_heads": 2, "mlp_width": 16}
# What a run wrote down before configs were whole.
OLDER = {
    "seed": 0,
    "steps": 700,
    "accumulate": 1,
    "model": {
        **SIZES,
        "sequence_layer": "attention",
        "cms_levels": 2,
        "titans": {},
        "in_context": {"objective": "local", "chunks": [64, 512], "step_size": 1.0, "blocks": 1},
    },
    "data": {"files": "", "tokenizer": "bytes", "validation_fraction": 0.1, "batch_size": 8},
    "optimizer": {
        "name": "adamw",
        "learning_rate": 1,
        "warmup_steps": 20,
        "final_fraction": 0.05,
        "clip_norm": 1.0,
        "weight_decay": 0.0,
        "arguments": {"b1": 0.8},
        "periods": {"level_1": 8},
    },
    "mesh": {"data": -1},
    "checkpoint": {"every": 100, "keep": 2},
    "evaluate": {"every": 100, "ngram_orders": [3, 4], "prompt": "def "},
    "log": {"every": 10},
}


def test_an_older_run_s_config_is_completed_and_goes_on(tmp_path):
    whole = whole_config(OLDER)
    assert whole.data.sequence_length == 512 and whole.data.tokens == ""
    assert whole.model.in_context.chunks == (64, 512)
    assert whole.model.in_context.momentum == 0.9
    assert whole.model.titans.memory_chunk == 16
    assert whole.optimizer.arguments.to_dict() == {"b1": 0.8}
    assert isinstance(whole.optimizer.learning_rate, float)
    assert whole_config(whole) == whole
    (tmp_path / "config.json").write_text(json.dumps(OLDER))
    assert find_changes(tmp_path, whole, whole_config) == []
    with pytest.raises(ValueError, match="data.sequence_length: None there, 512 here"):
        find_changes(tmp_path, whole)
    keep_config(tmp_path, whole)
    assert find_changes(tmp_path, whole) == []


def test_a_run_of_before_goes_on_with_the_defaults_that_m3_had(tmp_path):
    optimizer = {**OLDER["optimizer"], "name": "m3", "arguments": {"b3": 0.5}}
    older = {**OLDER, "optimizer": optimizer}
    (tmp_path / "config.json").write_text(json.dumps(older))
    there = whole_config(run_config.load_config(str(tmp_path)))
    before = {"alpha": 0.5, "slow_every": 16, "b3": 0.5, "nesterov": False}
    assert there.optimizer.arguments.to_dict() == before
    assert find_changes(tmp_path, there, whole_config) == []
    with pytest.raises(ValueError, match="optimizer.arguments.alpha: 0.5 there, None here"):
        find_changes(tmp_path, whole_config(older), whole_config)
    keep_config(tmp_path, whole_config(older))  # as a run of today
    assert run_config.load_config(str(tmp_path)).optimizer.arguments.to_dict() == {"b3": 0.5}


def test_a_run_of_before_goes_on_with_the_memories_that_it_had(tmp_path):
    """What they read was not normalised by default; a model without memories has nothing of it."""
    model = {**SIZES, "titans": {"memory_chunk": 4, "others_chunk": 8}}
    for layers, before in (
        ({}, False),
        ({"pattern": ["titans", "attention"], "num_layers": 2}, False),
        ({"sequence_layer": "attention"}, True),
    ):
        older = {**OLDER, "model": {**model, **layers}}
        (tmp_path / "config.json").write_text(json.dumps(older))
        there = whole_config(run_config.load_config(str(tmp_path)))
        assert there.model.titans.output_norm is before
        assert there.model.titans.generator_chunk == 8
        today = whole_config({**older, "model": {**SIZES, **layers}})
        keep_config(tmp_path, today)
        there = whole_config(run_config.load_config(str(tmp_path)))
        assert there.model.titans.output_norm is True


def test_every_setting_is_in_every_config_and_can_be_set():
    config = default_config(**SIZES)
    rows = [row for row in describe(RunConfig) if row.section is None]
    assert len(rows) > 80
    for row in rows:
        value = row.default
        if row.key.startswith("model.rope_scaling."):
            config.model.rope_scaling = ConfigDict({"kind": "linear", "factor": 2.0})
        elif row.key.startswith("model.in_context."):
            config.model.in_context = ConfigDict({"chunks": (64,)})
        else:
            *sections, name = row.key.split(".")
            held = config
            for section in sections:
                held = held[section]
            assert name in held, row.key
            value = held[name]
        if value is dataclasses.MISSING:
            value = {"kind": "linear", "factor": 2.0}[row.key.rpartition(".")[2]]
        changed = change_settings(RunConfig, config, [f"{row.key}={value}"])
        assert whole_config(changed) == whole_config(config), row.key


def test_sections_that_are_off_are_turned_on_by_what_is_set_in_them():
    changes = ["model.in_context.step_size=0.5,0.25", "model.in_context.chunks=4,8"]
    changes += ["model.cms_levels=2", "model.in_context.blocks=none", "optimizer.arguments.b1=0.5"]
    config = whole_config(change_settings(RunConfig, default_config(**SIZES), changes))
    assert config.model.in_context.step_size == (0.5, 0.25)
    assert config.model.in_context.objective == "next_token"
    assert LanguageModelConfig.from_config_dict(config.model).adapting_blocks == 1
    assert config.optimizer.arguments.b1 == 0.5
    off = whole_config(change_settings(RunConfig, config, ["model.in_context=none"]))
    assert off.model.in_context is None
    table = config_table(RunConfig, off)
    assert "\nmodel.titans.eta_max = None " in table and "above 0 and at most 2 or None" in table
    assert "#   model.in_context.decay = 0.0 " in table
    for row in describe(RunConfig):
        assert row.key in table and row.meaning in table


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, "3", 3),
        (int, "3x", "3x"),
        (float, "1e-3", 1e-3),
        (str, "None", "None"),
        (bool, "true", True),
        (int | None, "None", None),
        (tuple[str, ...], "a, b", ("a", "b")),
        (tuple[str, ...], "('a', 'b')", ("a", "b")),
        (tuple[str, ...], "", ()),
        (tuple[int, ...], "()", ()),
        (float | tuple[float, ...], "0.5", 0.5),
        (float | tuple[float, ...], "0.5,1", (0.5, 1)),
    ],
)
def test_a_text_is_the_value_of_its_setting_s_type(hint, text, value):
    assert parse(hint, text) == value


def test_what_is_asked_for_is_made_to_fit_and_said():
    said = []
    older = {**OLDER, "data": {"sequence_length": 1024}}
    short = {**older, "steps": 20}
    assert whole_config(short, said.append).optimizer.warmup_steps == 2
    assert said == ["optimizer.warmup_steps=20 shortened to 2, because steps=20"]
    said.clear()
    tokens = {**older, "data": {**older["data"], "tokens": "folder"}}
    assert whole_config(tokens, said.append).evaluate.ngram_orders == ()
    assert said[0].startswith("evaluate.ngram_orders=(3, 4) left out")
    whole_config(older, said.append)
    assert len(said) == 1


def test_chunks_that_no_sequence_goes_beyond_are_told_of():
    """Memories that are never written in training, and written for the first time in use."""
    said = []

    def settings_told_of(length, **model):
        said.clear()
        model = {**SIZES, **model}
        whole_config({**OLDER, "model": model, "data": {"sequence_length": length}}, said.append)
        return [line.split(" ")[0] for line in said]

    chunks = {"memory_chunk": 16, "generator_chunk": 64}
    assert settings_told_of(64, titans=chunks) == ["model.titans.generator_chunk=64"]
    assert "make the chunk at most 32, or" in said[0]
    assert settings_told_of(65, titans=chunks) == []
    assert len(settings_told_of(16, titans=chunks)) == 2
    assert settings_told_of(64, titans={**chunks, "adaptive": ()}) == []
    assert settings_told_of(8, sequence_layer="attention") == []
    levels = {"chunks": (16, 512), "objective": "local"}
    assert settings_told_of(512, in_context=levels, cms_levels=2, titans=chunks) == [
        "model.in_context.chunks=512"
    ]


@pytest.mark.parametrize("variant", ["hope", "hope_attention", "transformer", "learning"])
def test_the_quickstart_s_configs_are_whole(variant):
    config = load_config(variant)
    assert whole_config(config) == config


def test_rows_of_the_ablations_carry_every_field_and_differ(monkeypatch):
    module = load_config_file(QUICKSTART.with_name("ablations.py"))
    monkeypatch.setitem(module.MODEL, "nested", {"cms_connection": "nested"})
    monkeypatch.setattr(module, "ROWS", (*module.ROWS, "nested"))
    assert module.get_config("nested").model.cms_connection == "nested"
    nested = module.get_config("nested")
    assert whole_config(nested).to_dict() == nested.to_dict()

    module._models.cache_clear()
    monkeypatch.setitem(module.MODEL, "same", {"cms_connection": "sequential"})
    monkeypatch.setattr(module, "ROWS", (*module.ROWS, "same"))
    with pytest.raises(ValueError, match="rows 'hope' and 'same' are the same model"):
        module.get_config("hope")
