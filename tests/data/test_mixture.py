"""Several sources as one, and documents that are kept whole."""

import numpy as np
import pytest

from hope_jax.data.first_fit import FittedRows, first_fit
from hope_jax.data.joined import JoinedTokens, join_streams
from hope_jax.data.pipeline import PackedWindows, train_iterator
from hope_jax.data.token_stream import TokenStream

LENGTH = 8


def stream_of(*documents):
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    return TokenStream(np.concatenate(documents), starts, sum(map(len, documents)), 1000)


def source(first, count):
    """Windows whose every token says of which source and window it is."""
    ids = np.repeat(np.arange(first, first + count), LENGTH)
    return PackedWindows(stream_of(np.append(ids, 0)), LENGTH)


SOURCES = source(1, 30), source(100, 7), source(200, 12)


def drawn(steps, place=None, weights=(5.0, 2.0, 3.0), **settings):
    """Names of the windows of so many batches, and the place after them."""
    settings = {"batch_size": 10, "seed": 3, **settings}
    batches = train_iterator(SOURCES, weights=weights, **settings)
    if place is not None:
        batches.set_state(place)
    rows = [next(batches)["tokens"][:, 0] for _ in range(steps)]
    return np.array(rows), batches.get_state()


def test_sources_come_in_the_proportions_of_their_weights():
    rows, _ = drawn(42)
    kinds = np.searchsorted([100, 200], rows, side="right")
    for row in kinds:  # in every batch
        assert np.bincount(row, minlength=3).tolist() == [5, 2, 3]
    # Each source comes whole before it comes again, in another order.
    for number, windows in enumerate(SOURCES):
        names = rows.ravel()[kinds.ravel() == number]
        passes = names[: len(names) // len(windows) * len(windows)].reshape(-1, len(windows))
        assert len(passes) > 1 and (passes[0] != passes[1]).any()
        for one in passes:
            assert sorted(one) == sorted(windows[i]["tokens"][0] for i in range(len(windows)))
    uneven, _ = drawn(42, weights=(0.1, 0.6, 0.3))
    shares = np.bincount(np.searchsorted([100, 200], uneven.ravel(), side="right")) / uneven.size
    np.testing.assert_allclose(shares, (0.1, 0.6, 0.3), atol=0.01)


def test_a_mixture_goes_on_where_it_was_on_any_number_of_processes():
    whole, _ = drawn(20)
    for count in (1, 2, 5):
        settings = [{"process_index": i, "process_count": count} for i in range(count)]
        rows = [drawn(9, **own)[0] for own in settings]
        place = drawn(9, **settings[-1])[1]
        np.testing.assert_array_equal(np.stack(rows, 2).reshape(9, 10), whole[:9])
        # Taken up by one process, or by two, from what another number of them has saved.
        np.testing.assert_array_equal(drawn(11, place)[0], whole[9:])
        two = [drawn(11, place, process_index=i, process_count=2)[0] for i in range(2)]
        np.testing.assert_array_equal(np.stack(two, 2).reshape(11, 10), whole[9:])


def test_joined_streams_are_read_as_one():
    parts = [np.arange(n, dtype=np.uint16) + 10 * n for n in (5, 1, 9)]
    joined, whole = JoinedTokens(parts), np.concatenate(parts)
    assert len(joined) == len(whole)
    for first in range(17):
        for end in range(17):
            np.testing.assert_array_equal(joined[first:end], whole[first:end])
    streams = [
        stream_of(part[:3], part[3:]) if len(part) > 3 else stream_of(part) for part in parts
    ]
    both = join_streams(streams)
    assert both.starts.tolist() == [0, 3, 5, 6, 9] and both.num_bytes == 15


def documents():
    draw = np.random.default_rng(0)
    sizes = draw.integers(1, 14, 400)
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end) % 997 + 1 for end, size in zip(ends, sizes, strict=True)]


def test_first_fit_is_first_fit():
    """By lists: each piece goes to the oldest open row with room; of 64, the fullest is closed."""
    texts = documents()
    stream = stream_of(*texts)
    found = first_fit(stream.starts, len(stream.tokens), LENGTH)
    rows, still_open = [[] for _ in range(64)], list(range(64))
    for start, text in zip(stream.starts, texts, strict=True):
        for cut in range(0, len(text) - 1, LENGTH):
            size = min(LENGTH, len(text) - 1 - cut)
            room = [LENGTH - sum(n for _, n in rows[row]) for row in still_open]
            fitting = [row for row, free in zip(still_open, room, strict=True) if free >= size]
            if not fitting:
                still_open.pop(room.index(min(room)))
                still_open.append(len(rows))
                fitting = [len(rows)]
                rows.append([])
            rows[fitting[0]].append((start + cut, size))
    here = [
        list(zip(found.first[a:b], found.size[a:b], strict=True))
        for a, b in zip(found.begin, found.begin[1:], strict=False)
    ]
    assert here == [row for row in rows if row] and len(here) > 100


def test_documents_are_whole_where_they_fit_and_every_target_comes_once():
    texts = documents()
    fitted = FittedRows(stream_of(*texts), LENGTH)
    pairs, whole = [], 0
    for number in range(len(fitted)):
        row = fitted[number]
        filled = int(row["weights"].sum())
        assert row["weights"][:filled].all() and not row["tokens"][filled:].any()
        begins = [*np.flatnonzero(row["reset"][:filled]), filled]
        assert begins[0] == 0
        for begin, end in zip(begins, begins[1:], strict=False):
            piece = [*row["tokens"][begin:end], row["targets"][end - 1]]
            np.testing.assert_array_equal(row["targets"][begin : end - 1], piece[1:-1])
            whole += any(piece == text.tolist() for text in texts if len(text) == len(piece))
        pairs += zip(row["tokens"][:filled], row["targets"][:filled], strict=True)
    wanted = [pair for text in texts for pair in zip(text, text[1:], strict=False)]
    assert sorted(pairs) == sorted(wanted)
    assert whole >= sum(1 < len(text) <= LENGTH + 1 for text in texts)
    assert len(wanted) / (len(fitted) * LENGTH) > 0.95
    with pytest.raises(ValueError, match="no document of the corpus part has two tokens"):
        FittedRows(stream_of(*[[1]] * 20), LENGTH)
