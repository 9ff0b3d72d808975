"""The suites that ask a model that has been trained already."""

import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hope_jax.data.tokenizers import Tokenizer
from hope_jax.evaluation import probe, stream
from hope_jax.evaluation.heat_map import draw_heat_map
from hope_jax.evaluation.probe import Probe, ProbeSettings
from hope_jax.evaluation.probes import PROBES
from hope_jax.evaluation.stages_picture import draw_stages
from hope_jax.evaluation.streams import STREAMS, Kind
from hope_jax.models.language_model import LanguageModel

Lines = Sequence[Mapping[str, Any]]
Ask = Callable[[LanguageModel, Any, Tokenizer, Sequence[Any]], Iterator[dict[str, Any]]]


class Suite(NamedTuple):
    """What is asked of a model.

    Attributes:
      questions: all of them, in the order in which they are asked.
      question_of: the question that a line answers.
      marks: what a line holds besides, by which answers of other settings or texts are told apart.
      ask: some questions, of a model, its parameters and tokenizer; a line for each, with its `share`.
      progress: what is said of a line while others are asked.
      table: of lines, as Markdown.
      draw: a picture of lines.
      picture: name of its file.
    """

    questions: Sequence[Any]
    question_of: Callable[[Mapping[str, Any]], Any]
    marks: Mapping[str, Any]
    ask: Ask
    progress: Callable[[Mapping[str, Any]], str]
    table: Callable[[Lines], str]
    draw: Callable[[Lines, Path], None]
    picture: str


class Named(NamedTuple):
    """A suite before its settings are known.

    Attributes:
      title: what a table calls it.
      settings: dataclass of its settings.
      make: the suite, of settings, and a text of the user's if one was given.
    """

    title: str
    settings: type
    make: Callable[[Any, str | None], Suite]


def probe_suite(one: Probe, settings: ProbeSettings, text: str | None) -> Suite:
    """The questions of a probe."""

    def progress(line: Mapping[str, Any]) -> str:
        speed = line["length"] / max(line["seconds"], 1e-3)
        return f"{line['kind']}, {line['length']:,} tokens, {speed:,.0f} tokens/s"

    return Suite(
        probe.questions_of(one, settings),
        probe.question_of,
        {"text": zlib.crc32(text.encode()) if text else None, "seed": settings.seed},
        lambda model, params, tokenizer, left: probe.ask(
            one, settings, model, params, tokenizer, left, text
        ),
        progress,
        functools.partial(probe.answers_table, one, settings),
        lambda lines, path: draw_heat_map(lines, one.title, path),
        "heat_map.png",
    )


def stream_suite(kind: Kind, settings: Any, text: str | None) -> Suite:
    """The questions of a stream.

    Raises:
      ValueError: for a text, of which a stream has no use.
    """
    if text is not None:
        raise ValueError(
            f"--text is of {', '.join(PROBES)}; a stream's files are settings, such as --set=file=FILE"
        )
    stages = kind.make(settings)
    return Suite(
        stream.places_of(stages),
        stream.place_of,
        {"stream": zlib.crc32(repr((stages, settings.asking.answer_tokens)).encode())},
        functools.partial(stream.ask_stream, stages, settings.asking),
        lambda line: (
            f"{stages[line['stage']].name} after {line['read']} of {len(stages)}, "
            f"{line['seconds']:.2f} s a question"
        ),
        lambda lines: stream.stream_table(stages, lines, kind.title),
        lambda lines, path: draw_stages(stages, lines, kind.title, path),
        "stages.png",
    )


SUITES: Mapping[str, Named] = {
    **{
        name: Named(one.title, ProbeSettings, functools.partial(probe_suite, one))
        for name, one in PROBES.items()
    },
    **{
        name: Named(kind.title, kind.settings, functools.partial(stream_suite, kind))
        for name, kind in STREAMS.items()
    },
}
