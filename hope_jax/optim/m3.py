"""M3, the multi-scale momentum optimiser with orthogonalised updates (Algorithm 1), and AdaMuon."""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformationExtraArgs, Params, ScalarOrSchedule, Updates

from hope_jax.optim.matrices import (
    ADAMW,
    MatrixAxes,
    WeightDimensionNumbers,
    is_axes,
    leaf_name,
    resolve_axes,
)
from hope_jax.optim.newton_schulz import QUINTIC, Coefficients, orthogonalize, steps_of
from hope_jax.optim.precision import in_float32, real_dtype, squares, sum_dtype, unit, widen
from hope_jax.optim.ranges import check_range


class ScaleByM3State(NamedTuple):
    """State of the M3 algorithm.

    Attributes:
      count: Number of updates so far, int32 scalar.
      m1: Fast momentum, one array a weight, in `mu_dtype`, by default at least float32.
      m2: Slow momentum, always at least float32, as it is a sum of many small parts; it already
        holds the gradients of the unfinished slow step. () when alpha is 0.
      v: Second moment, real, at least float32. () when `second_moment` is "none".
      o2: Orthogonalised slow momentum that is in use, in `slow_dtype`. () when alpha is 0.
    """

    count: chex.Array
    m1: Updates
    m2: Updates
    v: Updates
    o2: Updates


def _check_choice(name: str, given: str, expected: tuple[str, ...]) -> None:
    if given not in expected:
        raise ValueError(f"{name} must be one of {expected}, got {given!r}.")


def _zeros(params: Params, dtype_of: Callable[[jax.Array], Any]) -> Updates:
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype_of(p)), params)


def _match_rms(update: jax.Array, axes: MatrixAxes, rms: chex.Numeric) -> jax.Array:
    """Rescales each matrix of an array so that the root of its mean square is `rms`."""
    matrix = axes.reduction + axes.output
    entries = math.prod(update.shape[axis] for axis in matrix)
    return unit(update, matrix) * (rms * math.sqrt(entries))


def _divide(
    direction: jax.Array, v: jax.Array, axes: MatrixAxes, count: chex.Array, eps: chex.Numeric
) -> jax.Array:
    """Divides an orthogonalised direction by the root of the gradients' second moment.

    Such a direction does not shrink where the gradient is small. Divided by the root of one square
    it is heavy-tailed (200 times its root mean square in a matrix of 256 x 256), by that of ten it
    is not: the second moment begins as its matrix's mean, whose share is below rounding after 80
    updates. An entry that never had a gradient, such as one under a mask, stays where it is.
    """
    mean = jnp.mean(v, axis=axes.reduction + axes.output, keepdims=True)
    blended = v + 0.8 ** count.astype(v.dtype) * (mean - v)
    return jnp.where((v == 0) & (mean > 0), 0, direction / (jnp.sqrt(blended) + eps))


def _refuse_lossy(path: tuple, leaf: jax.Array, mu_dtype: Any) -> None:
    if mu_dtype is not None and jnp.iscomplexobj(leaf):
        raise ValueError(
            f"{leaf_name(path)}: mu_dtype={mu_dtype} would drop the imaginary parts of complex "
            "weights; leave it out."
        )


def scale_by_m3(
    b1: chex.Numeric = 0.95,
    b2: chex.Numeric = 0.95,
    b3: chex.Numeric = 0.75,
    alpha: chex.Numeric = 0.2,
    slow_every: int = 4,
    ns_steps: int = 5,
    ns_coeffs: Coefficients = QUINTIC,
    eps: chex.Numeric = 1e-8,
    rms: chex.Numeric = 0.2,
    mu_dtype: Any | None = None,
    slow_dtype: Any = "bfloat16",
    *,
    accumulate: Literal["ema", "sum"] = "ema",
    scale: Literal["rms", "literal"] = "rms",
    second_moment: Literal["gradient", "update", "none"] = "gradient",
    nesterov: bool = True,
    precision: jax.lax.PrecisionLike = None,
    weight_dimension_numbers: WeightDimensionNumbers | None = None,
) -> GradientTransformationExtraArgs:
    """Rescales the updates of weight matrices by the M3 algorithm.

    See :func:`hope_jax.optim.m3` for the algorithm. Every leaf has to be a weight matrix or a stack
    of them.

    Args:
      b1: Decay rate of the fast momentum; with `accumulate="sum"` the weight of a new gradient.
      b2: The same for the second moment.
      b3: The same for the slow momentum, per slow step.
      alpha: Weight of the slow momentum's direction. With a Python 0 the slow momentum is left out
        of the state.
      slow_every: Number of updates in a slow step.
      ns_steps: Newton-Schulz steps; with 0 the momenta are used as they are.
      ns_coeffs: Newton-Schulz coefficients, see :func:`hope_jax.optim.newton_schulz`.
      eps: Added to the root of the second moment.
      rms: Root mean square of each matrix's update under `scale="rms"`.
      mu_dtype: Dtype of the fast momentum and of the Newton-Schulz iteration; if None the first is
        at least float32 and the second is the gradients' (for float16 float32).
      slow_dtype: Dtype in which the orthogonalised slow momentum is kept.
      accumulate: "ema" averages exponentially and corrects the bias; "sum" is the printed form,
        sums that never decay.
      scale: "rms" gives every matrix's update the root mean square `rms`; "literal" leaves it.
      second_moment: Of the "gradient", of the orthogonalised "update" (AdaMuon), or "none".
      nesterov: Whether the gradient counts once more in the fast momentum that is orthogonalised.
      precision: Precision of the Newton-Schulz products.
      weight_dimension_numbers: See :func:`hope_jax.optim.m3`.

    Returns:
      A `GradientTransformationExtraArgs` object.

    Raises:
      ValueError: An unknown choice, a number out of its range, or, at `init`, a leaf that is not a
        matrix.
    """
    _check_choice("accumulate", accumulate, ("ema", "sum"))
    _check_choice("scale", scale, ("rms", "literal"))
    _check_choice("second_moment", second_moment, ("gradient", "update", "none"))
    ema = accumulate == "ema"
    for name, rate in (("b1", b1), ("b2", b2), ("b3", b3)):
        # The printed sums have no decay: there these are weights.
        check_range(name, rate, 0, *((1,) if ema else ()), ends="[)" if ema else "()")
    check_range("alpha", alpha, 0)
    check_range("slow_every", slow_every, 1, whole=True)
    check_range("eps", eps, 0, ends="()")
    check_range("rms", rms, 0, ends="()")
    steps_of(ns_steps, ns_coeffs)
    has_slow = not (isinstance(alpha, (int, float)) and alpha == 0)
    has_v = second_moment != "none"

    def axes_of(tree: Updates) -> Any:
        axes = resolve_axes(weight_dimension_numbers, tree)

        def check(path: tuple, leaf: jax.Array, leaf_axes: MatrixAxes | str) -> None:
            if leaf_axes == ADAMW:
                raise ValueError(
                    f"{leaf_name(path)}: shape {leaf.shape} is not a weight matrix under the rules "
                    "in force. Use m3, which gives such leaves to AdamW, mask it out, or pass "
                    "weight_dimension_numbers."
                )
            _refuse_lossy(path, leaf, mu_dtype)

        jax.tree_util.tree_map_with_path(check, tree, axes)
        return axes

    def init_fn(params: Params) -> ScaleByM3State:
        axes_of(params)
        return ScaleByM3State(
            count=jnp.zeros([], jnp.int32),
            m1=_zeros(params, lambda p: mu_dtype or sum_dtype(p)),
            m2=_zeros(params, sum_dtype) if has_slow else (),
            v=_zeros(params, lambda p: real_dtype(sum_dtype(p))) if has_v else (),
            o2=_zeros(params, cache_dtype) if has_slow else (),
        )

    def cache_dtype(leaf: jax.Array) -> Any:
        return leaf.dtype if jnp.iscomplexobj(leaf) else slow_dtype

    def iteration_dtype(leaf: jax.Array) -> Any:
        dtype = jnp.dtype(mu_dtype or leaf.dtype)
        # A momentum may lie outside of float16's range.
        return jnp.float32 if dtype == jnp.float16 else dtype

    def accumulated(updates: Updates, moment: Updates, decay: Any, gain: Any) -> Updates:
        return jax.tree.map(lambda g, m: decay * m + gain * g, widen(updates), widen(moment))

    def moment(updates: Updates, old: Updates, decay: chex.Numeric) -> Updates:
        keep, gain = (decay, 1 - decay) if ema else (1, decay)
        return accumulated(updates, old, keep, gain)

    def without_bias(tree: Updates, decay: chex.Numeric, count: chex.Array) -> Updates:
        return optax.tree.bias_correction(tree, decay, count) if ema else tree

    def update_fn(
        updates: Updates, state: ScaleByM3State, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, ScaleByM3State]:
        del params, extra_args
        axes = axes_of(updates)
        count = optax.safe_increment(state.count)

        def orthogonal(tree: Updates) -> Updates:
            low = jax.tree.map(lambda m, g: m.astype(iteration_dtype(g)), tree, updates)
            return orthogonalize(low, axes, ns_steps, ns_coeffs, precision=precision)

        m1 = moment(updates, state.m1, b1)
        fast = without_bias(m1, b1, count)
        if nesterov:
            # The biases are corrected as in Optax's Adam and Muon.
            later = optax.safe_increment(count)
            fast = moment(without_bias(widen(updates), b1, count), without_bias(m1, b1, later), b1)
        direction = widen(orthogonal(fast))

        m2, o2 = state.m2, state.o2
        if has_slow:
            # The slow momentum is its own buffer for the gradients of a slow step: it decays when
            # the step begins and then takes each gradient as it comes.
            begins = state.count % slow_every == 0
            keep = jnp.where(begins, b3, 1) if ema else 1
            gain = (1 - b3) / slow_every if ema else b3
            m2 = accumulated(updates, m2, keep, gain)
            direction = jax.tree.map(lambda fast, slow: fast + alpha * slow, direction, o2)
            o2 = jax.lax.cond(
                count % slow_every == 0,
                lambda m2, old: optax.tree.cast_like(
                    orthogonal(without_bias(m2, b3, count // slow_every)), old
                ),
                lambda m2, old: old,
                m2,
                o2,
            )

        v = state.v
        if has_v:
            of = updates if second_moment == "gradient" else direction
            v = moment(jax.tree.map(squares, of), v, b2)
            unbiased = without_bias(v, b2, count)
            if scale == "rms" and second_moment == "gradient":
                direction = jax.tree.map(
                    lambda o, s, leaf_axes: _divide(o, s, leaf_axes, count, eps),
                    direction,
                    unbiased,
                    axes,
                )
            else:
                direction = jax.tree.map(lambda o, s: o / (jnp.sqrt(s) + eps), direction, unbiased)
        if scale == "rms":
            direction = jax.tree.map(
                lambda o, leaf_axes: _match_rms(o, leaf_axes, rms), direction, axes
            )
        new_state = ScaleByM3State(
            count=count,
            m1=optax.tree.cast_like(m1, state.m1),
            m2=optax.tree.cast_like(m2, state.m2),
            v=optax.tree.cast_like(v, state.v),
            o2=o2,
        )
        return optax.tree.cast_like(direction, updates), new_state

    return GradientTransformationExtraArgs(init_fn, update_fn)


def m3(
    learning_rate: ScalarOrSchedule,
    b1: chex.Numeric = 0.95,
    b2: chex.Numeric = 0.95,
    b3: chex.Numeric = 0.75,
    alpha: chex.Numeric = 0.2,
    slow_every: int = 4,
    ns_steps: int = 5,
    ns_coeffs: Coefficients = QUINTIC,
    eps: chex.Numeric = 1e-8,
    rms: chex.Numeric = 0.2,
    weight_decay: chex.Numeric = 0.0,
    mask: Any | Callable[[Params], Any] | None = None,
    mu_dtype: Any | None = None,
    slow_dtype: Any = "bfloat16",
    *,
    accumulate: Literal["ema", "sum"] = "ema",
    scale: Literal["rms", "literal"] = "rms",
    second_moment: Literal["gradient", "update", "none"] = "gradient",
    nesterov: bool = True,
    precision: jax.lax.PrecisionLike = None,
    weight_dimension_numbers: WeightDimensionNumbers | None = None,
    adam_b1: chex.Numeric = 0.9,
    adam_b2: chex.Numeric = 0.999,
    adam_eps_root: chex.Numeric = 0.0,
    adam_weight_decay: chex.Numeric = 0.0,
    adam_learning_rate: ScalarOrSchedule | None = None,
) -> GradientTransformationExtraArgs:
    r"""M3: multi-scale momentum Muon.

    M3 remembers gradients at two speeds, orthogonalises both memories and adds them. As printed
    (Algorithm 1; `accumulate="sum"`, `scale="literal"`, `nesterov=False`), with :math:`f` for
    `slow_every`:

    .. math::
      \begin{align*}
        M^{(1)}_t &= M^{(1)}_{t-1} + \beta_1 g_t, \qquad V_t = V_{t-1} + \beta_2 g_t^2 \\
        M^{(2)}_k &= M^{(2)}_{k-1} + \beta_3 \textstyle\sum_{i=(k-1)f+1}^{kf} g_i
          \quad \text{every } f \text{ steps} \\
        W_t &= W_{t-1} - \eta \, \frac{NS(M^{(1)}_t) + \alpha \, NS(M^{(2)}_k)}
          {\sqrt{V_t} + \varepsilon}
      \end{align*}

    where :math:`k = \lfloor (t-1) / f \rfloor`, so that the slow direction is that of finished slow
    steps and is zero in the first. The default instead averages exponentially, with bias
    correction, and rescales each matrix's update to a fixed root mean square: the printed sums
    never forget, and the printed step grows as gradients shrink, since NS is scale-free and V not.
    It needs no warm-up for the sake of V: in the first steps V is blended with its matrix's mean,
    with weight :math:`0.8^t`, so that no entry of an update is a large multiple of the others.

    Weight matrices are treated so; all other parameters go to AdamW.
    :func:`hope_jax.optim.describe_weight_rules` prints which is which.

    The slow direction is computed only when it changes, every `slow_every` updates. To wrap this
    function in `optax.inject_hyperparams`, name `ns_steps` in its `static_args`, and any callable
    `mask` or `weight_dimension_numbers`.

    Args:
      learning_rate: A global scaling factor, fixed or a schedule.
      b1: Decay rate of the fast momentum; with `accumulate="sum"` the weight of a new gradient.
      b2: The same for the second moment.
      b3: The same for the slow momentum, per slow step.
      alpha: Weight of the slow momentum's direction; with 0 and `second_moment="none"` M3 is Muon.
      slow_every: Number of updates in a slow step.
      ns_steps: Newton-Schulz steps; with 0 the momenta are used as they are.
      ns_coeffs: Newton-Schulz coefficients, see :func:`hope_jax.optim.newton_schulz`.
      eps: Added to the root of the second moment, here and in AdamW.
      rms: Root mean square of each matrix's update under `scale="rms"`; 0.2 is about AdamW's, so
        that learning rates carry over from it.
      weight_decay: Strength of the decoupled weight decay of matrices, multiplied with the learning
        rate.
      mask: Which matrices decay: a tree of booleans or a function from parameters to one.
      mu_dtype: Dtype of the fast momentum, of AdamW's first moment and of the Newton-Schulz
        iteration; if None the first two are at least float32 and the last is the gradients' (for
        float16 float32).
      slow_dtype: Dtype in which the orthogonalised slow momentum is kept.
      accumulate: "ema" or "sum", see above.
      scale: "rms" or "literal", see above.
      second_moment: Of the "gradient", of the orthogonalised "update" (AdaMuon), or "none".
      nesterov: Whether the gradient counts once more in the fast momentum that is orthogonalised, and
        in AdamW's first moment, as in Optax's Muon.
      precision: Precision of the Newton-Schulz products.
      weight_dimension_numbers: Which leaves are weight matrices and along which axes: an
        `optax.contrib.MuonDimensionNumbers` (all other axes are batch: stacked layers, heads), a
        tree or prefix tree of them with None for AdamW, or a function from parameters to one. If
        None, see :func:`hope_jax.optim.default_dimension_numbers`.
      adam_b1: AdamW's decay rate of the first moment.
      adam_b2: AdamW's decay rate of the second moment.
      adam_eps_root: AdamW's term inside the root.
      adam_weight_decay: AdamW's weight decay.
      adam_learning_rate: AdamW's learning rate; `learning_rate` if None.

    Returns:
      The corresponding `GradientTransformationExtraArgs`.

    Raises:
      ValueError: A choice that does not exist, a number out of its range, or, at `init`, a leaf
        that no rule covers.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from hope_jax.optim import m3
      >>> def f(params):
      ...     return jnp.sum((params["w"] @ jnp.array([1.0, 2.0]) + params["b"] - 3.0) ** 2)
      >>> params = {"w": jnp.array([[0.5, -0.5], [1.0, 0.0]]), "b": jnp.zeros(2)}
      >>> solver = m3(learning_rate=0.1)
      >>> state = solver.init(params)
      >>> print(f"{f(params):.2f}")
      16.25
      >>> for _ in range(20):
      ...     updates, state = solver.update(jax.grad(f)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(f(params) < 1.0)
      True

    References:
      Behrouz et al., `Nested Learning: The Illusion of Deep Learning Architectures
      <https://arxiv.org/abs/2512.24695>`_, 2025
    """

    def labels(params: Params) -> Any:
        jax.tree_util.tree_map_with_path(lambda p, x: _refuse_lossy(p, x, mu_dtype), params)
        axes = resolve_axes(weight_dimension_numbers, params)
        return jax.tree.map(lambda e: ADAMW if e == ADAMW else "m3", axes, is_leaf=is_axes)

    check_range("weight_decay", weight_decay, 0)
    check_range("adam_b1", adam_b1, 0, 1)
    check_range("adam_b2", adam_b2, 0, 1)
    check_range("adam_weight_decay", adam_weight_decay, 0)
    return optax.partition(
        {
            "m3": optax.chain(
                scale_by_m3(
                    b1=b1,
                    b2=b2,
                    b3=b3,
                    alpha=alpha,
                    slow_every=slow_every,
                    ns_steps=ns_steps,
                    ns_coeffs=ns_coeffs,
                    eps=eps,
                    rms=rms,
                    mu_dtype=mu_dtype,
                    slow_dtype=slow_dtype,
                    accumulate=accumulate,
                    scale=scale,
                    second_moment=second_moment,
                    nesterov=nesterov,
                    precision=precision,
                    weight_dimension_numbers=weight_dimension_numbers,
                ),
                optax.add_decayed_weights(weight_decay, mask),
                optax.scale_by_learning_rate(learning_rate),
            ),
            ADAMW: in_float32(
                optax.adamw(
                    learning_rate if adam_learning_rate is None else adam_learning_rate,
                    b1=adam_b1,
                    b2=adam_b2,
                    eps=eps,
                    eps_root=adam_eps_root,
                    weight_decay=adam_weight_decay,
                    mu_dtype=mu_dtype,
                    nesterov=nesterov,
                )
            ),
        },
        labels,
    )


def adamuon(
    learning_rate: ScalarOrSchedule,
    b1: chex.Numeric = 0.95,
    b2: chex.Numeric = 0.95,
    **options: Any,
) -> GradientTransformationExtraArgs:
    """AdaMuon: Muon whose orthogonalised update is divided by the root of its own second moment.

    It is :func:`hope_jax.optim.m3` without a slow momentum and with the second moment taken of the
    update. (Of the published variants this is the one that orthogonalises the momentum itself, not
    its sign.)

    Args:
      learning_rate: A global scaling factor, fixed or a schedule.
      b1: Decay rate of the momentum.
      b2: Decay rate of the second moment.
      **options: Any other argument of :func:`hope_jax.optim.m3`.

    Returns:
      The corresponding `GradientTransformationExtraArgs`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from hope_jax.optim import adamuon
      >>> solver = adamuon(learning_rate=1.0, weight_decay=0.1)
      >>> params = jnp.eye(2)
      >>> updates, _ = solver.update(params, solver.init(params), params)
      >>> print((-updates).round(2))  # 0.2 * sqrt(2) of the step, 0.1 of the decay
      [[0.38 0.  ]
       [0.   0.38]]

    References:
      Si et al., `AdaMuon: Adaptive Muon Optimizer <https://arxiv.org/abs/2507.11005>`_, 2025
    """
    return m3(learning_rate, b1=b1, b2=b2, **_ADAMUON, **options)


_ADAMUON: dict[str, Any] = {"alpha": 0, "second_moment": "update", "nesterov": False}


def _signature_of_adamuon() -> inspect.Signature:
    own = list(inspect.signature(adamuon).parameters.values())[:-1]
    taken = {*_ADAMUON, *(parameter.name for parameter in own)}
    options = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(m3).parameters.items()
        if name not in taken
    ]
    return inspect.signature(adamuon).replace(parameters=[*own, *options])


# help(), optax.inject_hyperparams and settings by name see the options that m3 has.
adamuon.__signature__ = _signature_of_adamuon()  # type: ignore[attr-defined]
