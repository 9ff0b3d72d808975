"""`hope convert --from_llama`: what it tells of a checkpoint whose attention is cut."""

import json

import pytest

from hope_jax.commands.convert import import_llama
from hope_jax.data.tokenizers import copy_tokenizer
from tests.models.test_llama import SIZES, write_random
from tests.training.runs import tiny_config


@pytest.mark.parametrize(
    "longest, sinks, tells", [(64, 0, True), (64, 1, False), (16, 0, False)], ids=str
)
def test_a_window_that_hides_the_first_token_is_told_of(
    tmp_path, monkeypatch, longest, sinks, tells
):
    folder = tmp_path / "theirs"
    folder.mkdir()
    monkeypatch.setitem(SIZES, "vocab_size", 256)
    write_random(folder, "untied")
    copy_tokenizer("bytes", folder)
    theirs = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(theirs | {"max_position_embeddings": longest}))
    config = tiny_config(tmp_path)  # of which attention sees 16 tokens
    config.model.attention_sinks = sinks
    told = []
    import_llama(str(folder), str(tmp_path / "run"), config, told.append)
    assert len(told) == tells
    if tells:
        assert "trained to see 64 tokens and is cut to 16" in told[0]
        assert "model.attention_sinks=1 keeps it in sight" in told[0]
    run = json.loads((tmp_path / "run" / "config.json").read_text())
    assert run["model"]["attention_sinks"] == sinks
