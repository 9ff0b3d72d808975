"""The training loop: from a config and a folder to a trained model."""

import contextlib
import json
import math
import shlex
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from hope_jax.data.corpus import Documents, load_documents
from hope_jax.data.ngram import witten_bell_bits_per_byte
from hope_jax.data.pipeline import ValidationBatches, train_iterator
from hope_jax.data.token_stream import (
    PARTS,
    TokenStream,
    encode_documents,
    read_tokens,
)
from hope_jax.data.tokenizers import Tokenizer, check_vocabulary, load_tokenizer
from hope_jax.inference.sampling import generate, read
from hope_jax.inference.text_stream import show_controls
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.models.parameter_count import parameter_count
from hope_jax.runs.checkpoint_writer import CheckpointWriter
from hope_jax.runs.corpus_record import Record, describe_corpus
from hope_jax.runs.metrics import MetricsWriter, NoMetrics, plot_losses
from hope_jax.training.config import whole_config
from hope_jax.training.optimizer import make_optimizer, make_schedule, needs_layer_inputs
from hope_jax.training.processes import StopRequest, join_processes, watch_processes
from hope_jax.training.progress import TrainingProgress
from hope_jax.training.sharding import check_batch, make_mesh
from hope_jax.training.step import (
    Metrics,
    TrainState,
    abstract_state,
    init_state,
    make_eval_step,
    make_train_step,
    put_batch,
)


class NonFiniteLossError(RuntimeError):
    """Raised when a loss or gradient is no number; the last checkpoint is from before that."""


class _Stopped(Exception):
    """A stop was asked for where there is nothing to save any more."""


def train(config: ConfigDict, workdir: str) -> dict[str, float] | None:
    """Trains a language model, continuing the run in `workdir` if there is one.

    A run that was stopped, by Ctrl-C or SIGTERM for instance, goes on exactly as if it had not been.

    Args:
      config: see `experiments/quickstart.py` for every key.
      workdir: folder of checkpoints, metrics and the picture.

    Returns:
      The last evaluation, or `None` if the run was asked to stop before its end.

    Raises:
      ValueError: if settings do not fit each other, the data or the folder, before compilation.
      NonFiniteLossError: if the loss or gradient is no longer a number.
      RunFolderError: if the folder cannot be written any more.
    """
    config = whole_config(config, note=print)
    join_processes(config.mesh.processes)
    with watch_processes():
        return _train(config, workdir)


def _train(config: ConfigDict, workdir: str) -> dict[str, float] | None:
    console = Console(quiet=jax.process_index() > 0)
    mesh = make_mesh(
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor, config.mesh.expect_devices
    )
    check_batch(mesh, config.data.batch_size, config.accumulate)
    tokenizer = load_tokenizer(config.data.tokenizer)
    check_vocabulary(tokenizer, config.model.vocab_size, config.data.tokenizer)
    model_config = LanguageModelConfig.from_config_dict(config.model)
    model = LanguageModel(model_config)
    optimizer = make_optimizer(config.optimizer, config.steps)
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
    sizes = [len(stream.tokens) for stream in streams]
    passes = config.steps * config.data.batch_size * config.data.sequence_length / sizes[0]
    console.print(
        f"{sizes[0]:,} tokens to learn from, {passes:.2g} times over, and {sizes[1]:,} to validate on",
        soft_wrap=True,
    )
    with contextlib.ExitStack() as stack:
        # Only now, so that settings that do not fit leave no run behind.
        checkpoints = CheckpointWriter(
            workdir, config, config.checkpoint.keep, corpus, complete=whole_config
        )
        stack.callback(checkpoints.close)
        restored = checkpoints.restore(abstract_state(model, optimizer, mesh))
        if restored is None:
            state = init_state(model, optimizer, mesh, config.seed)
            console.print(f"{parameter_count(model_config):,} parameters on {mesh.size} devices")
        else:
            state, place = restored
            if place:
                batches.set_state(place)
            console.print(f"continuing {workdir} from step {int(state.step)}")
        first = int(state.step)
        metrics = MetricsWriter(workdir, first) if jax.process_index() == 0 else NoMetrics()
        stack.callback(metrics.close)
        request = stack.enter_context(StopRequest())
        step = make_train_step(
            model, optimizer, mesh, config.accumulate, needs_layer_inputs(config.optimizer)
        )
        evaluate = _evaluation(config, model, mesh, validation)
        tokens = config.data.batch_size * config.data.sequence_length
        with TrainingProgress(console, first, config.steps, tokens, config.log.every) as progress:
            state = _take_steps(
                config,
                state,
                batches,
                lambda state, batch: step(state, put_batch(_kept(config, batch), mesh)),
                evaluate,
                checkpoints,
                metrics,
                progress,
                request,
                make_schedule(config.optimizer, config.steps),
            )
        try:
            if int(state.step) == config.steps:
                loss = evaluate(state.params, config.evaluate.final_batches, request)
                result = _finish(config, workdir, loss, documents, streams[1], console, metrics)
                _show_sample(config, model, state.params, tokenizer, console)
                _say_what_is_next(config, workdir, console)
                return result
        except _Stopped:
            pass
        console.print(f"stopped and saved at step {int(state.step)}; run again to continue")
        return None


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
    digest = zlib.crc32(json.dumps(record).encode())
    if len(set(np.ravel(multihost_utils.process_allgather(np.uint32(digest))).tolist())) > 1:
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
    metrics: MetricsWriter | NoMetrics,
    progress: TrainingProgress,
    request: StopRequest,
    schedule: optax.Schedule,
) -> TrainState:
    """Takes the steps that are left, or those until a stop is asked for, and saves the last."""
    first = step = int(state.step)
    pending: tuple[int, Metrics] | None = None

    def report() -> None:
        nonlocal pending
        if pending is not None:
            rate = float(schedule(pending[0] - 1))
            _report(*pending, rate, checkpoints, metrics, progress)
        pending = None

    while step < config.steps and not request.reached(step + 1):
        state, values = train_step(state, next(batches))
        step += 1
        report()  # of the step before, only now that this one is under way
        pending = (step, values)
        save = step % config.checkpoint.every == 0
        if step % config.evaluate.every == 0 and step < config.steps:
            report()
            loss = evaluate(state.params, config.evaluate.batches)
            metrics.write(step, validation_loss=loss)
            progress.evaluation(step, loss)
        if save:
            report()  # what is written of a step is there before its checkpoint
            checkpoints.save(step, state, batches.get_state())
    report()
    if step > first:
        checkpoints.save(step, state, batches.get_state())
    checkpoints.wait()
    return state


def _report(
    step: int,
    values: Metrics,
    learning_rate: float,
    checkpoints: CheckpointWriter,
    metrics: MetricsWriter | NoMetrics,
    progress: TrainingProgress,
) -> None:
    """Reads what a step tells, and writes it down if it is one of those."""
    loss, norm = float(values.loss), float(values.gradient_norm)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise NonFiniteLossError(
            f"step {step}: loss {loss}, gradient norm {norm}; the last good checkpoint in "
            f"{checkpoints.folder} stays. Lower optimizer.learning_rate or set optimizer.clip_norm"
        )
    rate = progress.step(step, loss)
    if progress.is_due(step):
        speed = {"tokens_per_second": rate} if math.isfinite(rate) else {}
        metrics.write(step, loss=loss, gradient_norm=norm, learning_rate=learning_rate, **speed)


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


def _finish(
    config: ConfigDict,
    workdir: str,
    loss: float,
    documents: Documents | None,
    validation: TokenStream,
    console: Console,
    metrics: MetricsWriter | NoMetrics,
) -> dict[str, float]:
    """Writes down and shows how good the model has become."""
    bits = loss / math.log(2) * validation.num_told / validation.num_bytes
    result = {"validation_loss": loss, "bits_per_byte": bits}
    metrics.write_final(config.steps, **result)
    if jax.process_index() == 0:
        console.print(f"validation: {bits:.3f} bits per byte after {config.steps} steps")
        for order in config.evaluate.ngram_orders if documents is not None else ():
            baseline = witten_bell_bits_per_byte(documents.train, documents.validation, order)
            console.print(f"  a {order}-gram on the whole validation part: {baseline:.3f}")
            result[f"{order}_gram_bits_per_byte"] = baseline
        console.print(f"losses drawn in {plot_losses(workdir)}")
    return result


def _show_sample(
    config: ConfigDict, model: LanguageModel, params: Any, tokenizer: Tokenizer, console: Console
) -> None:
    """Lets the model continue the config's prompt."""
    if jax.process_count() > 1 or not config.evaluate.sample_tokens:
        return
    prompt = [*tokenizer.before, *tokenizer.encode(config.evaluate.prompt)]
    context = read(model, params, np.asarray(prompt, np.int32)[None])
    ids, _ = generate(
        model,
        params,
        context,
        jax.random.key(config.seed),
        num_tokens=config.evaluate.sample_tokens,
        temperature=0.8,
        vocab_size=tokenizer.vocab_size,
        end_ids=tokenizer.end_ids,
    )
    console.print("a sample:", style="bold")
    text = config.evaluate.prompt + tokenizer.decode(ids[0])
    console.print(show_controls(text), markup=False, highlight=False)


def _say_what_is_next(config: ConfigDict, workdir: str, console: Console) -> None:
    """What can be done with the run."""
    folder = shlex.quote(workdir)
    lines = [
        f"hope generate --workdir={folder} --prompt={shlex.quote(config.evaluate.prompt)}",
        f"hope evaluate --workdir={folder} --text=FILE",
    ]
    if config.model.in_context is not None:
        lines.append(f"hope inspect --workdir={folder} --text=FILE")
    console.print("next:", style="bold")
    for line in lines:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
