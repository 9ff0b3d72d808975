"""The training loop: from a config and a folder to a trained model."""

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
from hope_jax.runs.checkpoint import Checkpoints
from hope_jax.runs.metrics import MetricsWriter, plot_losses
from hope_jax.training.optimizer import make_optimizer, needs_layer_inputs
from hope_jax.training.processes import StopRequest, join_processes
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
    """
    join_processes(config.mesh.processes)
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
    # Only now, so that settings that do not fit leave no run behind.
    checkpoints = Checkpoints(workdir, config, config.checkpoint.keep)
    restored = checkpoints.restore(abstract_state(model, optimizer, mesh))
    if restored is None:
        state = init_state(model, optimizer, mesh, config.seed)
        console.print(f"{parameter_count(model_config):,} parameters on {mesh.size} devices")
    else:
        state, place = restored
        if place:
            batches.set_state(place)
        console.print(f"continuing {workdir} from step {int(state.step)}")
    run = _Run(config, workdir, mesh, model, console, checkpoints, validation)
    try:
        state = run.steps(
            state,
            batches,
            make_train_step(
                model, optimizer, mesh, config.accumulate, needs_layer_inputs(config.optimizer)
            ),
        )
        if run.stopped:
            console.print(f"stopped and saved at step {int(state.step)}; run again to continue")
            return None
        return run.finish(state, documents, streams[1], tokenizer)
    finally:
        checkpoints.close()
        run.writer.close()


def _load_corpus(
    config: ConfigDict, tokenizer: Tokenizer
) -> tuple[Documents | None, list[TokenStream]]:
    """The documents, where they are in memory, and the streams of the training and validation part."""
    data = config.data
    folder = data.get("tokens", "")  # runs of before there was this setting go on
    if not folder:
        documents = load_documents(data.files, data.tfds, data.validation_fraction)
        return documents, [encode_documents(part, tokenizer) for part in documents]
    if data.files or data.tfds:
        raise ValueError(
            f"data.tokens={folder!r} is given, and data.files={data.files!r} or data.tfds={data.tfds!r}"
            f" too; set the others to ''"
        )
    if config.evaluate.ngram_orders:
        raise ValueError(
            "n-gram models read text, which data.tokens has not; set evaluate.ngram_orders to ()"
        )
    return None, [read_tokens(folder, part, tokenizer) for part in PARTS]


class _Run:
    """What the phases of one run share."""

    def __init__(self, config, workdir, mesh, model, console, checkpoints, validation):
        self.config, self.workdir, self.mesh, self.model = config, workdir, mesh, model
        self.console, self.checkpoints = console, checkpoints
        self.validation: Sequence[dict[str, np.ndarray]] = validation
        self.eval_step = make_eval_step(model, mesh)
        self.stopped = False
        self.writer: Any = _NoWriter()

    def steps(self, state: TrainState, batches: Any, train_step: Any) -> TrainState:
        """Takes the steps that are left."""
        config = self.config
        first = step = int(state.step)
        if jax.process_index() == 0:
            self.writer = MetricsWriter(self.workdir, first)
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        ]
        tokens = config.data.batch_size * config.data.sequence_length
        clock = _Clock(tokens)
        pending: tuple[int, Metrics] | None = None
        interactive = self.console.is_terminal
        with (
            StopRequest() as request,
            Progress(*columns, console=self.console, disable=not interactive) as progress,
        ):
            bar = progress.add_task("loss", total=config.steps, completed=first)
            while step < config.steps and not request.reached(step + 1):
                batch = put_batch(self._kept(next(batches)), self.mesh)
                state, metrics = train_step(state, batch)
                step += 1
                # The step before is read only now, when this one is under way.
                if pending is not None:
                    self._read(*pending, progress, bar, clock)
                pending = (step, metrics)
                save = step % config.checkpoint.every == 0
                evaluate = step % config.evaluate.every == 0 and step < config.steps
                if save or evaluate:
                    self._read(*pending, progress, bar, clock)
                    pending = None
                if evaluate:
                    self._evaluate_and_write(step, state, clock)
                if save:
                    self.checkpoints.save(step, state, batches.get_state())
            if pending is not None:
                self._read(*pending, progress, bar, clock)
            if step > first:
                self.checkpoints.save(step, state, batches.get_state())
            self.stopped = step < config.steps
        return state

    def _kept(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A batch without its resets, where the config wants documents to run into each other."""
        if self.config.data.reset_documents:
            return batch
        return {name: value for name, value in batch.items() if name != "reset"}

    def _read(self, step: int, metrics: Metrics, progress: Any, bar: Any, clock: "_Clock") -> None:
        loss, norm = float(metrics.loss), float(metrics.gradient_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteLossError(
                f"step {step}: loss {loss}, gradient norm {norm}; the last good checkpoint in "
                f"{self.workdir} stays. Lower optimizer.learning_rate or set optimizer.clip_norm"
            )
        rate = clock.tick()
        if step % self.config.log.every == 0 or step == self.config.steps:
            speed = {"tokens_per_second": rate} if math.isfinite(rate) else {}
            self.writer.write(step, loss=loss, gradient_norm=norm, **speed)
            if not self.console.is_terminal:
                self.console.print(
                    f"step {step}/{self.config.steps}  loss {loss:.4f}  {rate:,.0f} tokens/s  "
                    f"{clock.left(self.config.steps - step):.0f} s left"
                )
        progress.update(bar, completed=step, description=f"loss {loss:.3f}  {rate:,.0f} tokens/s")

    def evaluate(self, params: Any, batches: int) -> float:
        """Mean validation loss in nats per token over so many batches, evenly spread; 0 is all."""
        total = weight = 0.0
        count = min(batches or len(self.validation), len(self.validation))
        parts = [self.validation[i * len(self.validation) // count] for i in range(count)]
        rows = self.config.data.batch_size // jax.process_count()
        own = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
        for batch in parts:
            local = {name: value[own] for name, value in self._kept(batch).items()}
            loss, tokens = self.eval_step(params, put_batch(local, self.mesh))
            total, weight = total + float(loss), weight + float(tokens)
        return total / weight

    def _evaluate_and_write(self, step: int, state: TrainState, clock: "_Clock") -> None:
        loss = self.evaluate(state.params, self.config.evaluate.batches)
        self.writer.write(step, validation_loss=loss)
        if not self.console.is_terminal:
            self.console.print(f"step {step}  validation loss {loss:.4f}")
        clock.restart()

    def finish(
        self,
        state: TrainState,
        documents: Documents | None,
        validation: TokenStream,
        tokenizer: Tokenizer,
    ) -> dict[str, float]:
        """Evaluates on the validation part, and shows what the model has become."""
        loss = self.evaluate(state.params, self.config.evaluate.final_batches)
        bits = loss / math.log(2) * validation.num_told / validation.num_bytes
        step = int(state.step)
        self.writer.write(step, validation_loss=loss, bits_per_byte=bits)
        result = {"validation_loss": loss, "bits_per_byte": bits}
        if jax.process_index() == 0:
            self.console.print(f"validation: {bits:.3f} bits per byte after {step} steps")
            for order in self.config.evaluate.ngram_orders if documents is not None else ():
                baseline = witten_bell_bits_per_byte(documents.train, documents.validation, order)
                self.console.print(f"  a {order}-gram on the whole validation part: {baseline:.3f}")
                result[f"{order}_gram_bits_per_byte"] = baseline
            self.console.print(f"losses drawn in {plot_losses(self.workdir)}")
        if jax.process_count() == 1 and self.config.evaluate.sample_tokens:
            prompt = [*tokenizer.before, *tokenizer.encode(self.config.evaluate.prompt)]
            context = read(self.model, state.params, np.asarray(prompt, np.int32)[None])
            ids, _ = generate(
                self.model,
                state.params,
                context,
                jax.random.key(self.config.seed),
                num_tokens=self.config.evaluate.sample_tokens,
                temperature=0.8,
                vocab_size=tokenizer.vocab_size,
                end_ids=tokenizer.end_ids,
            )
            text = tokenizer.decode(ids[0])
            self.console.print("a sample:", style="bold")
            shown = show_controls(self.config.evaluate.prompt + text)
            self.console.print(shown, markup=False, highlight=False)
        return result


class _NoWriter:
    """Metrics of the processes that write none."""

    def write(self, step: int, **values: float) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class _Clock:
    """Tokens a second over the last steps."""

    def __init__(self, tokens: int, window: int = 20):
        self.tokens, self.window = tokens, window
        self.times: list[float] = []
        self.seconds = math.nan

    def tick(self) -> float:
        """Notes the end of a step; the rate is not a number until there are two."""
        self.times = [*self.times[-self.window :], time.perf_counter()]
        if len(self.times) > 1:
            self.seconds = (self.times[-1] - self.times[0]) / (len(self.times) - 1)
        return self.tokens / self.seconds

    def left(self, steps: int) -> float:
        """Seconds that so many steps will take."""
        return steps * self.seconds

    def restart(self) -> None:
        """Forgets the past, which held more than steps."""
        self.times = []
