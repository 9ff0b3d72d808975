"""Which checkpoints stay."""

import datetime
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as orbax


class Keep(NamedTuple):
    """Which checkpoints stay; one that any of these names does.

    Attributes:
      newest: so many.
      every: those of the steps that this divides; 0 for none.
      best: so many with the lowest validation loss; 0 for none.
    """

    newest: int
    every: int = 0
    best: int = 0


def keep_of(checkpoint: ConfigDict) -> Keep:
    """What a config's section of checkpoints says of those that stay."""
    return Keep(checkpoint.keep, checkpoint.keep_every, checkpoint.keep_best)


class _Info(NamedTuple):
    """A checkpoint, as Orbax's policies read it."""

    step: int
    metrics: dict[str, Any] | None
    time: datetime.datetime = datetime.datetime.min


def superfluous(steps: Collection[int], keep: Keep, losses: Mapping[int, float]) -> Sequence[int]:
    """Steps whose checkpoints may go.

    Args:
      steps: of all checkpoints.
      keep: what stays.
      losses: of validation, by step; a checkpoint whose loss is not there is none of the best.

    Example:
      >>> superfluous([10, 20, 30, 40], Keep(1, every=20, best=1), {10: 2.0, 20: 3.0, 30: 2.5})
      [30]
    """
    policies: list[orbax.PreservationPolicy] = [orbax.LatestN(keep.newest)]
    if keep.every:
        policies.append(orbax.EveryNSteps(keep.every))
    if keep.best:
        policies.append(
            orbax.BestN(
                get_metric_fn=lambda metrics: metrics["loss"],
                reverse=True,  # the last of them stay
                n=keep.best,
                keep_checkpoints_without_metrics=False,
            )
        )
    known = {step: loss for step, loss in losses.items() if math.isfinite(loss)}
    infos = [
        _Info(step, {"loss": known[step]} if step in known else None) for step in sorted(steps)
    ]
    stays = orbax.AnyPreservationPolicy(policies).should_preserve(
        infos, context=orbax.PreservationContext()
    )
    return [info.step for info, stay in zip(infos, stays, strict=True) if not stay]
