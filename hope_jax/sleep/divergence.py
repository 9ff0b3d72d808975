"""How far a student's next-token distributions are from a teacher's, in nats at every position.

With p of the teacher and q of the student, and KL(p || q) = sum_v p_v log(p_v / q_v):

| function | is | teaches the student |
| --- | --- | --- |
| `forward_kl` | KL(p, q) | all that the teacher might say |
| `reverse_kl` | KL(q, p) | to say nothing that the teacher would not |
| `jensen_shannon` | beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q | between them |

These are the divergences of generalised knowledge distillation (Agarwal et al., 2024, arXiv 2306.13649).
Derivatives are written out: those of a softmax and a logarithm taken apart would leave rounding errors
where both distributions agree, which an optimiser such as Adam would take for a direction.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hope_jax.models.in_context import at_least_float32


def forward_kl(
    teacher_logits: Float[Array, "B T V"], student_logits: Float[Array, "B T V"]
) -> Float[Array, "B T"]:
    """KL(teacher || student).

    Args:
      teacher_logits: of any float type; -inf where an id cannot come.
      student_logits: likewise.

    Returns:
      Divergences, float32 or wider. Where both have the same logits, they and their gradients are zero.

    Example:
      >>> certain, even = jnp.array([[[0.0, -jnp.inf]]]), jnp.zeros((1, 1, 2))
      >>> forward_kl(certain, even).round(4).tolist(), forward_kl(even, certain).tolist()
      ([[0.6930999755859375]], [[inf]])
    """
    return _kl(at_least_float32(teacher_logits), at_least_float32(student_logits))


def reverse_kl(
    teacher_logits: Float[Array, "B T V"], student_logits: Float[Array, "B T V"]
) -> Float[Array, "B T"]:
    """KL(student || teacher); see `forward_kl`."""
    return forward_kl(student_logits, teacher_logits)


def jensen_shannon(
    teacher_logits: Float[Array, "B T V"],
    student_logits: Float[Array, "B T V"],
    beta: float = 0.5,
) -> Float[Array, "B T"]:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), of m = beta teacher + (1 - beta) student.

    Over `beta` it tends to `forward_kl` as beta falls to 0, and over `1 - beta` to `reverse_kl` as beta
    rises to 1. It is finite whatever the logits are.

    Args:
      teacher_logits: see `forward_kl`.
      student_logits: see `forward_kl`.
      beta: share of the teacher in m.

    Returns:
      As `forward_kl`.

    Raises:
      ValueError: for a beta outside (0, 1).
    """
    if not 0 < beta < 1:
        raise ValueError(
            f"beta must lie between 0 and 1, got {beta}; at the ends take forward_kl or reverse_kl"
        )
    return _jensen_shannon(beta, at_least_float32(teacher_logits), at_least_float32(student_logits))


def _divergence(log_p: Array, q: Array, less: Array) -> tuple[Array, Array]:
    """KL(p || q) of `less = log p - log q`, and its derivatives by the logits of p, at q held still."""
    p = jnp.exp(log_p)
    less = jnp.where(p > 0, less, 0)  # what cannot come counts for nothing, even at infinity
    # Terms p less - p + q, whose sum is the same, are never negative, and small where both are close.
    close = (p > 0) & (jnp.abs(less) < 1)
    near = jnp.where(close, less, 0)
    terms = jnp.where(close, p * (near + jnp.expm1(-near)), p * less - p + q)
    divergence = jnp.sum(terms, -1)
    return divergence, p * (less - divergence[..., None])


def _dot(x: Array, y: Array) -> Array:
    return jnp.sum(x * y, -1)


@jax.custom_jvp
def _kl(p_logits: Array, q_logits: Array) -> Array:
    log_p, log_q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return _divergence(log_p, jnp.exp(log_q), log_p - log_q)[0]


@_kl.defjvp
def _kl_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    log_p, log_q = (jax.nn.log_softmax(logits) for logits in primals)
    value, by_p = _divergence(log_p, jnp.exp(log_q), log_p - log_q)
    by_q = jnp.exp(log_q) - jnp.exp(log_p)
    return value, _dot(by_p, tangents[0]) + _dot(by_q, tangents[1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _jensen_shannon(beta: float, p_logits: Array, q_logits: Array) -> Array:
    return _jensen_shannon_parts(beta, p_logits, q_logits)[0]


@_jensen_shannon.defjvp
def _jensen_shannon_jvp(beta: float, primals: Any, tangents: Any) -> tuple[Array, Array]:
    value, by_p, by_q = _jensen_shannon_parts(beta, *primals)
    return value, _dot(by_p, tangents[0]) + _dot(by_q, tangents[1])


def _jensen_shannon_parts(
    beta: float, p_logits: Array, q_logits: Array
) -> tuple[Array, Array, Array]:
    log_p, log_q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    above = log_q - log_p
    # log m less that of the larger of p and q, which is exactly 0 where they are equal.
    of_smaller = jnp.where(above > 0, beta, 1 - beta)
    more = jnp.log1p(of_smaller * jnp.expm1(-jnp.abs(above)))
    m = beta * jnp.exp(log_p) + (1 - beta) * jnp.exp(log_q)
    of_p, by_p = _divergence(log_p, m, -more - jnp.maximum(above, 0))
    of_q, by_q = _divergence(log_q, m, -more - jnp.maximum(-above, 0))
    return beta * of_p + (1 - beta) * of_q, beta * by_p, (1 - beta) * by_q
