"""What steps tell: read while the next one is under way, and written down."""

import math

import jax
import optax
from ml_collections import ConfigDict

from hope_jax.counts import count
from hope_jax.exit_codes import DIVERGED
from hope_jax.models.flops import Flops
from hope_jax.runs.metrics import AnyMetrics, MetricsWriter, NoMetrics
from hope_jax.runs.wandb_metrics import WandbMetrics, find_wandb
from hope_jax.training.activity import Activity
from hope_jax.training.progress import TrainingProgress
from hope_jax.training.step import Metrics


class DivergedError(RuntimeError):
    """Raised when too many batches in a row cannot be learnt from; checkpoints are as before them."""

    exit_code = DIVERGED


def open_metrics(workdir: str, step: int, config: ConfigDict) -> AnyMetrics:
    """Where the metrics of a run go: from the first process to its folder and where the config says.

    Args:
      workdir: folder of the run.
      step: steps taken so far.
      config: whole, of the run.
    """
    if jax.process_index() > 0:
        return NoMetrics()
    metrics = MetricsWriter(workdir, step)
    if not config.log.wandb:
        return metrics
    return WandbMetrics(metrics, find_wandb(config.log.wandb), config)


class StepReport:
    """Reads each step's metrics a step late, so that the devices never wait for that.

    Args:
      folder: of the run, for the error.
      metrics: to write to.
      progress: to tell.
      schedule: of the learning rate.
      usage: shares of the devices' peak that one token a second is; None if the peak is not known.
      skips: bad batches in a row that end no run.
      activity: what is done.
    """

    def __init__(
        self,
        folder: str,
        metrics: AnyMetrics,
        progress: TrainingProgress,
        schedule: optax.Schedule,
        usage: Flops | None,
        skips: int,
        activity: Activity,
    ):
        self.folder, self.metrics, self.progress = folder, metrics, progress
        self.schedule, self.usage, self.skips = schedule, usage, skips
        self.activity = activity
        self._taken = self._in_vain = 0
        self._pending: tuple[int, Metrics] | None = None

    def take(self, step: int, values: Metrics) -> None:
        """Takes what a step that is under way will tell, and reads the one before."""
        self.flush(under_way=True)
        self._pending = (step, values)

    def flush(self, under_way: bool = False) -> None:
        """Reads the last step.

        Args:
          under_way: whether the next one is.

        Raises:
          DivergedError: if its batch is one too many that cannot be learnt from.
        """
        if self._pending is None:
            return
        step, values = self._pending
        self._pending = None
        loss, gradient, update = (float(value) for value in values[:3])
        skipped, in_a_row = int(values.skipped), int(values.in_a_row)
        said = f"loss {loss:.4g}, gradient norm {gradient:.4g}, update norm {update:.4g}"
        if in_a_row > self.skips:
            skips = count(self.skips, "skipped batch", "skipped batches")
            before = f", after {skips}" if self.skips else ""
            raise DivergedError(
                f"step {step}: {said}{before}; the last good checkpoint in {self.folder} stays. Lower "
                f"optimizer.learning_rate or set optimizer.clip_norm"
            )
        # The schedule does not count batches that are skipped.
        rate = float(self.schedule(step - 1 - skipped + bool(in_a_row)))
        speed = self.progress.step(step, loss, rate, under_way)
        if in_a_row:
            self.progress.say(f"step {step}  batch skipped: {said} ({skipped} skipped in all)")
        self._taken += 1
        self._in_vain += bool(in_a_row)
        if in_a_row or self.progress.is_due(step):
            told = {"loss": loss, "gradient_norm": gradient, "update_norm": update}
            told |= {"learning_rate": rate, "skipped": skipped}
            counted = 1 - self._in_vain / self._taken
            told["goodput"] = self.activity.share("stepping") * counted
            if math.isfinite(speed):
                told["tokens_per_second"] = speed
                if self.usage is not None:
                    told["mfu"] = speed * self.usage.total
                    told["inner_mfu"] = speed * self.usage.inner
            self.metrics.write(step, **{n: x for n, x in told.items() if math.isfinite(x)})

    def evaluation(self, step: int, loss: float) -> None:
        """Writes down an evaluation."""
        self.metrics.write(step, validation_loss=loss)
        self.progress.evaluation(step, loss)
