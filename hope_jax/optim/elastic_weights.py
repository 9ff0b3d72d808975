"""Elastic weight consolidation: weights that mattered for earlier tasks are held back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformationExtraArgs, Params, Updates

from hope_jax.optim.precision import squares, widen
from hope_jax.optim.ranges import check_range


class ElasticWeightsState(NamedTuple):
    r"""What is known of the tasks so far.

    Attributes:
      anchor: :math:`\theta^*`, the parameters after the last of them, at least float32.
      fisher: :math:`F`, how much each parameter mattered, of the same shapes and at least float32; zeros
        before the first task is over.
    """

    anchor: Params
    fisher: Params


def elastic_weights(strength: chex.Numeric) -> GradientTransformationExtraArgs:
    r"""Adds the pull back to the parameters of earlier tasks to the gradient.

    .. math::
      g \leftarrow g + \lambda F \odot (\theta - \theta^*)

    which is the gradient of :math:`\frac\lambda2 \sum_i F_i (\theta_i - \theta^*_i)^2`. Put it in front
    of the optimiser, and call :func:`hope_jax.optim.consolidate` when a task is over; before the first
    is, it changes nothing.

    Args:
      strength: The factor :math:`\lambda`.

    Returns:
      The corresponding `GradientTransformationExtraArgs`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from hope_jax.optim import consolidate, diagonal_fisher, elastic_weights
      >>> loss = lambda w, x: 0.5 * jnp.sum((w - x) ** 2)  # of one example
      >>> solver = optax.chain(elastic_weights(strength=1.0), optax.sgd(0.1))
      >>> w = jnp.zeros(1)
      >>> state = solver.init(w)
      >>> for task in (jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])):
      ...     for _ in range(200):
      ...         updates, state = solver.update(w - task.mean(0), state, w)
      ...         w = optax.apply_updates(w, updates)
      ...     print(f"{w[0]:.2f}")
      ...     state = consolidate(state, w, diagonal_fisher(loss, w, task))
      2.00
      4.00

    References:
      Kirkpatrick et al., `Overcoming catastrophic forgetting in neural networks
      <https://arxiv.org/abs/1612.00796>`_, 2017
    """
    check_range("strength", strength, 0)

    def init_fn(params: Params) -> ElasticWeightsState:
        # A copy, so that a step may be given the parameters' memory to use again.
        anchor = jax.tree.map(jnp.copy, widen(params))
        return ElasticWeightsState(anchor, optax.tree.zeros_like(anchor))

    def update_fn(
        updates: Updates,
        state: ElasticWeightsState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Updates, ElasticWeightsState]:
        del extra_args
        if params is None:
            raise ValueError(
                "elastic weights need the parameters: update(gradients, state, params)."
            )

        def add(g: jax.Array, w: jax.Array, anchor: jax.Array, fisher: jax.Array) -> jax.Array:
            return (g + strength * fisher * (w - anchor)).astype(g.dtype)

        return jax.tree.map(add, updates, params, state.anchor, state.fisher), state

    return GradientTransformationExtraArgs(init_fn, update_fn)


def diagonal_fisher(
    loss: Callable[[Params, Any], jax.Array],
    params: Params,
    examples: Any,
    chunk: int = 1,
) -> Params:
    r"""How much each parameter matters for what a model says of some examples.

    .. math::
      F = \frac1N \sum_n \Big(\frac{\partial}{\partial\theta} \log p_\theta(x_n)\Big)^2

    the mean of squares, not the square of the mean. Of examples that are drawn from the model this is
    an estimate of the Fisher information's diagonal, of the data's own what is called the empirical one.

    Args:
      loss: Minus the log-likelihood of one example, a scalar, from the parameters and the example; of a
        sequence the sum over its tokens.
      params: The parameters :math:`\theta`.
      examples: Arrays (N, ...), or a tree of them.
      chunk: Examples whose gradients exist at one time.

    Returns:
      A tree like the parameters, real and at least float32.

    Raises:
      ValueError: If there is no example, or their numbers differ.
    """
    check_range("chunk", chunk, 1, whole=True)
    counts = {len(leaf) for leaf in jax.tree.leaves(examples)}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"examples must be arrays of one length, the number of examples, and at least one; got "
            f"{sorted(counts) or 'none'}."
        )
    (count,) = counts

    def summed(part: Any) -> Params:
        gradients = jax.vmap(jax.grad(loss), (None, 0))(params, part)
        return jax.tree.map(lambda g: squares(g).sum(0), gradients)

    whole = count // chunk * chunk
    split = jax.tree.map(lambda x: x[:whole].reshape(-1, chunk, *x.shape[1:]), examples)
    zero = jax.tree.map(lambda w: jnp.zeros_like(squares(w)), params)
    total, _ = jax.lax.scan(
        lambda total, part: (optax.tree.add(total, summed(part)), None), zero, split
    )
    if whole < count:
        total = optax.tree.add(total, summed(jax.tree.map(lambda x: x[whole:], examples)))
    return optax.tree.scale(1 / count, total)


def consolidate(state: Any, params: Params, fisher: Params, decay: chex.Numeric = 1.0) -> Any:
    r"""Holds the weights to what they are, now that a task is over.

    .. math::
      \theta^* \leftarrow \theta, \qquad F \leftarrow \gamma F + F_{\text{task}}

    With one anchor for all tasks, as in online elastic weight consolidation.

    Args:
      state: Of an optimiser with `elastic_weights` in it, anywhere in a chain.
      params: The parameters after the task.
      fisher: What mattered for the task, of :func:`hope_jax.optim.diagonal_fisher`.
      decay: The share :math:`\gamma` that earlier tasks keep; 1 sums over tasks.

    Returns:
      The state, in which all else is as it was.

    Raises:
      ValueError: If there is no `elastic_weights` in the optimiser.

    References:
      Schwarz et al., `Progress & Compress: A scalable framework for continual learning
      <https://arxiv.org/abs/1805.06370>`_, 2018
    """
    check_range("decay", decay, 0, 1, ends="[]")
    is_ours = lambda node: isinstance(node, ElasticWeightsState)
    if not any(map(is_ours, jax.tree.leaves(state, is_leaf=is_ours))):
        raise ValueError("the optimiser holds no elastic_weights; chain it in front.")

    def changed(node: Any) -> Any:
        if not is_ours(node):
            return node
        anchor = jax.tree.map(lambda old, w: jnp.copy(w).astype(old.dtype), node.anchor, params)
        summed = jax.tree.map(lambda old, new: decay * old + new, node.fisher, fisher)
        return ElasticWeightsState(anchor, summed)

    return jax.tree.map(changed, state, is_leaf=is_ours)
