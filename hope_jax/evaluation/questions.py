"""Questions about a text that has just been read: laid out in tokens, answered, scored."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from hope_jax.data.tokenizers import Tokenizer, decode_to_end
from hope_jax.inference.sampling import generate, read_in_segments
from hope_jax.models.language_model import LanguageModel


class Hidden(NamedTuple):
    """A sentence that is hidden.

    Attributes:
      sentence: with a space before it.
      depth: where it lies, from 0, near the beginning, to 1, at the end.
    """

    sentence: str
    depth: float


class Item(NamedTuple):
    """A text with things hidden in it, and a question about them.

    Attributes:
      preface: before the text.
      hidden: in it.
      question: after it, up to where the answer begins.
      answers: all of which are asked for.
    """

    preface: str
    hidden: tuple[Hidden, ...]
    question: str
    answers: tuple[str, ...]


def lay_out(
    item: Item, haystack: Iterator[str], tokenizer: Tokenizer, length: int
) -> Int[np.ndarray, " T"]:
    """The ids of an item, exactly as many as wanted.

    Sentences are encoded one by one. So much is cut from the front of the text that the length comes out.

    Args:
      item: to lay out.
      haystack: sentences in which things are hidden.
      tokenizer: of the model.
      length: T, the ids of `tokenizer.before`, preface, text and question together.

    Raises:
      ValueError: if what is to be read anyway is longer.
    """
    encode = functools.lru_cache(maxsize=4096)(
        lambda text: tuple(np.asarray(tokenizer.encode(text)).tolist())
    )
    first = [*tokenizer.before, *encode(item.preface)]
    last = encode(item.question)
    parts = [encode(hidden.sentence) for hidden in item.hidden]
    room = length - len(first) - len(last) - sum(map(len, parts))
    if room < 1:
        raise ValueError(
            f"a length of {length} tokens is too small: question and what is hidden take "
            f"{length - room}; give more"
        )
    sentences: list[tuple[int, ...]] = []
    while room > 0:
        sentences.append(encode(next(haystack)))
        if not sentences[-1]:
            raise ValueError("the tokenizer drops a sentence of the text to hide things in")
        room -= len(sentences[-1])
    excess = -room
    while excess >= len(sentences[0]):
        excess -= len(sentences.pop(0))
    sentences[0] = sentences[0][excess:]
    ids = first
    # Behind the first sentence at least, in the order of their depths.
    places = [max(1, round(hidden.depth * len(sentences))) for hidden in item.hidden]
    for number, sentence in enumerate(sentences, 1):
        ids.extend(sentence)
        for part, place in zip(parts, places, strict=True):
            if place == number:
                ids.extend(part)
    ids.extend(last)
    return np.array(ids, np.int32)


def answer(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    ids: Int[np.ndarray, "B T"],
    *,
    segment: int,
    num_tokens: int,
) -> list[str]:
    """What a model says after each of some texts, at its likeliest token by token.

    Texts are read in segments, in memory that does not grow with them.

    Args:
      model: that reads.
      params: of the model.
      tokenizer: of the model.
      ids: of the texts with their questions.
      segment: tokens of a call.
      num_tokens: to say at most.
    """
    said, _ = generate(
        model,
        params,
        read_in_segments(model, params, ids, segment),
        jax.random.key(0),
        num_tokens=num_tokens,
        temperature=0,
        vocab_size=tokenizer.vocab_size,
        end_ids=tokenizer.end_ids,
    )
    return [decode_to_end(tokenizer, row) for row in said]


def share_found(said: str, answers: Sequence[str]) -> float:
    """The share of answers that are part of what was said, whatever their case.

    Example:
      >>> share_found("They are 12 and Blue", ["12", "blue", "7", "9"])
      0.5
    """
    said = said.lower()
    return sum(one.lower() in said for one in answers) / len(answers)
