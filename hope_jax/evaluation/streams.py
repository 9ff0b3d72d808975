"""The streams there are: classes in turn, and languages in sequence (Fig. 6 and 8)."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hope_jax.evaluation.labelled import Labelled, generated_labelled, read_labelled
from hope_jax.evaluation.languages import (
    draw_meanings,
    in_english,
    make_languages,
    sheet,
    translated,
)
from hope_jax.evaluation.stream import Asking, Question, Stage
from hope_jax.settings import check_fields, read_settings, setting


@dataclasses.dataclass(frozen=True)
class StreamSettings:
    """What all streams have."""

    questions: int = setting("of each class, or language", 4, least=1)
    batch_size: int = setting("answers at a time", 16, least=1)
    segment: int = setting("tokens read in a call", 512, least=1)
    seed: int = setting("of what is drawn", 0, least=0)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class ClassSettings(StreamSettings):
    """Classes in turn.

    Raises:
      ValueError: on construction, for values that do not fit.
    """

    file: str = setting(
        "of texts, JSON lines or CSV with text and label; empty for generated requests", ""
    )
    groups: int = setting("that come one after the other", 5, least=1)
    classes: int = setting("new ones in each", 4, least=1)
    shots: int = setting("texts of each class to read", 8, least=1)

    @property
    def asking(self) -> Asking:
        """How it is read and asked."""
        return Asking(self.batch_size, self.segment, 0)


@dataclasses.dataclass(frozen=True)
class LanguageSettings(StreamSettings):
    """Languages in sequence.

    Raises:
      ValueError: on construction, for values that do not fit.
    """

    questions: int = setting("to translate into each language", 16, least=1)
    files: tuple[str, ...] = setting(
        "of sentences, one for each language, JSON lines or CSV with text and label, its translation; "
        "empty for generated languages",
        (),
    )
    sheets: tuple[str, ...] = setting(
        "texts that tell of each language, such as a grammar, read before its sentences; for files",
        (),
    )
    languages: int = setting("generated", 2, least=1, most=6)
    pairs: int = setting("sentences of each, with their translations, to read", 64, least=1)
    answer_tokens: int = setting("of a translation at most", 64, least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sheets and len(self.sheets) != len(self.files):
            raise ValueError(
                f"sheets has {len(self.sheets)} and files {len(self.files)}; give one for each, or none"
            )

    @property
    def asking(self) -> Asking:
        """How it is read and asked."""
        return Asking(self.batch_size, self.segment, self.answer_tokens)


def make_classes(settings: ClassSettings, *numbers: int) -> list[Stage]:
    """Groups of classes that come in turn; texts of a group are shuffled.

    No text that is asked is read. The classes of a file are those that have texts enough, in an order
    that the seed draws.

    Args:
      settings: of the stream.
      numbers: before the seed, to draw others with.

    Raises:
      ValueError: if a file cannot be read, or has too little.

    Example:
      >>> stages = make_classes(ClassSettings(groups=2))
      >>> stages[0].documents[0]
      'Text: How do I mail a rug by the end of the month?\\nLabel: moze\\n'
    """
    random = np.random.default_rng([*(numbers or (1,)), settings.seed])
    wanted, each = settings.groups * settings.classes, settings.shots + settings.questions
    if settings.file:
        found = _enough(settings, wanted, each)
        order = random.permutation(sorted(found))[:wanted].tolist()
        drawn = [
            [found[label][place] for place in random.permutation(len(found[label]))[:each]]
            for label in order
        ]
    else:
        made = generated_labelled(random, wanted, each)
        drawn = [made[start : start + each] for start in range(0, len(made), each)]
    stages = []
    for group in range(settings.groups):
        classes = drawn[group * settings.classes : (group + 1) * settings.classes]
        read = [one for some in classes for one in some[: settings.shots]]
        asked = [one for some in classes for one in some[settings.shots :]]
        stages.append(
            Stage(
                f"group {group + 1}",
                tuple(
                    f"{_class_prompt(read[place].text)} {read[place].label}\n"
                    for place in random.permutation(len(read))
                ),
                tuple(Question(_class_prompt(one.text), one.label) for one in asked),
                tuple(some[0].label for some in classes),
            )
        )
    return stages


def _class_prompt(text: str) -> str:
    return f"Text: {text}\nLabel:"


def _enough(settings: ClassSettings, wanted: int, each: int) -> dict[str, list[Labelled]]:
    """The classes of the file that have texts enough."""
    found: dict[str, list[Labelled]] = {}
    for one in read_labelled(settings.file):
        found.setdefault(one.label, []).append(one)
    enough = {label: some for label, some in found.items() if len(some) >= each}
    if len(enough) < wanted:
        raise ValueError(
            f"file={settings.file} has {len(enough)} classes of {each} texts or more, and groups times "
            f"classes are {wanted}; lower groups, classes, shots or questions"
        )
    return enough


def make_language_stages(settings: LanguageSettings, *numbers: int) -> list[Stage]:
    """Languages that come one after the other: what tells of each, then sentences with translations.

    No sentence that is asked is read, in any language.

    Args:
      settings: of the stream.
      numbers: before the seed, to draw others with.

    Raises:
      ValueError: if a file cannot be read, or has too little.
    """
    random = np.random.default_rng([*(numbers or (1,)), settings.seed])
    wanted = settings.pairs + settings.questions
    told: list[tuple[str, str, Sequence[tuple[str, str]]]] = []
    if settings.files:
        sheets = settings.sheets or ("",) * len(settings.files)
        for file, book in zip(settings.files, sheets, strict=True):
            found = read_labelled(file)
            if len(found) < wanted:
                raise ValueError(
                    f"files: {file} has {len(found)} sentences, and pairs and questions are {wanted}; "
                    f"lower them"
                )
            name = Path(file).stem.capitalize()
            shuffled = [found[place] for place in random.permutation(len(found))[:wanted]]
            told.append((name, _read_sheet(book), shuffled))
    else:
        asked = draw_meanings(random, settings.languages * wanted)
        for place, language in enumerate(make_languages(random, settings.languages)):
            meanings = asked[place * wanted : (place + 1) * wanted]
            told.append(
                (
                    language.name,
                    sheet(language),
                    [(in_english(one), translated(language, one)) for one in meanings],
                )
            )
    stages = []
    for name, text, pairs in told:
        prompt = lambda english, name=name: f"English: {english}\n{name}:"
        read, asked_pairs = pairs[: settings.pairs], pairs[settings.pairs :]
        documents = [f"{text}\n\n"] if text else []
        documents += [f"{prompt(english)} {other}\n" for english, other in read]
        questions = tuple(Question(prompt(english), other) for english, other in asked_pairs)
        stages.append(Stage(name, tuple(documents), questions))
    return stages


def _read_sheet(path: str) -> str:
    if not path:
        return ""
    try:
        return Path(path).read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"sheets: {path} cannot be read: {error}") from error


class Kind(NamedTuple):
    """A kind of stream.

    Attributes:
      title: what a table calls it.
      settings: of it.
      make: its stages, of settings.
    """

    title: str
    settings: type[StreamSettings]
    make: Callable[..., list[Stage]]


STREAMS = {
    "classes": Kind("Classes in turn", ClassSettings, make_classes),
    "languages": Kind("Languages in sequence", LanguageSettings, make_language_stages),
}


def documents(
    stream: str = "classes", count: int = 1000, seed: int = 0, **changes: Any
) -> Iterator[str]:
    """Whole streams of other classes or languages, to train on: a `data.source`.

    Args:
      stream: of `STREAMS`.
      count: of documents, each of which is a stream.
      seed: of the drawing. What is tested on is drawn with other numbers.
      changes: settings of the stream.

    Raises:
      ValueError: for a stream or setting that is none.

    Example:
      >>> next(documents(groups=1, classes=2, shots=1))[:6]
      'Text: '
    """
    if stream not in STREAMS:
        raise ValueError(f"stream={stream!r} is none; there are {', '.join(STREAMS)}")
    kind = STREAMS[stream]
    settings = read_settings(kind.settings, {"questions": 1, **changes, "seed": seed})
    for number in range(count):
        yield "".join(text for stage in kind.make(settings, 0, number) for text in stage.documents)
