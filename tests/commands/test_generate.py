import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.commands.evaluate import measure
from hope_jax.commands.generate import read_prompt, stream_text
from hope_jax.inference.context_file import load_context, save_context
from hope_jax.models import LanguageModel, LanguageModelConfig

MODEL = LanguageModel(
    LanguageModelConfig(
        vocab_size=256,
        width=8,
        num_layers=2,
        num_heads=2,
        mlp_width=12,
        cms_levels=2,
        tie_embeddings=False,
        titans={"memory_chunk": 2, "generator_chunk": 4},
    )
)
GREEDY = {"temperature": 0.0, "top_p": 1.0, "seed": 0}


class Letters:
    """One letter for each id, so that any sample is text."""

    vocab_size = 256
    before = end_ids = ()

    def encode(self, text):
        return np.array([ord(letter) % 256 for letter in text], np.int32)

    def decode(self, ids):
        return "".join(chr(256 + i) for i in ids)


@pytest.fixture(scope="module")
def params():
    params = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    return nn.unbox(params)


def test_what_was_read_and_said_is_carried_from_call_to_call(params, tmp_path):
    def speak(read, tokens):
        pieces = []
        context = stream_text(
            MODEL, params, Letters(), *read, write=pieces.append, num_tokens=tokens, **GREEDY
        )
        return "".join(pieces), context

    whole, _ = speak(read_prompt(MODEL, params, Letters(), "Hope is"), 12)
    first, context = speak(read_prompt(MODEL, params, Letters(), "Hope is"), 5)
    save_context(tmp_path / "state", context, MODEL, params)
    context = load_context(tmp_path / "state", MODEL, params)
    second, _ = speak(read_prompt(MODEL, params, Letters(), "", context), 7)
    assert first + second == whole
    assert len(set(whole)) > 3


def test_bits_are_of_the_files_own_bytes(params, tmp_path):
    """Whatever a tokenizer makes of them, with and without a first token that foretells the text."""
    text = "\ufb01 \ufb01 \u00b9 fi"  # 3 + 1 + 3 + 1 + 2 + 1 + 2 bytes, of which decoding gives 9
    read = jax.jit(MODEL.apply)
    for before, told, count in (((), 9, 3), ((7,), 13, 4), ((7, 9), 13, 4)):
        made = Words()
        made.before = before
        losses, size, _ = measure(MODEL, params, made, text)
        assert (len(losses), size) == (count, told)
        ids = np.array([[*before, 1, 1, 2, 1]])
        # Of one length, which is one program: what comes later is not seen.
        logits, _ = read({"params": params}, np.pad(ids, [(0, 0), (0, 6 - ids.size)]))
        said = np.asarray(jax.nn.log_softmax(logits))
        expected = -said[0, np.arange(ids.size - 1), ids[0, 1:]]
        np.testing.assert_allclose(losses, expected[-count:], atol=1e-5)
    losses, size, context = measure(MODEL, params, Words(), "\ufb01")
    assert (losses.size, size) == (0, 0)
    assert measure(MODEL, params, Words(), "\ufb01", context)[1] == 3
    with pytest.raises(ValueError, match="the text has no token"):
        measure(MODEL, params, Words(), " ")


class Words(Letters):
    """A word for each id, after NFKC."""

    def encode(self, text):
        words = unicodedata.normalize("NFKC", text).split()
        return np.array([("", "fi", "1").index(word) for word in words], np.int32)

    def bytes_of_first(self, text):
        return len(text[: text.find(" ") + 1 or None].encode())


def test_nothing_to_continue_is_refused(params):
    with pytest.raises(ValueError, match="give --prompt, or --state_in, or both"):
        read_prompt(MODEL, params, Letters(), "")
