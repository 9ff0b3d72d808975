"""Momentum as an associative memory of gradients (section 4): linear, delta-rule and deep.

All of these optimisers are one loop (Def. 5). With gradient g, feature map phi, preconditioner P,
memory m and output function sigma, each step

* writes the value `P phi(g)` under the key `phi(g)` into the memory (Eq. 47, 51), and
* moves the weights against `sigma(what the memory returns)` (Eq. 52).

What differs is the memory: `linear_memory` is heavy-ball momentum, with its delta term the delta
rule (Eq. 48-49); `mlp_memory` is a network trained on the gradients as it goes (Eq. 50).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    Params,
    ScalarOrSchedule,
    Updates,
)

from hope_jax.optim.matrices import leaf_name, row_or_matrix
from hope_jax.optim.precision import length, sum_dtype, unit, widen
from hope_jax.optim.ranges import check_range

Objective = Callable[[jax.Array, jax.Array], jax.Array]
"""From predictions and values, both (rows, width), to a scalar."""


class MomentumMemory(NamedTuple):
    """A memory of the gradients of one array, as a pair of pure functions.

    Attributes:
      init: From the array (only its shape and dtype are read) and a random key to a state.
      update: From the state, a key and a value, both shaped (..., in, out) as the array (a vector
        is one row), to the new state and what the memory returns for the key, shaped likewise.
    """

    init: Callable[[jax.Array, chex.PRNGKey], Any]
    update: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]]


class GeneralizedMomentumState(NamedTuple):
    """State of the generalised momentum.

    Attributes:
      memory: The memory's state for each array.
      preconditioner: The preconditioner's own state.
    """

    memory: Any
    preconditioner: Any


_MATRIX = (-2, -1)


def linear_memory(
    decay: chex.Numeric = 0.9, delta: chex.Numeric = 0.0, mu_dtype: Any | None = None
) -> MomentumMemory:
    r"""A matrix of momentum, with the delta rule's gradient-dependent decay.

    .. math::
      m \leftarrow m \, (\alpha I - \delta \, \hat k^\top \hat k) + v, \qquad \hat k = k / \|k\|_F

    (Eq. 48-49; of complex keys the conjugate transpose). As :math:`\hat k` has norm one, the
    bracket's eigenvalues lie between :math:`\alpha - \delta` and :math:`\alpha`: a contraction for
    :math:`\alpha \le 1` and :math:`\delta < 1 + \alpha`. With :math:`\delta = 0` this is heavy-ball
    momentum.

    Args:
      decay: The decay :math:`\alpha` of everything remembered.
      delta: The extra decay :math:`\delta` along the current key.
      mu_dtype: Dtype of the memory; that of the parameters, but at least float32, if None.

    Returns:
      A `MomentumMemory` whose state has the shape of the array.
    """
    check_range("decay", decay, 0, 1, ends="[]")
    check_range("delta", delta, 0)
    has_delta = not (isinstance(delta, (int, float)) and delta == 0)

    def init(leaf: jax.Array, key: chex.PRNGKey) -> jax.Array:
        del key
        return jnp.zeros_like(leaf, dtype=mu_dtype or sum_dtype(leaf))

    def update(state: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        old = row_or_matrix(state).astype(sum_dtype(value))
        m = decay * old + value
        if has_delta:
            k = unit(key, _MATRIX)
            # m k^T k, in the order that keeps the product small.
            if key.shape[-2] <= key.shape[-1]:
                erased = (old @ k.mT.conj()) @ k
            else:
                erased = old @ (k.mT.conj() @ k)
            m = m - delta * erased
        return m.reshape(state.shape).astype(state.dtype), m

    return MomentumMemory(init, update)


def dot_product(prediction: jax.Array, value: jax.Array) -> jax.Array:
    """Inner objective -<m(k), v>, the mean over rows (Hebbian)."""
    return -jnp.mean(jnp.sum(prediction * value, axis=-1))


def l2_regression(prediction: jax.Array, value: jax.Array) -> jax.Array:
    """Inner objective 1/2 |m(k) - v|^2, the mean over rows."""
    return jnp.mean(jnp.sum(jnp.square(prediction - value), axis=-1)) / 2


class MLPMemoryState(NamedTuple):
    """State of a network memory; leading axes are those of a stack of matrices.

    Attributes:
      w_in: First map, (..., out, hidden).
      w_out: Second map, (..., hidden, out), zero at first.
      w_in_initial: Where `w_in` started and decays to.
    """

    w_in: jax.Array
    w_out: jax.Array
    w_in_initial: jax.Array


def mlp_memory(
    hidden_width: int = 32,
    decay: chex.Numeric = 0.99,
    inner_learning_rate: chex.Numeric = 1.0,
    objective: Objective | None = None,
    activation: Callable[[jax.Array], jax.Array] | None = None,
) -> MomentumMemory:
    r"""A two-layer network that is trained on the gradients as they come (DMGD, Eq. 50).

    The rows of a gradient are its tokens. The network :math:`m(k) = \sigma(k W_2) W_1` takes one
    step of gradient descent on the objective for the current rows, with decay towards its initial
    weights, and is then read at the same rows:

    .. math::
      \theta \leftarrow \theta_0 + \alpha (\theta - \theta_0) - \eta \nabla_\theta L(m; k, v)

    Keys and values are divided by the root mean square length of the keys' rows, and what is read
    is multiplied by it, so that the memory does not depend on the gradients' scale. It returns at
    most `hidden_width` directions, those that the recent gradients had in common.

    Args:
      hidden_width: Width of the hidden layer.
      decay: Decay :math:`\alpha` towards the initial weights.
      inner_learning_rate: Step size :math:`\eta` of the network's own training.
      objective: What the network is trained for: `l2_regression` (if None), `dot_product` or your
        own.
      activation: The activation :math:`\sigma`; `jax.nn.gelu` if None.

    Returns:
      A `MomentumMemory`; its state takes `3 * hidden_width` numbers a column, at least float32.

    Raises:
      ValueError: A width, decay or step size out of its range, a width that is traced, or, at
        `init`, complex weights.
    """
    if not isinstance(hidden_width, int | np.integer):
        raise ValueError(
            f"hidden_width must be a Python int, got {hidden_width}: under inject_hyperparams name "
            "it in static_args."
        )
    check_range("hidden_width", hidden_width, 1)
    check_range("decay", decay, 0, 1, ends="[]")
    check_range("inner_learning_rate", inner_learning_rate, 0)
    inner_objective = l2_regression if objective is None else objective
    act = jax.nn.gelu if activation is None else activation

    def init(leaf: jax.Array, key: chex.PRNGKey) -> MLPMemoryState:
        if jnp.iscomplexobj(leaf):
            raise ValueError(
                "a network memory is of real numbers; wrap the optimiser in "
                "optax.contrib.split_real_and_imaginary."
            )
        shape = leaf.shape if leaf.ndim >= 2 else (1, math.prod(leaf.shape))
        batch, width = shape[:-2], shape[-1]
        # Rows have length about one, so the hidden layer has length about one as well.
        dtype = sum_dtype(leaf)
        w_in = jax.random.normal(key, (*batch, width, hidden_width), dtype) / math.sqrt(
            hidden_width
        )
        return MLPMemoryState(w_in, jnp.zeros((*batch, hidden_width, width), dtype), w_in)

    def read(w_in: jax.Array, w_out: jax.Array, key: jax.Array) -> jax.Array:
        return act(key @ w_in) @ w_out

    def loss(w_in: jax.Array, w_out: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return inner_objective(read(w_in, w_out, key), value)

    def update(
        state: MLPMemoryState, key: jax.Array, value: jax.Array
    ) -> tuple[MLPMemoryState, jax.Array]:
        k, v = key.astype(state.w_in.dtype), value.astype(state.w_in.dtype)
        row_length = length(k, _MATRIX) / math.sqrt(k.shape[-2])
        divisor = jnp.where(row_length > 0, row_length, 1)
        k, v = k / divisor, v / divisor
        gradient = jax.grad(loss, argnums=(0, 1))
        for _ in k.shape[:-2]:
            gradient = jax.vmap(gradient)
        g_in, g_out = gradient(state.w_in, state.w_out, k, v)
        drift = state.w_in - state.w_in_initial
        w_in = state.w_in_initial + decay * drift - inner_learning_rate * g_in
        w_out = decay * state.w_out - inner_learning_rate * g_out
        output = (read(w_in, w_out, k) * row_length).astype(value.dtype)
        return MLPMemoryState(w_in, w_out, state.w_in_initial), output

    return MomentumMemory(init, update)


def scale_by_generalized_momentum(
    memory: MomentumMemory,
    feature_map: Callable[[jax.Array], jax.Array] | None = None,
    preconditioner: GradientTransformation | None = None,
    output: Callable[[jax.Array], jax.Array] | None = None,
    seed: int = 0,
) -> GradientTransformationExtraArgs:
    r"""Replaces gradients by what an associative memory of them returns (Def. 5).

    .. math::
      k = \phi(g), \quad v = P k, \quad m \leftarrow \text{write}(m; k, v), \quad
      \text{update} = \sigma(m(k))

    All of it is computed in float32 where gradients are of a lower precision.

    Args:
      memory: `linear_memory(...)`, `mlp_memory(...)` or your own `MomentumMemory`.
      feature_map: :math:`\phi`, on arrays (..., in, out), a vector being one row; it keeps the
        shape. None is the identity.
      preconditioner: :math:`P`, any gradient transformation that does not negate, such as
        `optax.scale_by_rms()`. None is the identity.
      output: :math:`\sigma`, on arrays (..., in, out). None is the identity; with
        :func:`hope_jax.optim.newton_schulz` and a linear memory the result is Muon.
      seed: Seed of the memory's initial weights.

    Returns:
      A `GradientTransformationExtraArgs` object.

    Examples:
      Gradients compressed by a cubic feature map, momentum orthogonalised on the way out:

      >>> import jax.numpy as jnp
      >>> from hope_jax.optim import linear_memory, newton_schulz, scale_by_generalized_momentum
      >>> transform = scale_by_generalized_momentum(
      ...     linear_memory(decay=0.9), feature_map=jnp.cbrt, output=newton_schulz)
      >>> gradient = jnp.diag(jnp.array([8.0, 1.0]))
      >>> updates, _ = transform.update(gradient, transform.init(gradient))
      >>> print(updates.round(1))
      [[0.7 0. ]
       [0.  1.1]]
    """
    inner = optax.with_extra_args_support(preconditioner or optax.identity())

    def init_fn(params: Params) -> GeneralizedMomentumState:
        leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
        key = jax.random.key(seed)
        states = []
        for i, (path, leaf) in enumerate(leaves):
            try:
                states.append(memory.init(leaf, jax.random.fold_in(key, i)))
            except ValueError as error:
                raise ValueError(f"{leaf_name(path)}: {error}") from None
        return GeneralizedMomentumState(
            jax.tree.unflatten(treedef, states), inner.init(widen(params))
        )

    def update_fn(
        updates: Updates,
        state: GeneralizedMomentumState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Updates, GeneralizedMomentumState]:
        leaves, treedef = jax.tree.flatten(updates)
        keys = widen(leaves)
        if feature_map is not None:
            keys = [feature_map(row_or_matrix(key)).reshape(key.shape) for key in keys]
        values, inner_state = inner.update(
            jax.tree.unflatten(treedef, keys),
            state.preconditioner,
            None if params is None else widen(params),
            **extra_args,
        )
        memories = treedef.flatten_up_to(state.memory)  # type: ignore[attr-defined]
        states, results = [], []
        for old, key, value, leaf in zip(
            memories, keys, jax.tree.leaves(values), leaves, strict=True
        ):
            new, result = memory.update(old, row_or_matrix(key), row_or_matrix(value))
            if output is not None:
                result = output(result)
            states.append(new)
            results.append(result.reshape(leaf.shape).astype(leaf.dtype))
        return (
            jax.tree.unflatten(treedef, results),
            GeneralizedMomentumState(jax.tree.unflatten(treedef, states), inner_state),
        )

    return GradientTransformationExtraArgs(init_fn, update_fn)


def _descend(
    transform: GradientTransformationExtraArgs,
    learning_rate: ScalarOrSchedule,
    weight_decay: chex.Numeric,
    mask: Any | Callable[[Params], Any] | None,
) -> GradientTransformationExtraArgs:
    check_range("weight_decay", weight_decay, 0)
    return optax.chain(
        transform,
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def delta_momentum(
    learning_rate: ScalarOrSchedule,
    decay: chex.Numeric = 0.9,
    delta: chex.Numeric = 0.2,
    feature_map: Callable[[jax.Array], jax.Array] | None = None,
    preconditioner: GradientTransformation | None = None,
    output: Callable[[jax.Array], jax.Array] | None = None,
    weight_decay: chex.Numeric = 0.0,
    mask: Any | Callable[[Params], Any] | None = None,
    mu_dtype: Any | None = None,
) -> GradientTransformationExtraArgs:
    r"""Delta Momentum: momentum that forgets along the current gradient.

    .. math::
      m \leftarrow m \, (\alpha I - \delta \, \hat g^\top \hat g) + P g, \qquad
      W \leftarrow W - \eta \, \sigma(m), \qquad \hat g = g / \|g\|_F

    (Eq. 48-49). Where the direction of the gradient persists the memory holds less of it than
    heavy-ball momentum, :math:`1 / (1 - \alpha + \delta)` gradients in place of
    :math:`1 / (1 - \alpha)`; what it holds of other directions is not touched.

    Args:
      learning_rate: A global scaling factor, fixed or a schedule.
      decay: The decay :math:`\alpha` of everything remembered.
      delta: The extra decay :math:`\delta` along the gradient; with 0 this is heavy-ball.
      feature_map: Of the gradient, see :func:`hope_jax.optim.scale_by_generalized_momentum`.
      preconditioner: The transformation :math:`P`, see there.
      output: The function :math:`\sigma`, see there.
      weight_decay: Strength of the decoupled weight decay, multiplied with the learning rate.
      mask: Which parameters decay: a tree of booleans or a function from parameters to one.
      mu_dtype: Dtype of the memory; that of the parameters, but at least float32, if None.

    Returns:
      The corresponding `GradientTransformationExtraArgs`.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from hope_jax.optim import delta_momentum
      >>> def f(x): return jnp.sum(x ** 2)
      >>> solver = delta_momentum(learning_rate=0.1)
      >>> params = jnp.array([1.0, 2.0, 3.0])
      >>> state = solver.init(params)
      >>> for _ in range(20):
      ...     updates, state = solver.update(jax.grad(f)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(f(params) < 1e-2)
      True

    References:
      Behrouz et al., `Nested Learning: The Illusion of Deep Learning Architectures
      <https://arxiv.org/abs/2512.24695>`_, 2025
    """
    memory = linear_memory(decay, delta, mu_dtype)
    transform = scale_by_generalized_momentum(memory, feature_map, preconditioner, output)
    return _descend(transform, learning_rate, weight_decay, mask)


def preconditioned_momentum(
    learning_rate: ScalarOrSchedule,
    preconditioner: GradientTransformation,
    decay: chex.Numeric = 0.9,
    feature_map: Callable[[jax.Array], jax.Array] | None = None,
    output: Callable[[jax.Array], jax.Array] | None = None,
    weight_decay: chex.Numeric = 0.0,
    mask: Any | Callable[[Params], Any] | None = None,
    mu_dtype: Any | None = None,
) -> GradientTransformationExtraArgs:
    r"""Momentum of preconditioned gradients: :math:`m \leftarrow \alpha m + P g` (Eq. 47).

    Args:
      learning_rate: A global scaling factor, fixed or a schedule.
      preconditioner: The transformation :math:`P`, such as `optax.scale_by_rms()`.
      decay: The decay :math:`\alpha`.
      feature_map: Of the gradient, see :func:`hope_jax.optim.scale_by_generalized_momentum`.
      output: Of the momentum, see there.
      weight_decay: Strength of the decoupled weight decay, multiplied with the learning rate.
      mask: Which parameters decay: a tree of booleans or a function from parameters to one.
      mu_dtype: Dtype of the memory; that of the parameters, but at least float32, if None.

    Returns:
      The corresponding `GradientTransformationExtraArgs`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from hope_jax.optim import preconditioned_momentum
      >>> solver = preconditioned_momentum(0.1, optax.scale_by_sign())
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, _ = solver.update(params, solver.init(params), params)
      >>> print(updates)
      [-0.1  0.1]
    """
    return delta_momentum(
        learning_rate, decay, 0, feature_map, preconditioner, output, weight_decay, mask, mu_dtype
    )


def deep_momentum(
    learning_rate: ScalarOrSchedule,
    hidden_width: int = 32,
    decay: chex.Numeric = 0.99,
    inner_learning_rate: chex.Numeric = 1.0,
    objective: Objective | None = None,
    activation: Callable[[jax.Array], jax.Array] | None = None,
    feature_map: Callable[[jax.Array], jax.Array] | None = None,
    preconditioner: GradientTransformation | None = None,
    output: Callable[[jax.Array], jax.Array] | None = None,
    seed: int = 0,
    weight_decay: chex.Numeric = 0.0,
    mask: Any | Callable[[Params], Any] | None = None,
) -> GradientTransformationExtraArgs:
    """Deep Momentum Gradient Descent: momentum is a network trained on the gradients (Eq. 50).

    :func:`hope_jax.optim.mlp_memory` says what the network learns. Each matrix has its own, each
    of a stack of matrices too.

    To wrap this function in `optax.inject_hyperparams`, name `hidden_width` in its `static_args`,
    and any callable that you pass.

    Args:
      learning_rate: A global scaling factor, fixed or a schedule.
      hidden_width: Width of the network's hidden layer, and the most directions it returns.
      decay: Decay of the network towards its initial weights.
      inner_learning_rate: Step size of the network's own training.
      objective: What the network is trained for: `l2_regression` (if None), `dot_product` or your
        own.
      activation: The network's activation; `jax.nn.gelu` if None.
      feature_map: Of the gradient, see :func:`hope_jax.optim.scale_by_generalized_momentum`.
      preconditioner: Of the values to be learned, see there.
      output: Of what the network returns, see there.
      seed: Seed of the network's initial weights.
      weight_decay: Strength of the decoupled weight decay, multiplied with the learning rate.
      mask: Which parameters decay: a tree of booleans or a function from parameters to one.

    Returns:
      The corresponding `GradientTransformationExtraArgs`.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from hope_jax.optim import deep_momentum
      >>> def f(x): return jnp.sum(x ** 2)
      >>> solver = deep_momentum(learning_rate=0.3)
      >>> params = jnp.array([1.0, 2.0, 3.0])
      >>> state = solver.init(params)
      >>> for _ in range(50):
      ...     updates, state = solver.update(jax.grad(f)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(f(params) < 1e-2)
      True

    References:
      Behrouz et al., `Nested Learning: The Illusion of Deep Learning Architectures
      <https://arxiv.org/abs/2512.24695>`_, 2025
    """
    memory = mlp_memory(hidden_width, decay, inner_learning_rate, objective, activation)
    transform = scale_by_generalized_momentum(memory, feature_map, preconditioner, output, seed)
    return _descend(transform, learning_rate, weight_decay, mask)
