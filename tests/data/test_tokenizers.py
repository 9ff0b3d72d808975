"""What a tokenizer knows of itself, and what is no tokenizer."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers

from hope_jax.commands.tokenize import tokenize
from hope_jax.data.pipeline import PackedWindows
from hope_jax.data.token_stream import encode_documents, read_tokens
from hope_jax.data.tokenizers import (
    ByteTokenizer,
    check_vocabulary,
    copy_tokenizer,
    load_tokenizer,
    tokenizer_file,
)
from tests.data.tokens import write_tokens

TEXT = "the cat sat on the mat. " * 40


def word_pieces(path, **settings):
    """Words and letters, after NFKC, with marks around a text."""
    words = {w: i for i, w in enumerate(["[UNK]", "[B]", "[E]", "the", "cat", "sat", "fi", "1"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.NFKC()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["[B]", "[E]"])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[B] $A [E]", special_tokens=[("[B]", 1), ("[E]", 2)]
    )
    for name, arguments in settings.items():
        getattr(made, name)(**arguments)
    made.save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text").write_text(TEXT.replace(". ", ".\n"))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=24,
        model_type="bpe",
        minloglevel=2,
        hard_vocab_limit=False,
    )
    return folder


def test_settings_for_other_jobs_are_switched_off(tmp_path):
    path = word_pieces(
        tmp_path / "t.json", enable_truncation={"max_length": 3}, enable_padding={"length": 16}
    )
    assert load_tokenizer(path).encode("the cat sat " * 5).tolist() == [3, 4, 5] * 5
    assert load_tokenizer(path).encode("the").tolist() == [3]


def test_marks_around_a_text_and_ends(tmp_path, pieces):
    made = load_tokenizer(word_pieces(tmp_path / "t.json"))
    assert (made.before, made.after, made.end_ids) == ((1,), (2,), ())
    assert made.decode([1, 3, 4, 2]) == "the cat"
    stream = encode_documents([b"the cat", b"", b"sat"], made)
    assert stream.tokens.tolist() == [1, 3, 4, 2, 1, 5, 2]
    assert stream.starts.tolist() == [0, 4]
    assert stream.num_told == 5  # what foretold losses are of: all but the two first ones
    window = PackedWindows(stream, 5)[0]
    assert window["weights"].tolist() == [1, 1, 1, 0, 1]
    assert window["reset"].tolist() == [True, False, False, False, True]

    path = str(pieces / "tokenizer.model")
    assert load_tokenizer(path).before == ()
    for about, before, after in (
        ({"add_bos_token": True}, (1,), ()),
        ({"add_bos_token": False, "add_eos_token": True}, (), (2,)),
    ):
        (pieces / "tokenizer_config.json").write_text(json.dumps({**about, "eos_token": "</s>"}))
        found = pickle.loads(pickle.dumps(load_tokenizer(path)))
        assert (found.before, found.after, found.end_ids) == (before, after, (2,))
    (pieces / "config.json").write_text('{"eos_token_id": 5}')
    assert load_tokenizer(path).end_ids == (5,)
    (pieces / "generation_config.json").write_text('{"eos_token_id": [6, 7]}')
    assert load_tokenizer(path).end_ids == (6, 7)


def test_gaps_between_ids_count(tmp_path):
    path = tmp_path / "t.json"
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 9}, unk_token="a"))
    made.save(str(path))
    assert load_tokenizer(str(path)).vocab_size == 10
    with pytest.raises(ValueError, match=r"'x' has 10 tokens, but model.vocab_size=9; set"):
        check_vocabulary(load_tokenizer(str(path)), 9, "x")
    check_vocabulary(load_tokenizer(str(path)), 10, "x")


def test_digest_and_ids_are_of_one_file(tmp_path, pieces, monkeypatch):
    """A file that is replaced later changes neither, in this process or in those that encode."""
    for path in (word_pieces(tmp_path / "t.json"), str(pieces / "tokenizer.model")):
        content = Path(path).read_bytes()
        made = load_tokenizer(path)
        ids = made.encode("the cat").tolist()
        Path(path).write_bytes(b"another")
        assert made.digest == hashlib.sha256(content).hexdigest()
        assert pickle.loads(pickle.dumps(made)).encode("the cat").tolist() == ids
        with pytest.raises(ValueError, match="is no "):
            load_tokenizer(path)
        Path(path).write_bytes(content)
        assert load_tokenizer(path).digest == made.digest


@pytest.mark.parametrize("end", ["t.json", "t.model"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"junk", "t.* is no "),
        (b"", "t.* is no "),
        (b"aGVsbG8= 1\nd29ybGQ= 2\n", "t.* is no "),  # of tiktoken
        (b"version https://git-lfs.github.com/spec/v1\noid", "run git lfs pull"),
    ],
)
def test_what_is_no_tokenizer_is_refused(end, content, message, tmp_path):
    (tmp_path / end).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(str(tmp_path / end))


def test_a_folder_has_a_tokenizer_of_either_kind_or_says_what_it_lacks(tmp_path):
    with pytest.raises(ValueError, match="neither tokenizer.json nor tokenizer.model"):
        tokenizer_file(tmp_path)
    for name in ("tokenizer.model", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"")
        assert tokenizer_file(tmp_path).name == name


def test_bytes_of_the_first_token_are_those_of_the_file(tmp_path, pieces):
    made = load_tokenizer(word_pieces(tmp_path / "t.json"))
    # The ligature and the superscript are three and two bytes there, and one word here.
    assert made.encode("\ufb01 \u00b9 cat").tolist() == [6, 7, 4]
    assert made.bytes_of_first("\ufb01 \u00b9 cat") == len("\ufb01 ".encode())
    assert made.bytes_of_first("\ufb01") == 3
    found = load_tokenizer(str(pieces / "tokenizer.model"))
    assert found.processor.encode("\uff54he cat", out_type=str)[0] == "\u2581the"
    assert found.bytes_of_first("\uff54he cat") == 5  # a wide letter of three bytes
    assert found.bytes_of_first("the") == 3
    assert ByteTokenizer().bytes_of_first("\ufb01") == 1


def test_bytes_become_a_file_of_the_same_ids(tmp_path):
    copy_tokenizer("bytes", tmp_path)
    made = load_tokenizer(str(tokenizer_file(tmp_path)))
    text = "".join(map(chr, range(300))) + " \u20ac\U0001f642  two"
    assert made.encode(text).tolist() == ByteTokenizer().encode(text).tolist()
    assert made.decode(made.encode(text)) == text
    assert (made.vocab_size, made.before, made.after, made.end_ids) == (256, (), (), ())


def test_token_files_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    for i in range(30):
        (tmp_path / "text" / f"{i}.txt").write_text("the cat sat " * 9)
    path = word_pieces(tmp_path / "t.json")
    made = load_tokenizer(path)
    tokenize(["text"], path, "tokens", validation_fraction=0.3)
    whole = read_tokens("tokens", "train", made)
    assert whole.num_told == len(whole.tokens) - len(whole.starts)
    assert whole.tokens[:3].tolist() == [1, 3, 4]
    about = json.loads((tmp_path / "tokens" / "tokens.json").read_text())

    def refused(message, change=None, **changes):
        changed = json.dumps({**about, **changes}) if change is None else change
        (tmp_path / "tokens" / "tokens.json").write_text(changed)
        with pytest.raises(ValueError, match=message):
            read_tokens("tokens", "train", made)

    refused("is damaged", change='{"dtype": "<u2"')
    refused("is damaged", change="[]")
    refused("is damaged", dtype="<f8")
    refused("is damaged", train={"tokens": -3, "documents": 1, "bytes": 1})
    refused(r"another tokenizer \(9 tokens", vocab_size=9)
    refused("another tokenizer", tokenizer="0" * 64)
    refused(r"written with \[\] before", before=[])
    refused("has .* bytes where tokens.json says", dtype="<u4")
    (tmp_path / "tokens" / "tokens.json").write_text(json.dumps(about))

    tokens = tmp_path / "tokens" / "train.tokens"
    content = tokens.read_bytes()
    tokens.write_bytes(content[:-2])
    with pytest.raises(ValueError, match="has .* bytes where tokens.json says"):
        read_tokens("tokens", "train", made)
    tokens.write_bytes(content)
    # Cut off while it is open: an error of the window that is gone, not the death of the process.
    windows = PackedWindows(read_tokens("tokens", "train", made), 8)
    tokens.write_bytes(content[:20])
    assert windows[0]["tokens"][0] == 1
    with pytest.raises(ValueError, match="has become shorter since it was opened"):
        windows[len(windows) - 1]
    # Ids that are none.
    ids = np.frombuffer(content, "<u2").copy()
    ids[20] = 60_000
    tokens.write_bytes(ids.tobytes())
    windows = PackedWindows(read_tokens("tokens", "train", made), 8)
    assert windows[0]["tokens"][0] == 1
    with pytest.raises(ValueError, match="tokens 16 to 24 hold ids 3 to 60000, but .* has 8"):
        windows[2]
    starts = tmp_path / "tokens" / "train.starts"
    starts.write_bytes(starts.read_bytes()[8:] + b"\0" * 8)
    with pytest.raises(ValueError, match="train.starts is damaged"):
        read_tokens("tokens", "train", made)
    for ids in ([-1], [8]):
        with pytest.raises(ValueError, match="a tokenizer of 8 tokens gave ids"):
            write_tokens("bad", [("train", 1, np.array(ids))], made)


def test_a_single_file_becomes_tokens_of_both_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("line\n" * 100)
    counts = tokenize(["one.txt"], "bytes", "tokens", validation_fraction=0.1)
    assert (counts["train"]["bytes"], counts["validation"]["bytes"]) == (450, 50)
    (tmp_path / "two.txt").write_text("two")
    counts = tokenize(["one.txt", "two.txt"], "bytes", "more", validation_fraction=1e-9)
    assert [counts[part]["tokens"] for part in ("train", "validation")] == [500, 3]
    found = [read_tokens("more", part, ByteTokenizer()) for part in counts]
    assert bytes(found[1].tokens[:].tolist()) == b"two"
    assert [part.starts.tolist() for part in found] == [[0], [0]]
