"""The scripts of `experiments/sleep/` on facts, and a small reader for them."""

import importlib
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from hope_jax.data.tokenizers import load_tokenizer
from hope_jax.models import LanguageModel, LanguageModelConfig
from tests.evaluation.scripts import FOLDER

NAMES = ("facts", "facts_pretrain", "words", "convolved_attention")
NAMES += ("ten_nights", "dreaming", "two_languages", "languages_pretrain")


@pytest.fixture(scope="session")
def scripts():
    """Once for all: a layer that is imported twice is two layers, and programs are kept by its name."""
    others = sys.modules.pop("words", None)  # those of another folder
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER / "sleep"))
        found = {name: importlib.import_module(name) for name in NAMES}
    del sys.modules["words"]
    if others is not None:
        sys.modules["words"] = others
    return found


@pytest.fixture
def tokenizer(scripts, tmp_path):
    path = str(tmp_path / "words.json")
    scripts["words"].make_tokenizer().save(path)
    return load_tokenizer(path)


@pytest.fixture
def reader(scripts, tokenizer):
    return reader_with(scripts, tokenizer, 1)


def reader_with(scripts, tokenizer, levels):
    """A model with a chain of so many levels in its last block."""
    config = LanguageModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=8,
        num_layers=2,
        num_heads=2,
        mlp_width=8,
        sequence_layer="convolved_attention.ConvolvedAttention",
        cms_levels=levels,
        in_context={"chunks": tuple(32 * 2**level for level in range(levels)), "blocks": 1},
    )
    model = LanguageModel(config)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    return scripts["facts"].Model(model, params, tokenizer)


@pytest.fixture
def few(scripts, monkeypatch):
    """Few and short documents are rehearsed."""
    monkeypatch.setattr(scripts["facts"], "DOCUMENTS", 6)
    monkeypatch.setattr(scripts["facts"], "PART", 12)
    return scripts["facts"]
