"""Learning to imitate: a student goes on from prefixes; what comes near the original is reinforced."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hope_jax.sleep.levenshtein import levenshtein

Judge = Callable[[Array, Array, Array, Array], Array]


def reward(
    imitation: Int[Array, "B N"],
    original: Int[Array, "B M"],
    imitation_length: Int[Array, " B"] | int | None = None,
    original_length: Int[Array, " B"] | int | None = None,
    *,
    gam: float,
    z0: float,
    judge: Judge | None = None,
) -> Float[Array, " B"]:
    """How near imitations come to their originals, from 0 to 1.

    `r = gam r_sem + (1 - gam) r_abs`, where r_abs is `1 - d / max(lengths)` at an edit distance d of z0
    at most and 0 beyond it, and r_sem is what a judge says. A prefix that both begin with changes no
    distance, but counts in the lengths: it is the caller's choice whether it is given.

    Args:
      imitation: ids.
      original: ids.
      imitation_length: how many of each row count; None for all.
      original_length: likewise.
      gam: share of the judge's word, in [0, 1].
      z0: largest edit distance that is rewarded; infinity for any.
      judge: `(imitation, original, imitation_length, original_length) -> (B,)`, 1 where both mean the
        same and 0 where not. One that is no JAX function is for calls outside `jax.jit`.

    Returns:
      Rewards, float32.

    Raises:
      ValueError: for a gam outside [0, 1], or a share for a judge that is not there.

    Example:
      >>> said, meant = (jnp.array([list(text)]) for text in (b"bats", b"cats"))
      >>> reward(said, meant, gam=0, z0=1).tolist(), reward(said, meant, gam=0, z0=0).tolist()
      ([0.75], [0.0])
    """
    if not 0 <= gam <= 1:
        raise ValueError(f"gam must lie in [0, 1] (the share of the judge's word), got {gam}")
    if gam and judge is None:
        raise ValueError(
            f"gam={gam} is the share of a judge, and there is none; give judge, or gam=0"
        )
    batch = imitation.shape[:1]
    lengths = [
        jnp.broadcast_to(jnp.asarray(ids.shape[1] if given is None else given), batch)
        for ids, given in ((imitation, imitation_length), (original, original_length))
    ]
    distance = levenshtein(imitation, original, *lengths)
    near = 1 - distance / jnp.maximum(jnp.maximum(*lengths), 1)
    near = jnp.where(distance <= z0, near, 0).astype(jnp.float32)
    if not gam or judge is None:
        return near
    same = jnp.asarray(judge(imitation, original, *lengths), jnp.float32)
    return gam * same + (1 - gam) * near


def policy_gradient_loss(
    log_probability: Float[Array, "P K"], rewards: Float[Array, "P K"]
) -> Float[Array, ""]:
    """A loss whose gradient is, on average, that of the expected reward, downwards.

    `-mean_pk (r_pk - b_pk) log pi(y_pk | x_p)`, where the baseline b_pk is the mean reward of the other
    continuations of the same prefix (leave one out): it depends on nothing that y_pk does, so that it
    takes variance away and adds no bias. The value means nothing; only the gradient does.

    Args:
      log_probability: of each of K continuations of P prefixes, summed over its tokens (its end included,
        if one was drawn), under the very distribution it was drawn from.
      rewards: of each; no gradient passes through them.

    Raises:
      ValueError: for a single continuation of a prefix, which has no others.

    Example:
      >>> rewards = jnp.array([[1.0, 0.0, 0.0]])
      >>> jax.grad(policy_gradient_loss)(jnp.zeros((1, 3)), 3 * rewards).tolist()
      [[-1.0, 0.5, 0.5]]
    """
    continuations = rewards.shape[1]
    if continuations < 2:
        raise ValueError(
            f"the baseline of a continuation is made of others, and each prefix has "
            f"{continuations}; give at least 2"
        )
    others = (rewards.sum(1, keepdims=True) - rewards) / (continuations - 1)
    advantage = jax.lax.stop_gradient(rewards - others)
    return -jnp.mean(advantage * log_probability)
