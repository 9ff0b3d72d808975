"""A probe: questions to a model that has been trained already, by length of what it has read."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hope_jax.data.tokenizers import Tokenizer
from hope_jax.evaluation.questions import Item, answer, lay_out, share_found
from hope_jax.models.language_model import LanguageModel
from hope_jax.settings import check_fields, setting

Draw = Callable[[str, np.random.Generator, float, str | None], tuple[Item, Iterator[str]]]


@dataclasses.dataclass(frozen=True)
class ProbeSettings:
    """What is asked of a model.

    Raises:
      ValueError: on construction, for values that do not fit.
    """

    kinds: tuple[str, ...] = setting("of questions; empty for all", ())
    lengths: tuple[int, ...] = setting(
        "tokens of what is read, question included", (1024, 2048, 4096), least=1
    )
    depths: int = setting("where in the text things are hidden, evenly from 0 to 1", 5, least=1)
    items: int = setting("questions at each length and depth", 4, least=1)
    batch_size: int = setting("texts read at a time", 4, least=1)
    segment: int = setting("tokens of each text read in a call", 1024, least=1)
    answer_tokens: int = setting("tokens of an answer at most", 128, least=1)
    seed: int = setting("of the questions", 0, least=0)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.lengths:
            raise ValueError("lengths is empty; give a number of tokens, or several")

    @property
    def places(self) -> tuple[float, ...]:
        """The depths; one alone is in the middle."""
        if self.depths == 1:
            return (0.5,)
        return tuple(place / (self.depths - 1) for place in range(self.depths))


class Probe(NamedTuple):
    """A kind of questions.

    Attributes:
      title: what a table calls it.
      kinds: names of what it draws.
      draw: an item and a text for it: `draw(kind, random, depth, text)`.
    """

    title: str
    kinds: Sequence[str]
    draw: Draw


class Question(NamedTuple):
    """One question.

    Attributes:
      kind: of the probe.
      length: tokens.
      depth: from 0 to 1.
      number: among those of its kind, length and depth.
    """

    kind: str
    length: int
    depth: float
    number: int


def questions_of(probe: Probe, settings: ProbeSettings) -> list[Question]:
    """All questions, the short texts first.

    Raises:
      ValueError: for a kind that the probe has not.
    """
    kinds = settings.kinds or tuple(probe.kinds)
    for kind in kinds:
        if kind not in probe.kinds:
            raise ValueError(f"kinds has {kind!r}; there are {', '.join(probe.kinds)}")
    return [
        Question(kind, length, depth, number)
        for length in sorted(settings.lengths)
        for kind in kinds
        for depth in settings.places
        for number in range(settings.items)
    ]


def ask(
    probe: Probe,
    settings: ProbeSettings,
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    text: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Asks questions, as many at a time as a batch holds of one kind and length.

    Args:
      probe: that draws them.
      settings: of the reading.
      model: that is asked.
      params: of the model.
      tokenizer: of the model.
      questions: to ask.
      text: prose to hide things in; None for what the probe makes.

    Yields:
      Of each question its fields, the `answers` asked for, what was `said`, the `share` of the answers
      in that, and `seconds` of its batch over the batch.

    Raises:
      ValueError: if a length is too small.
    """
    alike: dict[tuple[str, int], list[Question]] = {}
    for one in questions:
        alike.setdefault((one.kind, one.length), []).append(one)
    for (_, length), group in alike.items():
        for start in range(0, len(group), settings.batch_size):
            part = group[start : start + settings.batch_size]
            items, rows = [], []
            for one in part:
                # By its own numbers, so that it is the same whatever else is asked.
                place = round(1000 * one.depth)
                kind = probe.kinds.index(one.kind)
                # The first number keeps these apart from what `documents` draws to train on.
                random = np.random.default_rng(
                    [1, settings.seed, kind, one.length, place, one.number]
                )
                item, haystack = probe.draw(one.kind, random, one.depth, text)
                items.append(item)
                rows.append(lay_out(item, haystack, tokenizer, length))
            # Filled up, for one program.
            rows += rows[:1] * (settings.batch_size - len(rows))
            begun = time.monotonic()
            said = answer(
                model,
                params,
                tokenizer,
                np.stack(rows),
                segment=settings.segment,
                num_tokens=settings.answer_tokens,
            )
            seconds = (time.monotonic() - begun) / len(part)
            for one, item, words in zip(part, items, said, strict=False):
                yield {
                    **one._asdict(),
                    "answers": list(item.answers),
                    "said": words,
                    "share": share_found(words, item.answers),
                    "seconds": round(seconds, 3),
                }


def question_of(line: Mapping[str, Any]) -> Question:
    """The question that a line answers."""
    return Question(*(line[name] for name in Question._fields))


def answers_table(probe: Probe, settings: ProbeSettings, lines: Sequence[Mapping[str, Any]]) -> str:
    """The share of answers found by kind and length, over all depths, as Markdown."""
    wanted = set(questions_of(probe, settings))
    shares: dict[tuple[str, int], list[float]] = {}
    for line in lines:
        if question_of(line) in wanted:
            shares.setdefault((line["kind"], line["length"]), []).append(line["share"])
    lengths = sorted(settings.lengths)
    table = [
        f"{probe.title}: answers found, in per cent, with the standard error over questions, by tokens "
        f"read.",
        "",
        "| kind | " + " | ".join(f"{length:,}" for length in lengths) + " |",
        "|---" * (1 + len(lengths)) + "|",
    ]
    for kind in settings.kinds or tuple(probe.kinds):
        cells = [_percent(shares.get((kind, length), [])) for length in lengths]
        table.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join([*table, ""])


def _percent(shares: Sequence[float]) -> str:
    if not shares:
        return ""
    mean = f"{100 * statistics.fmean(shares):.1f}"
    if len(shares) < 2:
        return mean
    return f"{mean} ± {100 * statistics.stdev(shares) / math.sqrt(len(shares)):.1f}"
