"""Corpus, tokenizers, batches and n-grams."""

import pickle

import numpy as np
import pytest

from hope_jax.data.corpus import load_documents
from hope_jax.data.ngram import witten_bell_bits_per_byte
from hope_jax.data.pipeline import PackedWindows, ValidationBatches, train_iterator
from hope_jax.data.token_stream import encode_documents
from hope_jax.data.tokenizers import ByteTokenizer, load_tokenizer

DOCUMENTS = [bytes([65 + i] * (5 + 3 * i)) + b"\n" for i in range(12)]


def batches(seed=0, sequence_length=8, **settings):
    settings = {"batch_size": 4, **settings}
    stream = encode_documents(DOCUMENTS, ByteTokenizer())
    return train_iterator([PackedWindows(stream, sequence_length)], seed=seed, **settings)


def test_standard_library_is_a_corpus():
    documents = load_documents()
    assert len(documents.train) > 5 * len(documents.validation) > 0
    assert any(b"def " in document for document in documents.validation)


def test_split_does_not_depend_on_place_or_on_other_files(tmp_path, monkeypatch):
    folder = tmp_path / "a" / "deep"
    folder.mkdir(parents=True)
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"text {i}")
    monkeypatch.chdir(tmp_path)
    relative = load_documents("a/**/*.txt")
    assert relative == load_documents(str(tmp_path / "a/**/*.txt"))
    (folder / "new.txt").write_text("new")
    more = load_documents("a/**/*.txt")
    assert set(relative.train) <= set(more.train)
    assert set(relative.validation) <= set(more.validation)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(files="nothing/*.txt"), "matches no file"),
        (dict(files="empty.txt"), "0 training and 0 validation"),
        (dict(files="empty.txt", tfds="x"), "both given"),
        (dict(validation_fraction=0.0), "between 0 and 1"),
    ],
)
def test_bad_corpora_are_refused(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=message):
        load_documents(**settings)


@pytest.fixture(scope="module")
def tfds(tmp_path_factory):
    """TFDS with three data sets of its own, prepared as ArrayRecord in its data folder."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")

    class Bottles(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        SPLITS = ("train", "validation", "test")
        NAMES = ("title", "text")

        def _info(self):
            features = {"count": tfds.features.Scalar(dtype=np.int64)}
            features |= {name: tfds.features.Text() for name in self.NAMES}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in self.SPLITS}

        def _generate_examples(self, split):
            for i in range(50):
                yield i, {"count": i} | {name: f"{name} {split} {i}" for name in self.NAMES}

    class UnsplitBottles(Bottles):
        SPLITS = ("train",)
        NAMES = ("only",)

    class TitledBottles(Bottles):
        NAMES = ("title", "author")

    for kind in (Bottles, UnsplitBottles, TitledBottles):
        kind(data_dir=folder, file_format="array_record").download_and_prepare()
    tfds.core.add_data_dir(folder)
    return tfds


def test_texts_of_a_tfds_data_set(tfds):
    """Without a validation split, documents are held out; any only string feature is the text."""
    documents = load_documents(tfds="unsplit_bottles")
    expected = sorted(f"only train {i}".encode() for i in range(50))
    assert sorted(documents.train + documents.validation) == expected
    assert 0 < len(documents.validation) < 15


def test_a_tfds_validation_split_is_kept_and_test_is_not_read(tfds):
    documents = load_documents(tfds="bottles")
    for part, name in zip(documents, documents._fields, strict=True):
        assert sorted(part) == sorted(f"text {name} {i}".encode() for i in range(50))


def test_tfds_data_sets_without_text_are_refused(tfds):
    with pytest.raises(ValueError, match=r"no feature 'text'.*\['author', 'title'\]"):
        load_documents(tfds="titled_bottles")
    with pytest.raises(ValueError, match=r"data.tfds='no_such_bottles'.*TFDS_DATA_DIR"):
        load_documents(tfds="no_such_bottles")


def test_windows_follow_each_other_and_mark_documents():
    """Every token but the first is a target once; resets and weights lie at document starts."""
    text = b"".join(DOCUMENTS)
    stream = encode_documents(DOCUMENTS, ByteTokenizer())
    found = list(ValidationBatches(PackedWindows(stream, 8), batch_size=4))
    rows = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
    count = (len(text) - 1) // 8
    np.testing.assert_array_equal(rows["tokens"][:count].ravel(), list(text[: count * 8]))
    np.testing.assert_array_equal(rows["targets"][:count].ravel(), list(text[1 : count * 8 + 1]))
    starts = np.cumsum([0, *(len(document) for document in DOCUMENTS)])[:-1]
    np.testing.assert_array_equal(np.flatnonzero(rows["reset"][:count]), starts[starts < count * 8])
    inner = starts[(starts > 0) & (starts <= count * 8)] - 1
    np.testing.assert_array_equal(np.flatnonzero(rows["weights"][:count] == 0), inner)
    assert not rows["weights"][count:].any()


def test_iterator_state_takes_up_the_order_past_an_epoch():
    first = batches()
    drawn = [next(first)["tokens"] for _ in range(9)]
    assert len(b"".join(DOCUMENTS)) // 8 < 9 * 4  # more than one epoch
    second = batches()
    for cut in (2, 7):
        third = batches()
        for _ in range(cut):
            next(third)
        second.set_state(third.get_state())
        for expected in drawn[cut:]:
            np.testing.assert_array_equal(next(second)["tokens"], expected)
    assert any((a != b).any() for a, b in zip(drawn, (next(batches(1))["tokens"],), strict=False))


def test_order_does_not_depend_on_the_number_of_processes():
    whole = next(batches())["tokens"]
    parts = [next(batches(process_index=i, process_count=2))["tokens"] for i in range(2)]
    np.testing.assert_array_equal(np.stack(parts, axis=1).reshape(whole.shape), whole)


def test_a_batch_may_be_a_single_sequence():
    whole, single = batches(), batches(batch_size=1)
    for _ in range(3):
        rows = [next(single)["tokens"] for _ in range(4)]
        np.testing.assert_array_equal(np.concatenate(rows), next(whole)["tokens"])


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match="fewer than the 1001"):
        batches(sequence_length=1000)
    with pytest.raises(ValueError, match=r"data.batch_size=400"):
        batches(batch_size=400)
    with pytest.raises(ValueError, match="does not divide among 3 processes"):
        batches(process_count=3)


def test_tokenizers_round_trip_and_pickle(tmp_path):
    text = "the cat sat on the mat. " * 40
    import sentencepiece
    import tokenizers

    corpus = tmp_path / "corpus.txt"
    corpus.write_text(text.replace(". ", ".\n"))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "sp"),
        vocab_size=24,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    pairs = tokenizers.Tokenizer(tokenizers.models.BPE())
    pairs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    pairs.decoder = tokenizers.decoders.ByteLevel()
    pairs.train_from_iterator([text], tokenizers.trainers.BpeTrainer(vocab_size=60))
    pairs.save(str(tmp_path / "pairs.json"))
    for name in ("bytes", str(tmp_path / "sp.model"), str(tmp_path / "pairs.json")):
        tokenizer = pickle.loads(pickle.dumps(load_tokenizer(name)))
        ids = tokenizer.encode(b"the cat sat")
        assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < tokenizer.vocab_size
        assert tokenizer.decode(ids).strip() == "the cat sat"


@pytest.mark.parametrize(
    ("name", "message"), [("words", "is not known"), ("missing.json", "there is no such file")]
)
def test_unknown_tokenizers_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        load_tokenizer(name)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ngram_equals_dictionaries(order):
    """The recursion as it is written, byte by byte."""
    train = [b"abracadabra", b"alakazam", b"a"]
    validation = [b"abrakadabra", b"zzz"]
    follows = {}
    for document in train:
        for i, byte in enumerate(document):
            for length in range(min(i, order - 1) + 1):
                counts = follows.setdefault(document[i - length : i], {})
                counts[byte] = counts.get(byte, 0) + 1

    def probability(history, byte):
        lower = probability(history[1:], byte) if history else 1 / 256
        counts = follows.get(history)
        if not counts:
            return lower
        total, kinds = sum(counts.values()), len(counts)
        return (counts.get(byte, 0) + kinds * lower) / (total + kinds)

    bits = [
        -np.log2(probability(document[max(0, i - order + 1) : i], byte))
        for document in validation
        for i, byte in enumerate(document)
    ]
    np.testing.assert_allclose(
        witten_bell_bits_per_byte(train, validation, order), np.mean(bits), rtol=1e-12
    )
