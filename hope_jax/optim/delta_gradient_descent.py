"""Delta Gradient Descent for the weights of a model: weight decay along each layer's inputs."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformationExtraArgs, Params, ScalarOrSchedule, Updates

from hope_jax.optim.matrices import leaf_name
from hope_jax.optim.precision import sum_dtype, unit
from hope_jax.optim.ranges import check_range


def _by_name(tree: Any) -> dict[str, Any]:
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def add_delta_decay(strength: chex.Numeric = 1.0) -> GradientTransformationExtraArgs:
    r"""Adds the decay along a layer's inputs to the gradient of its weight.

    .. math::
      g \leftarrow g + \beta \, \frac1N \sum_n \hat x_n^\top \hat x_n W, \qquad
      \hat x_n = x_n / |x_n|

    Args:
      strength: The factor :math:`\beta`.

    Returns:
      A `GradientTransformationExtraArgs` whose update takes `inputs`; see
      :func:`hope_jax.optim.delta_gradient_descent`.
    """

    def update_fn(
        updates: Updates,
        state: optax.EmptyState,
        params: Params | None = None,
        *,
        inputs: Any = None,
        **extra_args: Any,
    ) -> tuple[Updates, optax.EmptyState]:
        del extra_args
        if params is None or inputs is None:
            raise ValueError(
                "delta gradient descent needs the parameters and the inputs of the layers: "
                "update(gradients, state, params, inputs=inputs). hope_jax.optim.dense_inputs "
                "captures those of Flax Dense layers."
            )
        # Looked up by path, since optax.partition and optax.masked hide leaves of the updates but
        # not of an extra argument.
        inputs_by_name = _by_name(inputs)

        def add(path: tuple, g: jax.Array, w: jax.Array) -> jax.Array:
            name = leaf_name(path)
            if name not in inputs_by_name:
                return g
            x = inputs_by_name[name]
            batch = w.shape[:-2]
            if (
                w.ndim < 2
                or x.ndim < w.ndim
                or x.shape != (*batch, *x.shape[w.ndim - 2 : -1], w.shape[-2])
            ):
                raise ValueError(
                    f"{name}: shape {w.shape} is a weight (..., in, out) and expects inputs "
                    f"(..., rows, in) with the same leading axes, got shape {x.shape}."
                )
            rows = unit(x.reshape((*batch, -1, x.shape[-1])), -1)
            decay = rows.mT.conj() @ (rows @ w.astype(sum_dtype(w))) / rows.shape[-2]
            return (g + strength * (decay if jnp.iscomplexobj(g) else decay.real)).astype(g.dtype)

        return jax.tree_util.tree_map_with_path(add, updates, params), state

    return GradientTransformationExtraArgs(optax.init_empty_state, update_fn)


def delta_gradient_descent(
    learning_rate: ScalarOrSchedule,
    strength: chex.Numeric = 1.0,
    weight_decay: chex.Numeric = 0.0,
    mask: Any | None = None,
) -> GradientTransformationExtraArgs:
    r"""Delta Gradient Descent: a step that also forgets what the weight answers to its inputs.

    .. math::
      W \leftarrow W - \eta' \, \frac1N \sum_n \hat x_n^\top \hat x_n W - \eta' g, \qquad
      \eta' = \frac{\eta}{1 + \eta}

    (Eq. 54-57 and appendix C), which for a single input of length one is the exact minimum of
    :math:`\langle x W, \nabla_y L\rangle + \frac12 |x W|^2 + \frac1{2\eta} |W - W_t|^2`. Inputs are
    normalised to length one and the decay is averaged over them, as a mean loss's gradient is.
    Weights without captured inputs take plain gradient steps of size :math:`\eta'`.

    Args:
      learning_rate: The step size :math:`\eta`, fixed or a schedule.
      strength: Factor of the decay along the inputs; with 0 this is gradient descent.
      weight_decay: Strength of an ordinary decoupled weight decay.
      mask: Which parameters decay so: a tree of booleans or a function from parameters to one.

    Returns:
      A `GradientTransformationExtraArgs`. Its `update` takes the keyword `inputs`: a tree with, at
      the path of each weight (..., in, out) that shall decay, that layer's inputs (..., rows, in);
      leading axes (stacked layers) are shared, any number of axes of rows is allowed, and other
      paths may be absent or None.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from hope_jax.optim import delta_gradient_descent
      >>> params = {"kernel": jnp.ones((2, 1)), "bias": jnp.zeros(1)}
      >>> solver = delta_gradient_descent(learning_rate=1.0)
      >>> gradients = optax.tree.zeros_like(params)
      >>> updates, _ = solver.update(
      ...     gradients, solver.init(params), params, inputs={"kernel": jnp.array([[3.0, 0.0]])})
      >>> print(optax.apply_updates(params, updates)["kernel"])  # forgets along the input only
      [[0.5]
       [1. ]]

    References:
      Behrouz et al., `Nested Learning: The Illusion of Deep Learning Architectures
      <https://arxiv.org/abs/2512.24695>`_, 2025
    """
    check_range("strength", strength, 0)
    check_range("weight_decay", weight_decay, 0)
    check_range("learning_rate", learning_rate, 0)

    def shortened(eta: chex.Numeric) -> chex.Numeric:
        return eta / (1 + eta)

    if callable(learning_rate):
        schedule = learning_rate
        step_size: ScalarOrSchedule = lambda count: shortened(schedule(count))
    else:
        step_size = shortened(learning_rate)
    return optax.chain(
        add_delta_decay(strength),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(step_size),
    )
