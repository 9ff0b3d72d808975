"""Groups of parameters that change at periods of their own (the CMS schedule, Eq. 71)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformation, GradientTransformationExtraArgs, Params, Updates

from hope_jax.optim.matrices import leaf_name
from hope_jax.optim.precision import widen


class MultiTimescaleState(NamedTuple):
    """State of one group of parameters whose period is above one.

    Attributes:
      count: Gradients taken in since the group last changed, int32 scalar.
      accumulated: Their sum, at least float32.
      inner_state: The inner transformation's state for the group.
    """

    count: chex.Array
    accumulated: Updates
    inner_state: Any


def _every(
    inner: GradientTransformation, period: int, average: bool
) -> GradientTransformationExtraArgs:
    """Runs `inner` every `period` updates on the gradients since, and returns zeros between."""
    inner = optax.with_extra_args_support(inner)
    if period == 1:
        return inner

    def init_fn(params: Params) -> MultiTimescaleState:
        accumulated = optax.tree.zeros_like(widen(params))
        return MultiTimescaleState(jnp.zeros([], jnp.int32), accumulated, inner.init(params))

    def update_fn(
        updates: Updates,
        state: MultiTimescaleState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Updates, MultiTimescaleState]:
        accumulated = jax.tree.map(lambda a, g: a + g, state.accumulated, updates)

        def change(accumulated: Updates, inner_state: Any) -> tuple[Updates, Updates, Any]:
            total = optax.tree.scale(1 / period if average else 1, accumulated)
            new_updates, new_inner = inner.update(
                optax.tree.cast_like(total, updates), inner_state, params, **extra_args
            )
            return (
                optax.tree.cast_like(new_updates, updates),
                optax.tree.zeros_like(accumulated),
                optax.tree.cast_like(new_inner, inner_state),
            )

        def wait(accumulated: Updates, inner_state: Any) -> tuple[Updates, Updates, Any]:
            return optax.tree.zeros_like(updates), accumulated, inner_state

        # optax.MultiSteps runs its inner optimiser at every step and discards what is not due;
        # a slow level's optimiser may be the expensive one.
        due = state.count == period - 1
        new_updates, accumulated, inner_state = jax.lax.cond(
            due, change, wait, accumulated, state.inner_state
        )
        count = jnp.where(due, 0, state.count + 1)
        return new_updates, MultiTimescaleState(count, accumulated, inner_state)

    return GradientTransformationExtraArgs(init_fn, update_fn)


def multi_timescale(
    inner: GradientTransformation,
    period_by_label: Mapping[Any, int],
    param_labels: Params | Callable[[Params], Params],
    average: bool = False,
) -> GradientTransformationExtraArgs:
    r"""Lets each group of parameters change at its own period, by the gradients since then.

    .. math::
      \theta^{(l)}_{t+1} = \theta^{(l)}_t + \begin{cases}
        \text{inner}\big(\sum_{i=t-C_l+1}^{t} g^{(l)}_i\big) & \text{if } C_l \text{ divides } t \\
        0 & \text{otherwise} \end{cases}

    (Eq. 71). A group's inner state, its step count and so its schedules included, advances only
    when the group changes; the inner transformation does not run in between. With period 1 a group
    has the inner optimiser unchanged.

    Args:
      inner: The optimiser of every group; each group has a state of its own.
      period_by_label: The period C of each label, at least 1.
      param_labels: A tree (or prefix of one) of labels, or a function from parameters to one, as in
        `optax.partition`.
      average: Whether to divide the accumulated gradient by the period. To an inner optimiser that
        does not depend on the gradient's scale (Adam, M3) it makes no difference.

    Returns:
      The corresponding `GradientTransformationExtraArgs`.

    Raises:
      ValueError: A period that is not a positive int, or, at `init`, a label without a period.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from hope_jax.optim import multi_timescale
      >>> solver = multi_timescale(
      ...     optax.sgd(0.1), {"fast": 1, "slow": 2}, {"a": "fast", "b": "slow"})
      >>> params = {"a": jnp.zeros(()), "b": jnp.zeros(())}
      >>> gradient = {"a": jnp.ones(()), "b": jnp.ones(())}
      >>> state = solver.init(params)
      >>> for _ in range(4):
      ...     updates, state = solver.update(gradient, state, params)
      ...     print(f"{updates['a']:.1f} {updates['b']:.1f}")
      -0.1 0.0
      -0.1 -0.2
      -0.1 0.0
      -0.1 -0.2
    """
    for label, period in period_by_label.items():
        if not isinstance(period, int) or period < 1:
            raise ValueError(
                f"the period of {label!r} must be an int of at least 1, got {period!r}."
            )

    def labels(params: Params) -> Params:
        tree = param_labels(params) if callable(param_labels) else param_labels

        def check(path: tuple, label: Any) -> Any:
            if label not in period_by_label:
                raise ValueError(
                    f"{leaf_name(path)}: label {label!r} has no period; periods were given for "
                    f"{list(period_by_label)}."
                )
            return label

        return jax.tree_util.tree_map_with_path(check, tree)

    return optax.partition(
        {label: _every(inner, period, average) for label, period in period_by_label.items()}, labels
    )
