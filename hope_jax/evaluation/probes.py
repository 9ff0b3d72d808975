"""The probes there are, and texts like theirs to train on."""

from collections.abc import Iterator, Sequence

import numpy as np

from hope_jax.data.tokenizers import ByteTokenizer
from hope_jax.evaluation import facts, needles
from hope_jax.evaluation.probe import Probe
from hope_jax.evaluation.questions import lay_out

PROBES = {
    "needles": Probe("Needles in a haystack", tuple(needles.KINDS), needles.make_needles),
    "facts": Probe("Facts scattered in a text", facts.KINDS, facts.make_facts),
}


def documents(
    probe: str = "needles",
    count: int = 1000,
    lengths: int | Sequence[int] = 1024,
    kinds: str | Sequence[str] = "S-2",
    seed: int = 0,
    text: str | None = None,
) -> Iterator[str]:
    """Texts with things hidden in them, questions and right answers, to train on: a `data.source`.

    Args:
      probe: of `PROBES`.
      count: of documents.
      lengths: of which each document has one, in bytes, its answer left out.
      kinds: of which each has one; a text has commas between them.
      seed: of the drawing. What is tested on is drawn with other numbers (`probe.ask`).
      text: prose to hide things in; None for generated sentences.

    Raises:
      ValueError: for a probe or kind that is none, and a length that is too small.

    Example:
      >>> next(documents(lengths=600, kinds="S-1"))[:49]
      'Some special magic numbers are hidden within the '
    """
    if probe not in PROBES:
        raise ValueError(f"probe={probe!r} is none; there are {', '.join(PROBES)}")
    lengths = (lengths,) if isinstance(lengths, int) else lengths
    kinds = kinds.split(",") if isinstance(kinds, str) else kinds
    known = PROBES[probe].kinds
    if unknown := [kind for kind in kinds if kind not in known]:
        raise ValueError(f"kinds has {unknown[0]!r}; there are {', '.join(known)}")
    for number in range(count):
        random = np.random.default_rng([seed, number])
        kind = kinds[int(random.integers(len(kinds)))]
        length = lengths[int(random.integers(len(lengths)))]
        item, haystack = PROBES[probe].draw(kind, random, random.random(), text)
        ids = lay_out(item, haystack, ByteTokenizer(), length)
        yield f"{ByteTokenizer().decode(ids).lstrip()} {', '.join(item.answers)}.\n"
