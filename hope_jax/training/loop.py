"""The training loop: from a config and a folder to a trained model."""

import contextlib
import json
import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from hope_jax.data.corpus import Documents, load_documents
from hope_jax.data.pipeline import ValidationBatches, train_iterator
from hope_jax.data.token_stream import (
    PARTS,
    TokenStream,
    encode_documents,
    read_tokens,
)
from hope_jax.data.tokenizers import Tokenizer, check_vocabulary, load_tokenizer
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.models.flops import useful_flops
from hope_jax.runs.agreement import all_see
from hope_jax.runs.checkpoint_reader import checkpoint_steps
from hope_jax.runs.checkpoint_writer import CheckpointWriter
from hope_jax.runs.corpus_record import Record, describe_corpus
from hope_jax.runs.metrics import MetricsWriter, NoMetrics
from hope_jax.runs.origin import Origin, find_origin, keep_origin, said_of
from hope_jax.runs.run_config import RATES, Change
from hope_jax.runs.run_tokenizer import tokenizer_of
from hope_jax.training.assembly import assemble
from hope_jax.training.chip import peak_flops
from hope_jax.training.config import whole_config
from hope_jax.training.ending import finish, result_line, say_what_is_next, show_sample
from hope_jax.training.optimizer import make_schedule
from hope_jax.training.processes import StopRequest, join_processes, watch_processes
from hope_jax.training.progress import TrainingProgress
from hope_jax.training.report import NonFiniteLossError, StepReport
from hope_jax.training.start import begin_from
from hope_jax.training.step import (
    Metrics,
    TrainState,
    init_state,
    make_eval_step,
    put_batch,
)
from hope_jax.training.summary import summarize_run

__all__ = ["NonFiniteLossError", "train"]


class _Stopped(Exception):
    """A stop was asked for where there is nothing to save any more."""


def train(
    config: ConfigDict,
    workdir: str,
    *,
    may_change: Collection[str] = ("steps",),
    from_run: str | None = None,
    with_optimizer: bool = False,
    quiet: bool = False,
) -> dict[str, float] | None:
    """Trains a language model, continuing the run in `workdir` if there is one.

    A run that was stopped, by Ctrl-C or SIGTERM for instance, goes on exactly as if it had not been.

    Args:
      config: see `experiments/quickstart.py` for every key.
      workdir: folder of checkpoints, metrics and the picture.
      may_change: settings in which the config may differ from that of the run in `workdir`, besides
        those that change no number: `steps`, and those of `hope_jax.runs.run_config.RATES`.
      from_run: folder of another run, with whose newest parameters this one begins.
      with_optimizer: whether it begins with that run's optimiser state, too.
      quiet: whether to print only the last line, of the result.

    Returns:
      The last evaluation, or `None` if the run was asked to stop before its end.

    Raises:
      ValueError: if settings do not fit each other, the data or the folder, before compilation.
      NonFiniteLossError: if the loss or gradient is no longer a number.
      RunFolderError: if the folder cannot be written any more.
    """
    config = whole_config(config, note=None if quiet else print)
    join_processes(config.mesh.processes)
    origin = find_origin(workdir, from_run, with_optimizer)
    with watch_processes():
        return _train(config, workdir, may_change, origin, quiet)


def _train(
    config: ConfigDict,
    workdir: str,
    may_change: Collection[str],
    origin: Origin | None,
    quiet: bool,
) -> dict[str, float] | None:
    first_process = jax.process_index() == 0
    console = Console(quiet=quiet or not first_process)
    mesh, model, optimizer, target, step = assemble(config)
    name = tokenizer_of(workdir, config.data.tokenizer)
    tokenizer = load_tokenizer(name)
    check_vocabulary(tokenizer, config.model.vocab_size, name)
    documents, streams = _load_corpus(config, tokenizer)
    batches = train_iterator(
        streams[0],
        sequence_length=config.data.sequence_length,
        batch_size=config.data.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    validation = ValidationBatches(
        streams[1],
        sequence_length=config.data.sequence_length,
        batch_size=config.data.batch_size,
    )
    corpus = _corpus_record(streams)
    # All that may not fit comes before the folder, so that it leaves no run behind.
    begun = None
    if origin is not None and not checkpoint_steps(workdir):
        begun = begin_from(origin, optimizer, target, tokenizer)
    with contextlib.ExitStack() as stack:
        checkpoints = CheckpointWriter(
            workdir, config, config.checkpoint.keep, corpus, whole_config, may_change
        )
        stack.callback(checkpoints.close)
        restored = checkpoints.restore(target)
        for line in summarize_run(config, target.params, streams, mesh, workdir):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if restored is not None:
            state, place = restored
            if place:
                batches.set_state(place)
            for line in _goes_on(config, workdir, int(state.step), checkpoints.changes, origin):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif begun is not None:
            state, origin = begun
            if first_process:
                keep_origin(workdir, origin)
            # From here on the run does not need the other one.
            checkpoints.save(0, state, {})
            console.print(
                f"beginning from {said_of(origin)}", markup=False, highlight=False, soft_wrap=True
            )
        else:
            state = init_state(model, optimizer, mesh, config.seed)
        first = int(state.step)
        metrics = MetricsWriter(workdir, first) if first_process else NoMetrics()
        stack.callback(metrics.close)
        request = stack.enter_context(StopRequest())
        evaluate = _evaluation(config, model, mesh, validation)
        tokens = config.data.batch_size * config.data.sequence_length
        with TrainingProgress(
            console, first, config.steps, tokens, config.log.every, jax.local_devices()
        ) as progress:
            report = StepReport(
                workdir,
                metrics,
                progress,
                make_schedule(config.optimizer, config.steps),
                _usage(model.config, config.data.sequence_length, mesh),
            )
            state = _take_steps(
                config,
                state,
                batches,
                lambda state, batch: step(state, put_batch(_kept(config, batch), mesh)),
                evaluate,
                checkpoints,
                report,
                request,
            )
        last_line = Console(quiet=not first_process)
        try:
            if int(state.step) == config.steps:
                loss = evaluate(state.params, config.evaluate.final_batches, request)
                result = finish(config, workdir, loss, documents, streams[1], console, metrics)
                show_sample(config, model, state.params, tokenizer, console)
                say_what_is_next(config, workdir, console)
                if quiet:
                    last_line.print(result_line(config, result))
                return result
        except _Stopped:
            pass
        last_line.print(f"stopped and saved at step {int(state.step)}; run again to continue")
        return None


def _goes_on(
    config: ConfigDict, workdir: str, step: int, changes: Sequence[Change], origin: Origin | None
) -> list[str]:
    """What is said of a run that goes on."""
    begun = "" if origin is None else f" (begun from {said_of(origin)})"
    lines = [f"continuing {workdir} from step {step}{begun}"]
    if changes:
        said = ", ".join(f"{key} {new!r} in place of {old!r}" for key, old, new in changes)
        lines.append(f"with other settings: {said}")
    if 0 < step < config.steps and any(key in ("steps", *RATES) for key, *_ in changes):
        before = {key: config.optimizer[key] for key in config.optimizer}
        steps = config.steps
        for key, old, _ in changes:
            before[key.removeprefix("optimizer.")] = old
            steps = old if key == "steps" else steps
        was = float(make_schedule(before, steps)(step - 1))
        now = float(make_schedule(config.optimizer, config.steps)(step))
        lines.append(
            f"learning rate: {was:.3g} at step {step} as it was, {now:.3g} at step {step + 1}"
        )
    return lines


def _usage(model: LanguageModelConfig, length: int, mesh: Mesh) -> float | None:
    """Share of the devices' peak that one token a second is, for MFU; None if the peak is not known."""
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    if peak is None:
        return None
    return useful_flops(model, length) / (peak * mesh.size)


def _load_corpus(
    config: ConfigDict, tokenizer: Tokenizer
) -> tuple[Documents | None, list[TokenStream]]:
    """The documents, where they are in memory, and the streams of the training and validation part."""
    data = config.data
    if not data.tokens:
        documents = load_documents(
            data.files, data.tfds, data.validation_fraction, data.source, data.arguments.to_dict()
        )
        return documents, [encode_documents(part, tokenizer) for part in documents]
    return None, [read_tokens(data.tokens, part, tokenizer) for part in PARTS]


def _corpus_record(streams: Sequence[TokenStream]) -> Record:
    """What is noted of the corpus; all processes must see the same."""
    record = describe_corpus(dict(zip(PARTS, streams, strict=True)))
    if not all_see(zlib.crc32(json.dumps(record).encode())):
        raise ValueError(
            f"processes see different corpora, process {jax.process_index()} this: {record}; give every "
            f"host the same files"
        )
    return record


def _kept(config: ConfigDict, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch without its resets, where the config wants documents to run into each other."""
    if config.data.reset_documents:
        return dict(batch)
    return {name: value for name, value in batch.items() if name != "reset"}


def _take_steps(
    config: ConfigDict,
    state: TrainState,
    batches: Any,
    train_step: Callable[[TrainState, dict[str, Any]], tuple[TrainState, Metrics]],
    evaluate: Callable[[Any, int], float],
    checkpoints: CheckpointWriter,
    report: StepReport,
    request: StopRequest,
) -> TrainState:
    """Takes the steps that are left, or those until a stop is asked for, and saves the last."""
    first = step = int(state.step)
    while step < config.steps and not request.reached(step + 1):
        state, values = train_step(state, next(batches))
        step += 1
        report.take(step, values)
        save = step % config.checkpoint.every == 0
        if step % config.evaluate.every == 0 and step < config.steps:
            report.flush()
            report.evaluation(step, evaluate(state.params, config.evaluate.batches))
        if save:
            report.flush()  # what is written of a step is there before its checkpoint
            checkpoints.save(step, state, batches.get_state())
    report.flush()
    if step > first:
        checkpoints.save(step, state, batches.get_state())
    checkpoints.wait()
    return state


def _evaluation(
    config: ConfigDict,
    model: LanguageModel,
    mesh: Mesh,
    validation: Sequence[dict[str, np.ndarray]],
) -> Callable[..., float]:
    """Makes `evaluate(params, batches, request)`: mean validation loss in nats per token.

    It is over so many batches, evenly spread; 0 is all. Where no token of them has a weight, it is no
    number. If a request is given, it ends by `_Stopped` where that asks for it.
    """
    eval_step = make_eval_step(model, mesh)
    rows = config.data.batch_size // jax.process_count()
    own = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)

    def evaluate(params: Any, batches: int, request: StopRequest | None = None) -> float:
        total = weight = 0.0
        count = min(batches or len(validation), len(validation))
        for number in range(count):
            if request is not None and request.noted:
                raise _Stopped
            batch = _kept(config, validation[number * len(validation) // count])
            local = {name: value[own] for name, value in batch.items()}
            loss, tokens = eval_step(params, put_batch(local, mesh))
            total, weight = total + float(loss), weight + float(tokens)
        return total / weight if weight else math.nan

    return evaluate
