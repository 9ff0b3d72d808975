import json

import pytest

from hope_jax.data.tokenizers import load_tokenizer
from hope_jax.inference.text_stream import TextStream, show_controls


def decode_bytes(ids):
    return bytes(ids).decode(errors="replace")


def decode_words(ids):
    """As SentencePiece does: a space between words, none before the first."""
    return " ".join(["Nested", "learning", "learns"][i] for i in ids)


def test_characters_appear_when_their_last_byte_has_come():
    stream = TextStream(decode_bytes)
    pieces = [stream.push(byte) for byte in "naïve €🙂!".encode()]
    assert pieces == ["n", "a", "", "ï", "v", "e", " ", "", "", "€", "", "", "", "🙂", "!"]
    assert stream.flush() == ""


@pytest.mark.parametrize("data", [b"a\xffb", b"\xe2\x82", b"\xff" * 9 + b"a", b"\xf0\x9f\x99a"])
def test_broken_characters_are_neither_lost_nor_waited_for(data):
    stream = TextStream(decode_bytes)
    text = "".join(map(stream.push, data)) + stream.flush()
    assert text == data.decode(errors="replace")


def test_spaces_between_words_are_kept():
    stream = TextStream(decode_words)
    assert [stream.push(i) for i in (0, 1, 2)] == ["Nested", " learning", " learns"]


@pytest.fixture(scope="module", params=["sentencepiece", "metaspace", "pairs"])
def tokenizer(request, tmp_path_factory):
    """Tokenizers that write spaces between words, and one that writes them before."""
    import sentencepiece
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("tokenizer")
    lines = ["the cat sat on the mat", "a caf\u00e9 for the cat"] * 20
    if request.param == "sentencepiece":
        (folder / "text").write_text("\n".join(lines))
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text"),
            model_prefix=str(folder / "t"),
            vocab_size=310,
            model_type="bpe",
            byte_fallback=True,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        return load_tokenizer(str(folder / "t.model"))
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True))
    special = ["<s>", "</s>"]
    if request.param == "metaspace":  # as Llama 2
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
        special += [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    made.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    if request.param == "metaspace":  # bytes are letters of the model, not special
        kept = json.loads(made.to_str())
        kept["added_tokens"] = kept["added_tokens"][:2]
        made = tokenizers.Tokenizer.from_str(json.dumps(kept))
    made.save(str(folder / "t.json"))
    return load_tokenizer(str(folder / "t.json"))


def test_a_text_in_two_parts_is_that_in_one(tokenizer):
    """Wherever it is cut, and if special tokens stand around the cut, or at its start."""
    text = "the cat sat on a caf\u00e9 mat"
    ids = tokenizer.encode(text).tolist()
    assert tokenizer.decode(ids) == text
    first = tokenizer.encode("the cat").tolist()
    assert ids[: len(first)] == first
    start = 1  # <s> here and there, which has no text
    for cut in range(len(ids) + 1):
        for marks in ([], [start], [start] * 9):
            before = [start, *ids[:cut], *marks]
            stream = TextStream(tokenizer.decode, before)
            made = "".join(map(stream.push, [*marks, *ids[cut:]])) + stream.flush()
            whole = tokenizer.decode(ids)
            shown = tokenizer.decode(ids[:cut])
            if "\N{REPLACEMENT CHARACTER}" not in shown:  # not within a character
                assert shown + made == whole, (cut, len(marks))
    stream = TextStream(tokenizer.decode, first)
    assert [stream.push(i) for i in tokenizer.encode("the cat sat").tolist()[len(first) :]][0][
        0
    ] == " "


def test_many_tokens_without_text_take_no_more_time(tokenizer):
    looked = []

    def decode(ids):
        looked.append(len(ids))
        return tokenizer.decode(ids)

    stream = TextStream(decode)
    assert not any(stream.push(1) for _ in range(500))
    assert max(looked) < 50


def test_controls_do_not_reach_the_terminal():
    text = "a\tb\n\x1b[2J\r\x07\x9b\u202ec \N{WOMAN}\u200d\N{PERSONAL COMPUTER} \N{EURO SIGN}"
    shown = "a\tb\n\\x1b[2J\\r\\x07\\x9b\\u202ec \N{WOMAN}\u200d\N{PERSONAL COMPUTER} \N{EURO SIGN}"
    assert show_controls(text) == shown
