"""The training loop: from a config and a folder to a trained model."""

import contextlib
import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from hope_jax.data.pipeline import ValidationBatches, train_iterator
from hope_jax.data.tokenizers import check_vocabulary, load_tokenizer
from hope_jax.runs.checkpoint_reader import checkpoint_steps
from hope_jax.runs.checkpoint_writer import CheckpointWriter
from hope_jax.runs.folder_error import RunFolderError
from hope_jax.runs.keep import keep_of
from hope_jax.runs.mirror import UnsentError
from hope_jax.runs.origin import Origin, find_origin, keep_origin, said_of
from hope_jax.runs.place import Place, place_of
from hope_jax.runs.run_tokenizer import tokenizer_of
from hope_jax.runs.wandb_metrics import find_wandb
from hope_jax.training.activity import Activity
from hope_jax.training.assembly import assemble
from hope_jax.training.config import whole_config
from hope_jax.training.corpus import corpus_record, make_rows, open_corpus
from hope_jax.training.ending import finish, result_line, say_what_is_next, show_sample
from hope_jax.training.feed import make_evaluation, make_feed
from hope_jax.training.optimizer import make_schedule
from hope_jax.training.processes import StopRequest, join_processes
from hope_jax.training.profile import StepProfiler
from hope_jax.training.progress import TrainingProgress
from hope_jax.training.report import DivergedError, StepReport, open_metrics
from hope_jax.training.sharding import own_share
from hope_jax.training.start import begin_from
from hope_jax.training.step import Metrics, TrainState, init_state, with_seen
from hope_jax.training.summary import summarize_changes, summarize_run
from hope_jax.training.usage import usage_of_a_token
from hope_jax.training.watch import Others, watch_processes
from hope_jax.training.watchdog import Watchdog

__all__ = ["DivergedError", "train"]


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
      workdir: folder of checkpoints, metrics and the picture; or the address of one in a bucket, which
        then has everything that a folder of this machine has.
      may_change: settings in which the config may differ from that of the run in `workdir`, besides
        those that change no number: `steps`, and those of `hope_jax.runs.run_config.RATES`.
      from_run: folder of another run, with whose newest parameters this one begins.
      with_optimizer: whether it begins with that run's optimiser state, too.
      quiet: whether to print only the last line, of the result.

    Returns:
      The last evaluation, or `None` if the run was asked to stop before its end.

    Raises:
      ValueError: if settings do not fit each other, the data or the folder, before compilation.
      DivergedError: if too many batches in a row cannot be learnt from.
      RunFolderError: if the folder cannot be written any more.
      UnsentError: if all is done, or saved, on this machine, and the bucket lacks some of it.
    """
    config = whole_config(config, note=None if quiet else print)
    join_processes(config.mesh.processes)
    with watch_processes(workdir) as others, place_of(workdir) as place:
        origin = find_origin(place.folder, from_run, with_optimizer)
        try:
            result = _train(config, workdir, place, may_change, origin, quiet, others)
        except Exception:
            with contextlib.suppress(UnsentError, RunFolderError):  # what was said first counts
                place.finish()
            raise
        place.finish()
        return result


def _train(
    config: ConfigDict,
    address: str,
    place: Place,
    may_change: Collection[str],
    origin: Origin | None,
    quiet: bool,
    others: Others,
) -> dict[str, float] | None:
    workdir = place.folder
    activity = Activity()
    first_process = jax.process_index() == 0
    console = Console(quiet=quiet or not first_process)
    say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
    assembly = assemble(config)
    name = tokenizer_of(workdir, config.data.tokenizer)
    tokenizer = load_tokenizer(name)
    check_vocabulary(tokenizer, config.model.vocab_size, name)
    corpus = open_corpus(config.data, tokenizer)
    share, shares = own_share(assembly.mesh)
    batches = train_iterator(
        [make_rows(stream, config.data) for stream in corpus.sources],
        weights=corpus.weights,
        batch_size=config.data.batch_size,
        seed=config.seed,
        process_index=share,
        process_count=shares,
    )
    validation = ValidationBatches(
        make_rows(corpus.validation, config.data), batch_size=config.data.batch_size
    )
    record = corpus_record(corpus)
    if config.log.wandb:
        find_wandb(config.log.wandb)
    # All that may not fit comes before the folder, so that it leaves no run behind.
    begun = None
    if origin is not None and not checkpoint_steps(workdir):
        begun = begin_from(origin, assembly.optimizer, assembly.target, tokenizer)
    with contextlib.ExitStack() as stack:
        checkpoints = CheckpointWriter(
            workdir,
            config,
            keep_of(config.checkpoint),
            record,
            whole_config,
            may_change,
            place.shared,
        )
        stack.callback(checkpoints.close)
        restored = checkpoints.restore(assembly.target)
        for line in summarize_run(
            config, assembly.target.params, corpus.parts, assembly.mesh, address
        ):
            say(line)
        if address != workdir:
            say(f"on the way to its bucket it is written to {workdir}")
        place.begin(keep_of(config.checkpoint))
        if restored is not None:
            state, reached = restored
            if reached:
                batches.set_state(reached)
            changes = checkpoints.changes
            for line in summarize_changes(config, address, int(state.step), changes, origin):
                say(line)
        elif begun is not None:
            state, origin = begun
            if first_process:
                keep_origin(workdir, origin)
            # From here on the run does not need the other one.
            checkpoints.save(0, state, {})
            say(f"beginning from {said_of(origin)}")
        else:
            state = init_state(assembly.model, assembly.optimizer, assembly.mesh, config.seed)
        state = with_seen(state, assembly.target)
        first = int(state.step)
        metrics = open_metrics(workdir, first, config)
        stack.callback(metrics.close)
        request = stack.enter_context(StopRequest())
        profiler = StepProfiler(workdir, config.log.profile_steps if first_process else ())
        stack.callback(profiler.close)
        feed = make_feed(config, assembly.mesh)
        tokens = config.data.batch_size * config.data.sequence_length
        evaluate = make_evaluation(config, assembly.model, assembly.mesh, validation, feed)
        with TrainingProgress(
            console, first, config.steps, tokens, config.log.every, jax.local_devices()
        ) as progress:
            report = StepReport(
                workdir,
                metrics,
                progress,
                make_schedule(config.optimizer, config.steps),
                usage_of_a_token(assembly.model.config, config.data.sequence_length, assembly.mesh),
                config.optimizer.skips,
                activity,
            )
            with Watchdog(
                workdir, jax.process_index(), activity, config.log.hang_after, others.say_hung
            ):
                state = _take_steps(
                    config,
                    state,
                    batches,
                    lambda state, batch: assembly.step(state, feed(batch)),
                    evaluate,
                    place,
                    checkpoints,
                    report,
                    request,
                    activity,
                    profiler,
                )
        last_line = Console(quiet=not first_process)
        try:
            if int(state.step) == config.steps:
                loss = evaluate(
                    state.params, config.evaluate.final_batches, functools.partial(_go_on, request)
                )
                result = finish(config, workdir, loss, corpus, console, metrics)
                show_sample(config, assembly.model, state.params, tokenizer, console)
                say_what_is_next(config, address, console)
                if quiet:
                    last_line.print(result_line(config, result))
                return result
        except _Stopped:
            pass
        last_line.print(f"stopped and saved at step {int(state.step)}; run again to continue")
        return None


def _go_on(request: StopRequest) -> None:
    if request.noted:
        raise _Stopped


def _take_steps(
    config: ConfigDict,
    state: TrainState,
    batches: Any,
    train_step: Callable[[TrainState, dict[str, Any]], tuple[TrainState, Metrics]],
    evaluate: Callable[..., float],
    place: Place,
    checkpoints: CheckpointWriter,
    report: StepReport,
    request: StopRequest,
    activity: Activity,
    profiler: StepProfiler,
) -> TrainState:
    """Takes the steps that are left, or those until a stop is asked for, and saves the last."""
    first = step = int(state.step)
    while step < config.steps and not request.reached(step + 1):
        step += 1
        with profiler.begin(step):
            activity.begin("reading", step)
            batch = next(batches)
            activity.begin("compiling" if step == first + 1 else "stepping", step)
            state, values = train_step(state, batch)
        profiler.end(step, values)
        report.take(step, values)
        if step % config.evaluate.every == 0 and step < config.steps:
            report.flush()
            measured = functools.partial(activity.begin, "evaluating", step)
            report.evaluation(step, evaluate(state.params, config.evaluate.batches, measured))
        if step % config.checkpoint.every == 0:
            report.flush()  # what is written of a step is there before its checkpoint
            activity.begin("saving", step)
            place.check()
            checkpoints.save(step, state, batches.get_state())
    report.flush()
    activity.begin("saving", step)
    if step > first:
        checkpoints.save(step, state, batches.get_state())
    checkpoints.wait()
    return state
