"""What steps tell: read while the next one is under way, and written down."""

import math

import optax

from hope_jax.runs.metrics import MetricsWriter, NoMetrics
from hope_jax.training.progress import TrainingProgress
from hope_jax.training.step import Metrics


class NonFiniteLossError(RuntimeError):
    """Raised when a loss or gradient is no number; the last checkpoint is from before that."""


class StepReport:
    """Reads each step's metrics a step late, so that the devices never wait for that.

    Args:
      folder: of the run, for the error.
      metrics: to write to.
      progress: to tell.
      schedule: of the learning rate.
      usage: share of the devices' peak that one token a second is; None if the peak is not known.
    """

    def __init__(
        self,
        folder: str,
        metrics: MetricsWriter | NoMetrics,
        progress: TrainingProgress,
        schedule: optax.Schedule,
        usage: float | None,
    ):
        self.folder, self.metrics, self.progress = folder, metrics, progress
        self.schedule, self.usage = schedule, usage
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
          NonFiniteLossError: if its loss, gradient or update is no number.
        """
        if self._pending is None:
            return
        step, values = self._pending
        self._pending = None
        loss, gradient, update = (float(value) for value in values)
        if not all(map(math.isfinite, (loss, gradient, update))):
            raise NonFiniteLossError(
                f"step {step}: loss {loss}, gradient norm {gradient}, update norm {update}; the last "
                f"good checkpoint in {self.folder} stays. Lower optimizer.learning_rate or set "
                f"optimizer.clip_norm"
            )
        rate = float(self.schedule(step - 1))
        speed = self.progress.step(step, loss, rate, under_way)
        if self.progress.is_due(step):
            speeds = {"tokens_per_second": speed} if math.isfinite(speed) else {}
            if speeds and self.usage is not None:
                speeds["mfu"] = speed * self.usage
            self.metrics.write(
                step,
                loss=loss,
                gradient_norm=gradient,
                update_norm=update,
                learning_rate=rate,
                **speeds,
            )

    def evaluation(self, step: int, loss: float) -> None:
        """Writes down an evaluation."""
        self.metrics.write(step, validation_loss=loss)
        self.progress.evaluation(step, loss)
