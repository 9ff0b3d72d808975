"""Dreams: which are worth a trial, which have helped, and training on one or on those.

A dream is whatever a model can be trained on, such as a row of tokens it has sampled. The functions know
of losses and scores alone. A trial is `learn_from` with one dream. What is trained, the caller says by
what is started from: all parameters, an expert, or low-rank changes (`hope_jax.sleep.low_rank`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from hope_jax.models.in_context import at_least_float32

Loss = Callable[[Any, Any], Float[Array, ""]]


def gradient_norms(loss: Loss, chosen: Any, dreams: Any) -> Float[Array, " m"]:
    """The norm of each dream's gradient: how much it would change what is chosen.

    Args:
      loss: `(chosen, dream) -> loss`.
      chosen: parameters by which it is differentiated; one gradient of them is there at a time.
      dreams: m of them along the first axes of arrays.

    Returns:
      Norms, float32 or wider.
    """

    def norm(dream: Any) -> Array:
        gradient = jax.grad(loss)(chosen, dream)
        return optax.tree.norm(jax.tree.map(at_least_float32, gradient))

    return jax.lax.map(norm, dreams)


def choose_dreams(
    key: Array, norms: Float[Array, " m"], best: int, others: int
) -> Int[Array, " best+others"]:
    """Which dreams are tried: those of the largest norms, and random ones of the rest.

    Args:
      key: random key.
      norms: of all dreams. One that is no finite number is taken only where there are too few others.
      best: k, how many of the largest.
      others: b, how many of the rest, each as likely as any other.

    Returns:
      Indices, no two alike, the largest norm first.

    Raises:
      ValueError: if there are fewer dreams.

    Example:
      >>> norms = jnp.array([0.1, 5.0, 0.3, jnp.nan, 2.0])
      >>> choose_dreams(jax.random.key(0), norms, best=2, others=0).tolist()
      [1, 4]
    """
    if min(best, others) < 0 or best + others > norms.shape[0]:
        raise ValueError(
            f"best={best} and others={others} of {norms.shape[0]} dreams cannot be chosen; each must be "
            f"at least 0, and both together at most their number"
        )
    finite = jnp.isfinite(norms)
    order = jnp.argsort(jnp.where(finite, -norms, jnp.inf))
    rest = order[best:]
    drawn = jnp.where(finite[rest], jax.random.uniform(key, rest.shape), 2.0)
    return jnp.concatenate([order[:best], rest[jnp.argsort(drawn)[:others]]])


def rewards(before: Float[Array, "*b"], after: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """1 where a score has risen, else 0; one that is no number has no reward.

    Example:
      >>> rewards(jnp.array(0.5), jnp.array([0.4, 0.5, 0.6, jnp.nan])).tolist()
      [0.0, 0.0, 1.0, 0.0]
    """
    return (after > before).astype(jnp.float32)


def learn_from(
    loss: Loss,
    params: Any,
    dreams: Any,
    reward: Float[Array, " n"],
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    besides: Callable[[Any, Int[Array, ""]], Float[Array, ""]] | None = None,
) -> tuple[Any, Float[Array, " steps"]]:
    """Trains on the dreams that helped: supervised training on rewarded samples (ReST-EM).

    Args:
      loss: `(params, dream) -> loss`, of which the mean weighted by the rewards is descended.
      params: to begin with.
      dreams: n of them along the first axes of arrays.
      reward: of each; 0 leaves a dream out, even one whose loss is no number.
      optimizer: of the parameters.
      steps: to take.
      besides: `(params, step) -> loss`, which is added; None for nothing.

    Returns:
      New parameters, and the dreams' loss before each step. Where no dream helped, the parameters to
      begin with, whatever the optimiser does, and zeros.
    """
    total = jnp.sum(reward)
    weights = reward / jnp.where(total > 0, total, 1)
    # Another in its place: 0 times a loss that is no number would be none either.
    place = jnp.where(reward > 0, jnp.arange(reward.shape[0]), jnp.argmax(reward))
    dreams = jax.tree.map(lambda leaf: leaf[place], dreams)

    def mean(params: Any, number: Array) -> tuple[Array, Array]:
        of_dreams = weights @ jax.vmap(loss, (None, 0))(params, dreams)
        return of_dreams if besides is None else of_dreams + besides(params, number), of_dreams

    def step(carry: tuple[Any, Any], number: Array) -> tuple[tuple[Any, Any], Array]:
        params, state = carry
        (_, value), gradient = jax.value_and_grad(mean, has_aux=True)(params, number)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    begin = params, optimizer.init(params)
    (learnt, _), losses = jax.lax.scan(step, begin, jnp.arange(steps))
    helped = lambda new, old: jnp.where(total > 0, new, old)
    return jax.tree.map(helped, learnt, params), helped(losses, 0)
