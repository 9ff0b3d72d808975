"""A stream: texts that come in stages, read one after the other, and questions about each stage between.

After each stage all stages so far are asked about, and the next one; before the first, every stage. So a
matrix of scores has what `hope_jax.evaluation.forgetting` needs, and no more.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from hope_jax.data.tokenizers import Tokenizer, decode_to_end
from hope_jax.evaluation.choices import log_likelihoods
from hope_jax.evaluation.chrf import chrf
from hope_jax.evaluation.forgetting import averages, forgetting, forward_transfer
from hope_jax.inference.batch_of_one import as_batch
from hope_jax.inference.sampling import Context, read_in_segments, sample
from hope_jax.models.language_model import LanguageModel, init_state


class Question(NamedTuple):
    """A question after a stream.

    Attributes:
      prompt: up to where the answer begins.
      answer: the right one.
    """

    prompt: str
    answer: str


class Stage(NamedTuple):
    """What comes in one piece.

    Attributes:
      name: of it.
      documents: texts in the order in which they are read.
      questions: about it; none of them, nor its answer, is in a document as it stands.
      labels: answers that come with it. A model chooses among those of all stages so far, and of the
        question's own; where there are none it speaks.
    """

    name: str
    documents: tuple[str, ...]
    questions: tuple[Question, ...]
    labels: tuple[str, ...] = ()


class Place(NamedTuple):
    """Which question, and when.

    Attributes:
      read: stages read before it.
      stage: number of its own, from 0.
      number: among the stage's questions.
    """

    read: int
    stage: int
    number: int


class Asking(NamedTuple):
    """How a stream is read and asked.

    Attributes:
      batch_size: answers at a time.
      segment: tokens of a call while it is read.
      answer_tokens: of what is spoken, at most.
    """

    batch_size: int
    segment: int
    answer_tokens: int


def places_of(stages: Sequence[Stage]) -> list[Place]:
    """All that is asked, in the order of reading.

    Example:
      >>> stage = Stage("one", ("a.",), (Question("b", "c"),))
      >>> [(place.read, place.stage) for place in places_of([stage, stage, stage])]
      [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
    """
    return [
        Place(read, stage, number)
        for read in range(len(stages) + 1)
        for stage in range(len(stages))
        if stage <= read or read == 0
        for number in range(len(stages[stage].questions))
    ]


def place_of(line: Mapping[str, Any]) -> Place:
    """The question that a line answers."""
    return Place(*(line[name] for name in Place._fields))


def ask_stream(
    stages: Sequence[Stage],
    asking: Asking,
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    places: Sequence[Place],
) -> Iterator[dict[str, Any]]:
    """Reads a stream in memory that does not grow with it, and asks in between.

    A model whose levels learn in context goes on learning through all stages. Questions are each asked
    from what was read, and leave no trace in it. Where an earlier call has asked some, what comes before
    the others is read again.

    Args:
      stages: of the stream.
      asking: how.
      model: that reads.
      params: of the model.
      tokenizer: of the model.
      places: what to ask.

    Yields:
      As `ask_after`.
    """
    context = nothing_read(model, params, tokenizer)
    for read in range(max((place.read for place in places), default=-1) + 1):
        if read:
            ids = np.concatenate([tokenizer.encode(text) for text in stages[read - 1].documents])
            ids = np.asarray(ids, np.int32)[None]
            context = read_in_segments(model, params, ids, asking.segment, context)
        here = [place for place in places if place.read == read]
        yield from ask_after(stages, asking, model, params, tokenizer, here, context)


def nothing_read(model: LanguageModel, params: Any, tokenizer: Tokenizer) -> Context:
    """The context of a model that has read the tokenizer's first tokens, if it has any."""
    context = Context(init_state(model, params, 1), jnp.zeros((1, model.config.vocab_size)))
    if not tokenizer.before:
        return context
    ids = np.asarray(tokenizer.before, np.int32)[None]
    return read_in_segments(model, params, ids, ids.shape[1], context)


def ask_after(
    stages: Sequence[Stage],
    asking: Asking,
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    places: Sequence[Place],
    context: Context,
) -> Iterator[dict[str, Any]]:
    """Asks a model that has read some stages.

    Args:
      stages: of the stream.
      asking: how.
      model: that is asked.
      params: of the model.
      tokenizer: of the model.
      places: what to ask.
      context: what was read.

    Yields:
      Of each question its place, the `answer`, what was `said`, the `share` of it that is right, 0 or 1,
      the `chrf` of what is spoken, and `seconds` of its batch over the batch.
    """
    # Of one length whatever is asked, for one program.
    longest = _longest(tokenizer, [one.prompt for stage in stages for one in stage.questions])
    longest_label = _longest(tokenizer, [_label(one) for stage in stages for one in stage.labels])
    for start in range(0, len(places), asking.batch_size):
        part = places[start : start + asking.batch_size]
        questions = [stages[place.stage].questions[place.number] for place in part]
        began = time.monotonic()
        if stages[0].labels:
            length = longest + longest_label
            said = _choose(stages, asking, model, params, tokenizer, part, context, length)
        else:
            prompts = [question.prompt for question in questions]
            said = speak(model, params, tokenizer, prompts, context, asking, longest)
        seconds = round((time.monotonic() - began) / len(part), 3)
        for place, question, words in zip(part, questions, said, strict=True):
            line: dict[str, Any] = {
                **place._asdict(),
                "answer": question.answer,
                "said": words,
                "share": float(words == question.answer),
            }
            if not stages[0].labels:
                line["chrf"] = round(chrf(words, question.answer), 4)
            yield {**line, "seconds": seconds}


def candidates(stages: Sequence[Stage], place: Place) -> list[str]:
    """Labels that a question may have: those of all stages so far, and of its own and those before.

    So a stage has the same choice before it is read, whether others were read or none.
    """
    known = stages[: max(place.read, place.stage + 1)]
    return [label for stage in known for label in stage.labels]


def _choose(
    stages: Sequence[Stage],
    asking: Asking,
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    places: Sequence[Place],
    context: Context,
    length: int,
) -> list[str]:
    """Of each question the likeliest candidate; none has more than `length` tokens with its prompt."""
    choices = [candidates(stages, place) for place in places]
    labels = max(choices, key=len)  # the shorter ones are its beginning
    found = log_likelihoods(
        model,
        params,
        tokenizer,
        [stages[place.stage].questions[place.number].prompt for place in places],
        [[_label(label) for label in labels]] * len(places),
        context.state,
        batch_size=asking.batch_size,
        length=length,
    )
    return [
        labels[int(row[: len(some)].argmax())] for row, some in zip(found, choices, strict=True)
    ]


def _longest(tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    return max((len(tokenizer.encode(text)) for text in texts), default=0)


def _label(label: str) -> str:
    """As documents have it; the end of its line tells it from a longer one that begins so."""
    return f" {label}\n"


def speak(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    context: Context,
    asking: Asking,
    longest: int,
) -> list[str]:
    """What a model says after each prompt at its likeliest, up to the end of the line.

    Args:
      model: that speaks.
      params: of the model.
      tokenizer: of the model.
      prompts: at most a batch of them.
      context: from which each goes on.
      asking: how.
      longest: tokens of the longest prompt, so that calls share one program.
    """
    rows = [np.asarray(tokenizer.encode(prompt), np.int32) for prompt in prompts]
    lengths = np.array([*map(len, rows), *[1] * (asking.batch_size - len(rows))], np.int32)
    given = np.zeros((asking.batch_size, longest + asking.answer_tokens), np.int32)
    for place, row in enumerate(rows):
        given[place, : len(row)] = row
    said, _ = sample(
        model,
        params,
        as_batch(model, context, asking.batch_size),
        jax.random.key(0),
        num_tokens=given.shape[1],
        temperature=0,
        vocab_size=tokenizer.vocab_size,
        given=given,
        given_length=lengths,
    )
    texts = []
    for ids, row in zip(np.asarray(said), rows, strict=False):
        ids = ids[len(row) : len(row) + asking.answer_tokens]
        texts.append(decode_to_end(tokenizer, ids).strip(" ").split("\n")[0].strip())
    return texts


def scores_of(
    stages: Sequence[Stage], lines: Sequence[Mapping[str, Any]], measure: str
) -> Float[np.ndarray, "N+1 N"]:
    """The mean of a measure by stages read and stage asked; NaN where nothing or not all was asked."""
    found: dict[tuple[int, int], dict[int, float]] = {}
    for line in lines:
        read, stage, number = place_of(line)
        found.setdefault((read, stage), {})[number] = line[measure]
    scores = np.full((len(stages) + 1, len(stages)), math.nan)
    for (read, stage), shares in found.items():
        if len(shares) == len(stages[stage].questions):
            scores[read, stage] = statistics.fmean(shares.values())
    return scores


MEASURES: Mapping[str, Callable[[np.ndarray], float]] = {
    "average at the end": lambda scores: float(averages(scores)[-1]),
    "forgetting": forgetting,
    "forward transfer": forward_transfer,
}


def measures_of(stages: Sequence[Stage]) -> dict[str, str]:
    """What lines have scores in, and what a table calls it."""
    if stages[0].labels:
        return {"share": "accuracy"}
    return {"share": "exact translations", "chrf": "chrF"}


def stream_table(stages: Sequence[Stage], lines: Sequence[Mapping[str, Any]], title: str) -> str:
    """Scores by stages read and stage asked, and what they come to, as Markdown."""
    table = []
    for measure, name in measures_of(stages).items():
        scores = scores_of(stages, lines, measure)
        means = [math.nan, *averages(scores)]
        table += [
            f"{title}: {name} in per cent, of each stage's questions after so many stages; the average "
            f"is that of the stages so far.",
            "",
            "| read | " + " | ".join(stage.name for stage in stages) + " | average |",
            "|---" * (2 + len(stages)) + "|",
        ]
        for read, (row, mean) in enumerate(zip(scores, means, strict=True)):
            cells = " | ".join(percent(score) for score in [*row, mean])
            table.append(f"| {read} | {cells} |")
        told = "; ".join(f"{name} {percent(of(scores))}" for name, of in MEASURES.items())
        table += ["", f"{told[0].upper()}{told[1:]}.".replace(" ;", ";"), ""]
    return "\n".join(table)


def percent(share: float) -> str:
    """In per cent, empty for NaN."""
    return "" if math.isnan(share) else f"{100 * share:.1f}"
