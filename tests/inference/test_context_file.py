import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.inference.array_file import packed, unpacked
from hope_jax.inference.context_file import (
    _start,
    context_content,
    load_context,
    save_context,
)
from hope_jax.inference.sampling import read
from hope_jax.models import LanguageModel, LanguageModelConfig

MODEL = LanguageModel(
    LanguageModelConfig(
        vocab_size=11,
        width=8,
        num_layers=2,
        num_heads=2,
        mlp_width=12,
        attention_window=5,
        sequence_layer="attention",
        dtype="bfloat16",
    )
)
PROMPT = jnp.arange(6)[None]


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0), PROMPT)["params"]


@pytest.fixture
def saved(params, tmp_path):
    path = tmp_path / "folder" / "state"
    save_context(path, read(MODEL, params, PROMPT), MODEL, params)
    return path


def test_every_array_comes_back_to_the_bit(params, saved):
    loaded = load_context(saved, MODEL, params)
    context = read(MODEL, params, PROMPT)
    assert jax.tree.structure(loaded) == jax.tree.structure(context)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(context), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert [path.name for path in saved.parent.iterdir()] == ["state"]


def test_another_config_is_refused(params, saved):
    other = LanguageModel(dataclasses.replace(MODEL.config, attention_window=6))
    message = "another model: attention_window is 5 there and 6 here"
    with pytest.raises(ValueError, match=message):
        load_context(saved, other, params)


def test_other_parameters_are_refused(params, saved):
    trained = jax.tree.map(lambda p: p + 1e-4, params)
    with pytest.raises(ValueError, match="written with other parameters"):
        load_context(saved, MODEL, trained)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"some text", lambda data: b""]
)
def test_a_damaged_file_is_refused(params, saved, damage):
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(ValueError, match="is no state file, or a damaged one"):
        load_context(saved, MODEL, params)


def test_one_flipped_bit_anywhere_is_found(params, saved):
    content = bytearray(saved.read_bytes())
    for number, offset in enumerate([*range(60), *range(60, len(content), 97)]):
        content[offset] ^= 1 << number % 8
        saved.write_bytes(content)
        with pytest.raises(ValueError, match="is no state file, or a damaged one"):
            load_context(saved, MODEL, params)
        content[offset] ^= 1 << number % 8


def test_a_file_of_before_there_were_checksums_is_read(params, saved):
    saved.write_bytes(saved.read_bytes().split(b"\n", 1)[1])
    loaded = load_context(saved, MODEL, params)
    context = read(MODEL, params, PROMPT)
    jax.tree.map(np.testing.assert_array_equal, loaded, context)


def test_a_file_whose_heads_lay_within_the_slots_of_rings_is_read(params, saved):
    context = read(MODEL, params, PROMPT)
    content = context_content(context, MODEL, params)
    saved.write_bytes(content)
    held = unpacked(saved, "context", "state file")
    words = {name: held[name] for name in ("config", "parameters")}
    arrays = {
        name.replace(".ring_", "."): np.swapaxes(array, 2, 3) if ".ring_" in name else array
        for name, array in held["arrays"].items()
    }
    assert sum(name.endswith((".keys", ".values")) for name in arrays) == 2
    saved.write_bytes(packed("context", words, arrays))
    jax.tree.map(np.testing.assert_array_equal, load_context(saved, MODEL, params), context)


def test_a_planted_link_is_not_followed(params, saved, tmp_path):
    """Nobody can foresee the name of the unfinished file; a link in the place of the file is replaced."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    saved.unlink()
    saved.symlink_to(victim)
    saved.with_name("state.unfinished").symlink_to(victim)
    save_context(saved, read(MODEL, params, PROMPT), MODEL, params)
    assert victim.read_text() == "mine" and not saved.is_symlink()


def test_a_missing_file_is_named(params, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no state file .*nowhere"):
        load_context(tmp_path / "nowhere", MODEL, params)


@pytest.mark.parametrize("shape", [(), (5,), (2000,), (5, 7), (2, 3, 400), (3, 40, 50), (2, 0)])
def test_the_start_of_an_array_is_that_of_its_rows_in_order(shape):
    leaf = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_array_equal(_start(leaf), leaf.reshape(-1)[:1024])
