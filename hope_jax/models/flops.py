"""FLOPs of a function and of a model, counted without running it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from hope_jax.layers.inner_loop import INNER_LOOP
from hope_jax.models.config import LanguageModelConfig
from hope_jax.models.language_model import LanguageModel
from hope_jax.models.parameter_count import parameter_shapes, without_kernels


class Flops(NamedTuple):
    """FLOPs of matrix products.

    Attributes:
      total: all of them.
      inner: of these, those of memories, and of levels as they learn in context.
    """

    total: float
    inner: float


def count_flops(function: Callable[..., Any], *args: Any, platform: str | None = None) -> int:
    """Two for each multiply-add of all matrix products, loops times their trips.

    Elementwise work is left out, as is usual for such counts. A branch counts as its dearest, where
    platforms have their own as that platform's; a loop whose trips are not known beforehand counts once.

    Args:
      function: of arrays.
      args: arrays, or their shapes as `jax.ShapeDtypeStruct`.
      platform: on which it is to run, such as `tpu`; this one's if not given.

    Returns:
      FLOPs of a call.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.ones((3, 4))
      >>> count_flops(lambda x: jax.lax.scan(lambda c, _: (c, x @ x.T), 0, None, length=5), x)
      360
    """
    return int(_count(function, *args, platform=platform).total)


def _count(function: Callable[..., Any], *args: Any, platform: str | None) -> Flops:
    platform = platform or jax.default_backend()
    return Flops(*_of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr, platform, False).tolist())


def training_flops(config: LanguageModelConfig, length: int, platform: str | None = None) -> Flops:
    """FLOPs of a token in training, forward and backward, without the optimiser's.

    Args:
      config: of the model.
      length: T, tokens of a sequence.
      platform: on which it is to run; this one's if not given.
    """
    # The kernel's products in three passes and for sums would be counted as more than one.
    model = LanguageModel(without_kernels(config))
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    params = parameter_shapes(model)

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        losses: Any = model.apply({"params": params}, tokens, tokens, method="token_losses")
        return jnp.sum(losses)

    found = _count(jax.grad(loss), params, tokens, platform=platform)
    return Flops(found.total / length, found.inner / length)


def useful_flops(config: LanguageModelConfig, length: int, platform: str | None = None) -> Flops:
    """`training_flops` with what is computed twice to save memory counted once, as MFU wants it.

    Attention's kernel counts as the products that it is.

    Args:
      config: of the model.
      length: T, tokens of a sequence.
      platform: on which it is to run; this one's if not given.
    """
    plain = dataclasses.replace(config, remat="none", attention_kernel=None)
    return training_flops(plain, length, platform)


def _of_jaxpr(jaxpr: Any, platform: str, inner: bool) -> np.ndarray:
    """FLOPs, all and those of inner loops; `inner` says whether all are."""
    none = np.zeros(2, np.int64)
    return sum((_of_equation(equation, platform, inner) for equation in jaxpr.eqns), none)


def _of_equation(equation: Any, platform: str, inner: bool) -> np.ndarray:
    name, parameters = equation.primitive.name, equation.params
    inner = inner or INNER_LOOP in str(equation.source_info.name_stack)
    if name == "dot_general":
        (summed, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        depth = math.prod(shape[axis] for axis in summed)
        flops = 2 * depth * int(np.prod(equation.outvars[0].aval.shape, dtype=np.int64))
        return np.array([flops, flops * inner], np.int64)
    if name == "cond":
        branches = [branch.jaxpr for branch in parameters["branches"]]
        platforms = parameters.get("branches_platforms")
        if platforms is not None:  # jax.lax.platform_dependent; None stands for all others
            here = [names is not None and platform in names for names in platforms]
            taken = here.index(True) if any(here) else platforms.index(None)
            return _of_jaxpr(branches[taken], platform, inner)
        return max((_of_jaxpr(branch, platform, inner) for branch in branches), key=lambda x: x[0])
    times = parameters["length"] if name == "scan" else 1
    if name == "pallas_call":
        times = math.prod(parameters["grid_mapping"].grid)
    none = np.zeros(2, np.int64)
    return times * sum((_of_jaxpr(one, platform, inner) for one in _inner(parameters)), none)


def _inner(parameters: dict[str, Any]) -> list[Any]:
    """Functions that an equation calls: each is in one of its parameters."""
    found: list[Any] = []
    for value in parameters.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
