"""A small model that learns to be told a language and to translate, of languages that it will not meet.

    python experiments/sleep/languages_pretrain.py --workdir=runs/languages

The model of facts (facts_pretrain.py), for generated languages (`hope_jax.evaluation.languages`), of
which it has eight nouns, four adjectives, and whether adjectives stand before their nouns. A text of a
language says where they stand, then the word for each English one, then some phrases of two words with
their translation; then words and phrases are translated, most of them phrases that were not told:

    Tavo adjectives last.
    Tavo dog = kelu
    Tavo red = rami
    Tavo red dog = kelu rami

Some sequences tell two languages, and some none. Languages from `FIRST_NEW` on are never seen. Training
goes in `PARTS`, after each of which it can be stopped and goes on when the command is given again: first
short sequences, then long ones; then adjectives stand last in all languages, for a model of this size
still began 12% of its phrases with the wrong word; at last the MLPs of the last two blocks learn after
each 32 tokens. Ten minutes of one core. Before the last part, of phrases that were not seen in training
98% were right as a whole where one language had been told, and 58% where two had been. To translate out
of a language, where what is looked for stands before what it is looked up by, was not learned: of
single words 20% were right after 1,500 steps with both directions.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from facts_pretrain import LEVELS, TOLD, make_config, train, whole_chunks
from words import tokenizer_of

from hope_jax.commands.first_checkpoint import write_first_checkpoint
from hope_jax.commands.trained_model import load_model
from hope_jax.data.tokenizers import Tokenizer, load_tokenizer
from hope_jax.evaluation.languages import ADJECTIVES, NOUNS, Language, make_languages

ENGLISH_NOUNS, ENGLISH_ADJECTIVES = NOUNS[:8], ADJECTIVES[:4]
PHRASES = 4  # that a whole text tells
TRAINED, FIRST_NEW = 10_000, 10_200  # as of the worlds of facts
ORDERS = (" adjectives last.", " adjectives first.")
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
LAYER = {"window": 384, "taps": 8}
# Shares of sequences that tell so many languages; in short ones there is no room for two.
BEGINS, SHORT = {True: (0.1, 0.45, 0.45), False: (0.1, 0.9, 0.0)}, 300
ASKED = 0.3  # how much tokens of what is translated count, beside those of its translation


class Part(NamedTuple):
    """Of the training.

    Attributes:
      length: tokens of a sequence.
      size: sequences of a step.
      steps: of it.
      rate: of M3.
      last: whether adjectives stand behind their nouns in all languages.
      levels: whether MLPs learn while the model reads.
    """

    length: int
    size: int
    steps: int
    rate: float
    last: bool = False
    levels: bool = False


PARTS = (
    Part(160, 24, 700, 0.02),
    Part(352, 12, 300, 0.02),
    Part(352, 12, 220, 0.02, last=True),
    Part(352, 12, 60, 0.01, last=True, levels=True),
)


class Pair(NamedTuple):
    """A word or a phrase in English and in a language."""

    english: str
    foreign: str


class Lesson(NamedTuple):
    """What is told of a language.

    Attributes:
      language: that is told of.
      words: each with its translation.
      phrases: all that can be made of them, with theirs.
      told: those of them that are told.
    """

    language: Language
    words: list[Pair]
    phrases: list[Pair]
    told: list[Pair]


def make_tokenizer() -> tokenizers.Tokenizer:
    """English words, how words begin and end, how names begin, and what lies between."""
    english = (f" {word}" for word in (*ENGLISH_NOUNS, *ENGLISH_ADJECTIVES))
    begin = [f" {syllable}" for syllable in SYLLABLES]
    parts = [*begin, *SYLLABLES, *map(str.capitalize, SYLLABLES)]
    return tokenizer_of(["\n", " =", *ORDERS, *english], parts)


def with_order(language: Language, last: bool) -> Language:
    """The language, or what it is when its adjectives stand behind their nouns."""
    return language._replace(adjective_first=language.adjective_first and not last)


def lesson_of(
    language: Language, random: np.random.Generator, nouns: int, adjectives: int, told: int
) -> Lesson:
    """Of so many words of a language, drawn, and so many phrases."""
    shuffled = lambda some: [some[int(place)] for place in random.permutation(len(some))]
    drawn = lambda english, foreign: shuffled([*map(Pair, english, foreign)])
    names = drawn(ENGLISH_NOUNS, language.nouns)[:nouns]
    kinds = drawn(ENGLISH_ADJECTIVES, language.adjectives)[:adjectives]
    phrases = []
    for kind, name in itertools.product(kinds, names):
        foreign = [kind.foreign, name.foreign][:: 1 if language.adjective_first else -1]
        phrases.append(Pair(f"{kind.english} {name.english}", " ".join(foreign)))
    phrases = shuffled(phrases)
    return Lesson(language, shuffled(names + kinds), phrases, phrases[:told])


def line(language: Language, pair: Pair) -> tuple[str, str]:
    """What is translated, up to where its translation begins; and that."""
    return f"{language.name} {pair.english} =", f" {pair.foreign}\n"


def lines_of(lesson: Lesson) -> list[str]:
    """The text of a lesson."""
    order = f"{lesson.language.name}{ORDERS[lesson.language.adjective_first]}\n"
    pairs = (*lesson.words, *lesson.told)
    return [order, *("".join(line(lesson.language, pair)) for pair in pairs)]


def document(
    tokenizer: Tokenizer, number: int, length: int, seed: int = 0, last: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """A text that tells of languages and then translates; some tell of none.

    Returns:
      So many ids, and how much each counts.
    """
    random = np.random.default_rng([number, seed, 7])
    begins = int(random.choice(3, p=BEGINS[length > SHORT]))
    lessons = []
    for language in make_languages(random, max(begins, 1)):
        language = with_order(language, last)
        whole = length > SHORT and random.random() < 0.5
        least, most = ((8, 4), (8, 4)) if whole else ((2, 1), (8, 4) if begins < 2 else (5, 3))
        nouns, adjectives = (
            int(random.integers(*ends)) for ends in zip(least, np.add(most, 1), strict=True)
        )
        told = PHRASES if whole else int(random.integers(1, PHRASES + 1))
        lessons.append(lesson_of(language, random, nouns, adjectives, told))
    parts: list[tuple[np.ndarray, float]] = []
    for place, lesson in enumerate(lessons[:begins]):
        parts.append((whole_chunks(tokenizer, "".join(lines_of(lesson))), TOLD))
        if place + 1 < begins and random.random() < 0.3:
            for _ in range(int(random.integers(1, 5))):
                parts += talk(tokenizer, lessons[:1], random)
    weight = 1 if begins else TOLD
    while sum(len(ids) for ids, _ in parts) < length:
        parts += [(ids, weight * part) for ids, part in talk(tokenizer, lessons, random)]
    ids = np.concatenate([ids for ids, _ in parts])
    weights = np.concatenate([np.full(len(ids), part, np.float32) for ids, part in parts])
    return ids[:length], weights[:length]


def talk(
    tokenizer: Tokenizer, lessons: Sequence[Lesson], random: np.random.Generator
) -> list[tuple[np.ndarray, float]]:
    """A line that translates, in two parts, and how much each counts."""
    lesson = lessons[int(random.integers(len(lessons)))]
    pairs = lesson.phrases if random.random() < 0.7 else lesson.words
    pair = pairs[int(random.integers(len(pairs)))]
    asked, answer = map(tokenizer.encode, line(lesson.language, pair))
    return [(asked, ASKED), (answer, 1.0)]


def batches(
    tokenizer: Tokenizer, first: int, numbers: int, size: int, length: int, last: bool = True
) -> Iterator[dict[str, np.ndarray]]:
    """Of tokens, targets and weights; `answers` is 1 for translations of what has been told."""
    for number in itertools.count(0, size):
        made = [
            document(tokenizer, first + place % numbers, length + 1, place // numbers, last)
            for place in range(number, number + size)
        ]
        tokens, weights = (np.stack(part) for part in zip(*made, strict=True))
        weights = weights[:, 1:]
        yield {
            "tokens": tokens[:, :-1].astype(np.int32),
            "targets": tokens[:, 1:].astype(np.int32),
            "weights": weights,
            "answers": weights == 1,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a run for each part")
    parser.add_argument(
        "--parts", type=int, default=len(PARTS), help="that are trained now, at most"
    )
    given = parser.parse_args()
    given.workdir.mkdir(parents=True, exist_ok=True)
    path = given.workdir / "words.json"
    make_tokenizer().save(str(path))
    tokenizer, left = load_tokenizer(str(path)), given.parts
    for number, part in enumerate(PARTS):
        run = given.workdir / f"part{number}"
        if run.exists() or not left:
            continue
        params = load_model(str(given.workdir / f"part{number - 1}"))[1] if number else None
        config = make_config(
            part.steps,
            part.rate,
            LEVELS if part.levels else None,
            tokenizer=str(path),
            vocab_size=tokenizer.vocab_size,
            layer=LAYER,
        )
        source = batches(tokenizer, 0, TRAINED, part.size, part.length, part.last)
        test = next(batches(tokenizer, TRAINED, FIRST_NEW - TRAINED, 64, part.length, part.last))
        write_first_checkpoint(str(run), config, train(config, source, test, params))
        left -= 1


if __name__ == "__main__":
    main()
