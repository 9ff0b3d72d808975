import pytest

from hope_jax.inference.text_stream import TextStream


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
