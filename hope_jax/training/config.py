"""The settings of a training run, and what is filled in, shortened and refused before it begins."""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from flax.core import FrozenDict
from ml_collections import ConfigDict

from hope_jax.models import LanguageModelConfig
from hope_jax.settings import (
    SettingError,
    as_values,
    check_fields,
    describe,
    read_settings,
    setting,
)
from hope_jax.training.optimizer import OPTIMIZERS, optimizer_named

# Arguments that optimisers of any library call alike: pattern of the name, range, and its words.
_ARGUMENTS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (r"(adam_)?b\d|decay|momentum", lambda x: 0 <= x < 1, "a number at least 0 and below 1"),
    (r"(adam_)?eps(_root)?", lambda x: x >= 0, "a finite number at least 0"),
    (r"\w+_(every|steps)", lambda x: isinstance(x, int) and x > 0, "a whole number at least 1"),
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The corpus, and how it is cut."""

    files: str = setting(
        "pattern of files, such as 'corpus/**/*.txt'; empty is the standard library", ""
    )
    tfds: str = setting("or the name of a TFDS data set", "")
    source: Callable[..., Any] | None = setting(
        "or a function of your own that gives documents, texts or bytes", None
    )
    arguments: Mapping[str, Any] = setting("of source", FrozenDict())
    tokens: str = setting("or a folder that hope tokenize has written", "")
    mixture: tuple[str, ...] = setting(
        "or several of them with their weights, such as ('web=0.7', 'code=0.3')", ()
    )
    tokenizer: str = setting("bytes, or a SentencePiece .model or tokenizers .json file", "bytes")
    validation_fraction: float = setting("share of documents held out", 0.1, above=0, below=1)
    sequence_length: int = setting("tokens of a sequence", 512, least=1)
    batch_size: int = setting("sequences of a step, over all devices", 8, least=1)
    packing: Literal["stream", "first_fit"] = setting(
        "how documents become sequences: cut anywhere, or whole where they fit", "stream"
    )
    # Exact, and a third slower.
    reset_documents: bool = setting(
        "whether memories return to their initial state where a document begins", False
    )

    def __post_init__(self) -> None:
        check_fields(self)
        named = [
            name for name in ("files", "tfds", "source", "tokens", "mixture") if getattr(self, name)
        ]
        if len(named) > 1:
            given = " and ".join(f"{name}={getattr(self, name)!r}" for name in named)
            raise ValueError(f"{given} are given together; keep one, and leave out the others")
        if self.arguments and self.source is None:
            raise ValueError("arguments are those of source, and there is none; leave them out")
        _ = read_mixture(self.mixture)
        if self.packing == "first_fit" and not self.reset_documents:
            raise SettingError(
                "packing='first_fit' puts documents into one sequence that have nothing to do with "
                "each other; set reset_documents to True, too"
            )


def read_mixture(mixture: Sequence[str]) -> dict[str, float]:
    """Weights by folder.

    Raises:
      SettingError: if one is not FOLDER=WEIGHT, with a weight above 0, or comes twice.

    Example:
      >>> read_mixture(["tokens/web=0.7", "tokens/code=0.3"])
      {'tokens/web': 0.7, 'tokens/code': 0.3}
    """
    weights: dict[str, float] = {}
    for item in mixture:
        folder, _, number = item.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not folder or not 0 < weight < math.inf or folder in weights:
            raise SettingError(
                f"mixture={tuple(mixture)!r} must be FOLDER=WEIGHT for each folder once, with weights "
                f"above 0; {item!r} is not"
            )
        weights[folder] = weight
    return weights


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The outer optimiser, its schedule and its clipping."""

    name: str | Callable[..., Any] = setting(
        f"one of {', '.join(OPTIMIZERS)}, or a function of your own", "m3"
    )
    learning_rate: float = setting("at the end of the warm-up", 0.02, above=0)
    warmup_steps: int = setting("steps over which it rises from 0", 20, least=0)
    final_fraction: float = setting("of the learning rate, at the last step", 0.05, least=0, most=1)
    clip_norm: float = setting("largest norm of a gradient; 0 for any", 1.0, least=0)
    weight_decay: float = setting("of matrices", 0.01, least=0)
    skips: int = setting(
        "bad batches in a row that are skipped; one more ends the run", 10, least=0
    )
    skip_above: float = setting(
        "times the usual gradient norm, above which a batch is bad; 0 for any norm",
        0.0,
        above=1,
        also=0,
    )
    arguments: Mapping[str, Any] = setting("further arguments of the optimiser", FrozenDict())
    periods: Mapping[str, Any] = setting(
        "parameters that move every so many steps, such as {'level_1': 8}", FrozenDict()
    )

    def __post_init__(self) -> None:
        check_fields(self)
        _ = optimizer_named(str(self.name))
        for name, value in self.arguments.items():
            _check_argument(str(self.name), name, value)
        for name, period in self.periods.items():
            if not isinstance(period, int) or isinstance(period, bool) or period < 1:
                raise SettingError(
                    f"periods.{name}={period!r} must be a whole number of steps, at least 1"
                )


def _check_argument(optimizer: str, name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    known = inspect.signature(optimizer_named(optimizer)).parameters
    default = known[name].default if name in known else None
    allowed = None
    if isinstance(default, bool):
        allowed = None if isinstance(value, bool) else "True or False"
    elif isinstance(default, int | float) and not (number and math.isfinite(value)):
        allowed = "a finite number"
    for pattern, fits, words in _ARGUMENTS:
        if re.fullmatch(pattern, name) and not (number and fits(value)):
            allowed = words
    if allowed is not None:
        raise SettingError(f"arguments.{name}={value!r} must be {allowed}")


@dataclasses.dataclass(frozen=True)
class MeshSizes:
    """The devices of one process."""

    data: int = setting(
        "devices that split the batch; -1 is all that are left", -1, least=1, also=-1
    )
    fsdp: int = setting("devices that split batch and parameters", 1, least=1, also=-1)
    tensor: int = setting("devices that split heads and hidden widths", 1, least=1, also=-1)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class MeshConfig(MeshSizes):
    """The devices."""

    sequence: int = setting(
        "devices that split each sequence into parts, for documents longer than one holds; -1 is all "
        "that are left",
        1,
        least=1,
        also=-1,
    )
    processes: int = setting("hosts of the launch", 1, least=1)
    expect_devices: int = setting("fail if another number is seen; 0 for any", 0, least=0)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is saved."""

    every: int = setting("steps from one to the next", 100, least=1)
    keep: int = setting("newest ones that stay", 2, least=1)
    keep_every: int = setting("steps, whose multiples stay, too; 0 for none", 0, least=0)
    keep_best: int = setting("with the lowest validation loss that stay, too", 0, least=0)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.keep_every % self.every:
            raise SettingError(
                f"keep_every={self.keep_every} is no multiple of every={self.every}, and there is a "
                f"checkpoint at multiples of both alone; make it one"
            )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What is measured, and shown at the end."""

    every: int = setting("steps from one validation to the next", 100, least=1)
    batches: int = setting("of validation in between, evenly spread; 0 for all", 10, least=0)
    final_batches: int = setting("of validation at the end, evenly spread; 0 for all", 40, least=0)
    ngram_orders: tuple[int, ...] = setting(
        "n-gram models to compare with at the end", (3, 4), least=1
    )
    prompt: str = setting("of the sample at the end", "def ")
    sample_tokens: int = setting("of the sample at the end; 0 for none", 300, least=0)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.sample_tokens and not self.prompt:
            raise SettingError(
                "prompt='' has nothing to continue; give one, or set sample_tokens to 0"
            )


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is written while a run goes on."""

    every: int = setting("steps from one line to the next", 10, least=1)
    # No step, evaluated batch or checkpoint takes that long where all is well.
    hang_after: float = setting(
        "seconds without progress after which the run ends; 0 for never", 1800.0, least=0
    )
    profile_steps: tuple[int, ...] = setting("that are profiled, such as (20, 21)", (), least=1)
    wandb: str = setting("project of Weights & Biases to send metrics to; empty for none", "")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a training run.

    Raises:
      SettingError: on construction, for values that do not fit.
    """

    steps: int = setting("of training", 700, least=1, most=2**31 - 1)
    seed: int = setting("of initial weights and of the data's order", 0, least=0, most=2**32 - 1)
    accumulate: int = setting("micro-batches of a step, one after the other", 1, least=1)
    model: LanguageModelConfig = setting("the language model")
    data: DataConfig = setting("the corpus, and how it is cut")
    optimizer: OptimizerConfig = setting("how the model learns")
    mesh: MeshConfig = setting("the devices")
    checkpoint: CheckpointConfig = setting("what is saved")
    evaluate: EvaluateConfig = setting("what is measured")
    log: LogConfig = setting("what is written")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.data.batch_size % self.accumulate:
            raise ValueError(
                f"data.batch_size={self.data.batch_size} does not divide into "
                f"accumulate={self.accumulate} micro-batches; make it a multiple"
            )
        if self.checkpoint.keep_best and self.checkpoint.every % self.evaluate.every:
            raise ValueError(
                f"checkpoint.keep_best={self.checkpoint.keep_best} needs a validation loss of each "
                f"checkpoint; make checkpoint.every={self.checkpoint.every} a multiple of "
                f"evaluate.every={self.evaluate.every}"
            )


def default_config(**model: Any) -> ConfigDict:
    """A whole config: every setting of a run at its default.

    Args:
      model: the model's settings that have no default, and others.

    Example:
      >>> sizes = dict(vocab_size=256, width=64, num_layers=2, num_heads=2, mlp_width=128)
      >>> default_config(**sizes).optimizer.final_fraction
      0.05
    """
    sections = [row.key for row in describe(RunConfig) if row.section and "." not in row.key]
    return whole_config({**dict.fromkeys(sections, {}), "model": model})


def whole_config(config: Any, note: Callable[[str], None] | None = None) -> ConfigDict:
    """The whole config of a run: checked, with the defaults of what an older one does not say.

    A warm-up that would fill the run is shortened, and n-gram models that would have no text to read
    are left out. Memories whose chunks no sequence goes beyond are told of.

    Args:
      config: a `ConfigDict` or nested dicts.
      note: called with a line for each change of what was asked for, and each such memory.

    Returns:
      A new config.

    Raises:
      SettingError: for a key that is none and values that do not fit, with the dotted key.
    """
    run = read_settings(RunConfig, config)
    values = as_values(run)
    warmup = run.optimizer.warmup_steps
    notes = []
    if warmup >= run.steps:
        values["optimizer"]["warmup_steps"] = run.steps // 10
        notes.append(
            f"optimizer.warmup_steps={warmup} shortened to {run.steps // 10}, because "
            f"steps={run.steps}"
        )
    if (run.data.tokens or run.data.mixture) and run.evaluate.ngram_orders:
        values["evaluate"]["ngram_orders"] = ()
        notes.append(
            f"evaluate.ngram_orders={run.evaluate.ngram_orders} left out: n-gram models read text, "
            f"which {'data.tokens' if run.data.tokens else 'data.mixture'} has not"
        )
    length = run.data.sequence_length
    notes += [
        f"model.{name}={chunk} and data.sequence_length={length}: what is learnt in a chunk is read "
        f"after it, so nothing that these memories learn is ever read in training; make the chunk at "
        f"most {max(1, length // 2)}, or the sequences longer"
        for name, chunk in run.model.unwritten(length).items()
    ]
    for line in notes if note is not None else ():
        note(line)
    # Types are checked where values are read, which takes a function for its name too.
    return ConfigDict(values, type_safe=False)
