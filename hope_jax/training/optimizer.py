"""The outer optimiser that a config names, with schedule and clipping around it."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from hope_jax import optim

# How the language models' parameters are matrices: the first pattern that is found counts.
MATRICES = optim.dimension_numbers_by_path(
    [
        (
            r"embedding|norm|bias|convolution|(eta|alpha)_second|theta|(eta|alpha|gamma)/kernel"
            r"|log_step|level_shares|persistent",
            None,
        ),
        (r"local_(keys|values)$", MuonDimensionNumbers(reduction_axis=2, output_axis=3)),
        (r"(first|second)$", MuonDimensionNumbers(reduction_axis=2, output_axis=3)),
        (r"(out|recalled)/kernel$", MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=3)),
        (
            r"(in|k|v|q|query|key|value|recall)/kernel$",
            MuonDimensionNumbers(reduction_axis=1, output_axis=(2, 3)),
        ),
        (r"(up|gate|down)/kernel$", MuonDimensionNumbers(reduction_axis=1, output_axis=2)),
    ]
)


def _muon(learning_rate, **arguments):
    return optax.contrib.muon(learning_rate, muon_weight_dimension_numbers=MATRICES, **arguments)


def _m3(learning_rate, **arguments):
    return optim.m3(learning_rate, weight_dimension_numbers=MATRICES, **arguments)


def _adamuon(learning_rate, **arguments):
    return optim.adamuon(learning_rate, weight_dimension_numbers=MATRICES, **arguments)


def _preconditioned_momentum(learning_rate, **arguments):
    return optim.preconditioned_momentum(learning_rate, optax.scale_by_rms(), **arguments)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "sgd": optax.sgd,
    "ademamix": optax.contrib.ademamix,
    "muon": _muon,
    "adamuon": _adamuon,
    "m3": _m3,
    "delta_momentum": optim.delta_momentum,
    "deep_momentum": optim.deep_momentum,
    "preconditioned_momentum": _preconditioned_momentum,
    "delta_gradient_descent": optim.delta_gradient_descent,
}


def needs_layer_inputs(config: Mapping[str, Any]) -> bool:
    """Whether the update of the optimiser that `config` names takes the layers' inputs."""
    return config["name"] == "delta_gradient_descent"


def make_schedule(config: Mapping[str, Any], steps: int) -> optax.Schedule:
    """Linear warm-up to `learning_rate`, then a cosine to `final_fraction` of it."""
    warmup = config["warmup_steps"]
    if not 0 <= warmup < steps:
        raise ValueError(
            f"optimizer.warmup_steps={warmup} must lie below steps={steps}; shorten the warm-up"
        )
    peak = config["learning_rate"]
    schedule = optax.warmup_cosine_decay_schedule(
        0.0 if warmup else peak, peak, warmup, steps, peak * config["final_fraction"]
    )
    # Optax counts steps from 0, where a warm-up from nothing would waste the first.
    return (lambda count: schedule(count + 1)) if warmup else schedule


def make_optimizer(config: Mapping[str, Any], steps: int) -> optax.GradientTransformationExtraArgs:
    """Makes the outer optimiser.

    Args:
      config: `name`, `learning_rate`, `warmup_steps`, `final_fraction`, `clip_norm` (0 for none),
        `weight_decay` (of matrices only), `arguments`, further keyword arguments, and `periods`:
        parameters whose path holds a name change every so many steps by the mean gradient of those,
        such as `{"level_1": 8}` (Eq. 71); all others at every step.
      steps: length of the schedule.

    Returns:
      An Optax transformation.

    Raises:
      ValueError: for a name or argument that is not known, with the nearest ones.
    """
    name, arguments = config["name"], dict(config["arguments"])
    if name not in OPTIMIZERS:
        near = difflib.get_close_matches(name, OPTIMIZERS) or sorted(OPTIMIZERS)
        raise ValueError(f"optimizer.name={name!r} is not known; nearest: {', '.join(near)}")
    make = OPTIMIZERS[name]
    target = {"m3": optim.m3, "muon": optax.contrib.muon, "adamuon": optim.adamuon}.get(name, make)
    if name == "preconditioned_momentum":
        target = optim.preconditioned_momentum
    known = inspect.signature(target).parameters
    if config["weight_decay"]:
        if "weight_decay" not in known:
            raise ValueError(
                f"optimizer.weight_decay={config['weight_decay']}, but {name!r} has no weight decay; "
                f"set it to 0"
            )
        arguments["weight_decay"] = config["weight_decay"]
        # Muon and its kin give their own mask to the matrices alone.
        if "mask" in known:
            arguments["mask"] = decayed
    for argument in arguments:
        if argument not in known:
            near = difflib.get_close_matches(argument, known) or sorted(known)
            raise ValueError(
                f"optimizer.arguments.{argument} is no argument of {name!r}; nearest: {', '.join(near)}"
            )
    optimizer = make(make_schedule(config, steps), **arguments)
    if config["periods"]:
        periods = dict(config["periods"])
        optimizer = optim.multi_timescale(
            optimizer,
            {**periods, "every step": 1},
            lambda params: _labels(params, periods),
            average=True,
        )
    if config["clip_norm"]:
        optimizer = optax.chain(optax.clip_by_global_norm(config["clip_norm"]), optimizer)
    return optax.with_extra_args_support(optimizer)


def _labels(params: Any, names: Mapping[str, int]) -> Any:
    """The name that each parameter's path holds, so that each group keeps its own time."""
    found = set()

    def label(path, leaf):
        parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        held = [name for name in names if name in parts]
        found.update(held)
        return held[0] if held else "every step"

    labels = jax.tree_util.tree_map_with_path(label, params)
    if found != set(names):
        raise ValueError(
            f"optimizer.periods names {', '.join(sorted(set(names) - found))}, which no parameter's "
            f"path holds; the levels of a chain are level_0, level_1, ..."
        )
    return labels


def decayed(params: Any) -> Any:
    """Which parameters decay: maps, but no embeddings, norms, biases, convolutions, steps, tokens."""

    def rule(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf.ndim > 1 and not any(
            part in name
            for part in (
                "embedding",
                "norm",
                "bias",
                "convolution",
                "log_step",
                "level_shares",
                "persistent",
            )
        )

    return jax.tree_util.tree_map_with_path(rule, params)
