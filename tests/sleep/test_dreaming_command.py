"""The experiment on dreams: what is read and asked, how dreams are tried, what is told of them."""

import dataclasses
import importlib
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from hope_jax.data.tokenizers import load_tokenizer
from hope_jax.models import LanguageModel, LanguageModelConfig
from tests.evaluation.scripts import FOLDER

NAMES = ("dreaming", "facts", "facts_pretrain", "words", "convolved_attention")


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER / "sleep"))
        yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def tokenizers(scripts, tmp_path_factory):
    """Without friends, and with them."""
    found = []
    for friends in (False, True):
        path = str(tmp_path_factory.mktemp("words") / "words.json")
        scripts["words"].make_tokenizer(friends).save(path)
        found.append(load_tokenizer(path))
    return found


@pytest.fixture(scope="module")
def reader(scripts, tokenizers):
    tokenizer = tokenizers[1]
    config = LanguageModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=8,
        num_layers=2,
        num_heads=2,
        mlp_width=8,
        sequence_layer="convolved_attention.ConvolvedAttention",
        in_context={"chunks": (32,), "blocks": 1},
    )
    model = LanguageModel(config)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    return scripts["facts"].Model(model, params, tokenizer)


def test_a_trial(scripts, reader, monkeypatch, tmp_path):
    dreaming = scripts["dreaming"]
    monkeypatch.setattr(scripts["facts"], "DOCUMENTS", 6)
    monkeypatch.setattr(scripts["facts"], "PART", 12)
    small = dict(steps=2, samples=2, kept_samples=4, tokens=4, expert_width=2)
    monkeypatch.setattr(dreaming, "NIGHT", dataclasses.replace(dreaming.NIGHT, **small))
    small = dict(dreams=4, dream_tokens=6, best=1, others=1, trial_steps=1, dream_steps=2)
    monkeypatch.setattr(dreaming, "DREAMING", dataclasses.replace(dreaming.DREAMING, **small))
    experiment = dreaming.Experiment(reader, tmp_path / "nights", tmp_path / "trials.jsonl")
    for arm in ("nights alone", "dreams", "without trials"):
        row = experiment.trial(arm, 0, 1e-3)
        print(row)
    assert row["helped"] == 1
