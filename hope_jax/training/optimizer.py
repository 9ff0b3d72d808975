"""The outer optimiser that a config names, with schedule and clipping around it."""

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from hope_jax import optim
from hope_jax.models.own_layer import own_class, own_leaf
from hope_jax.named import calling, find
from hope_jax.optim.matrices import (
    ADAMW,
    default_dimension_numbers,
    is_axes,
    leaf_name,
    matrix_axes,
    resolve_axes,
)
from hope_jax.optim.precision import in_float32
from hope_jax.optim.ranges import check_range
from hope_jax.settings import SettingError, located

# How the package's own parameters are matrices: the first pattern that is found counts.
_MATRICES = optim.dimension_numbers_by_path(
    [
        (
            r"embedding|norm|bias|convolution|(eta|alpha)_second|theta|(eta|alpha|gamma|strength)/kernel"
            r"|log_step|level_shares|persistent",
            None,
        ),
        (r"expert_router$", None),
        (r"decoder_\d/kernel$", MuonDimensionNumbers(reduction_axis=0, output_axis=1)),
        (r"expert_(down|up)$", MuonDimensionNumbers(reduction_axis=3, output_axis=4)),
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


def matrices(params: Any) -> Any:
    """How a language model's parameters are matrices.

    A sequence layer of one's own says it by an attribute `matrices`, pairs of a pattern and dimension
    numbers, as `dimension_numbers_by_path` takes them, of arrays as the layer makes them: the axis of
    stacked blocks is not counted. Without it `default_dimension_numbers` holds.

    Args:
      params: of a model, or their shapes.

    Returns:
      A tree of `MuonDimensionNumbers` and None, which `m3` takes as `weight_dimension_numbers`.

    Raises:
      ValueError: for a parameter that no rule covers.
    """

    def rule(path, leaf):
        name = leaf_name(path)
        own = own_leaf(name)
        return _MATRICES({name: leaf})[name] if own is None else _own_rule(*own, leaf)

    return jax.tree_util.tree_map_with_path(rule, params)


def _own_rule(layer: str, name: str, leaf: Any) -> MuonDimensionNumbers | None:
    rules = getattr(own_class(layer), "matrices", None)
    make = default_dimension_numbers if rules is None else optim.dimension_numbers_by_path(rules)
    one: Any = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    try:
        numbers = make({name: one})[name]
        if numbers is None:
            return None
        axes = matrix_axes(jax.tree_util.tree_flatten_with_path({name: one})[0][0][0], one, numbers)
    except ValueError as error:
        raise ValueError(
            f"M3 does not know which axes of {layer}'s {name}, shape {one.shape}, are those of "
            f"matrices: give the class an attribute matrices, such as matrices = (({name!r}, "
            f"MuonDimensionNumbers(reduction_axis=0, output_axis=1)), ('', None))"
        ) from error
    behind = lambda axes: tuple(axis + 1 for axis in axes)
    return MuonDimensionNumbers(behind(axes.reduction), behind(axes.output))


def _in_float32(make: Callable[..., optax.GradientTransformation]) -> Callable[..., Any]:
    """An optimiser of Optax with its sums in float32, which ours keep so by themselves."""

    @functools.wraps(make)
    def wrapped(*args, **arguments):
        return in_float32(make(*args, **arguments))

    return wrapped


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": _in_float32(optax.adam),
    "adamw": _in_float32(optax.adamw),
    "sgd": _in_float32(optax.sgd),
    "ademamix": _in_float32(optax.contrib.ademamix),
    "muon": functools.partial(
        _in_float32(optax.contrib.muon), muon_weight_dimension_numbers=matrices
    ),
    "adamuon": functools.partial(optim.adamuon, weight_dimension_numbers=matrices),
    "m3": functools.partial(optim.m3, weight_dimension_numbers=matrices),
    "delta_momentum": optim.delta_momentum,
    "deep_momentum": optim.deep_momentum,
    "preconditioned_momentum": functools.partial(
        optim.preconditioned_momentum, preconditioner=optax.scale_by_rms()
    ),
    "delta_gradient_descent": optim.delta_gradient_descent,
}
# What is set elsewhere in a config, or holds functions and trees, which a config does not.
_NOT_ARGUMENTS = {
    "learning_rate": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "mask": None,
    "weight_decay_mask": None,
    "weight_dimension_numbers": None,
    "muon_weight_dimension_numbers": None,
    "preconditioner": None,
}


def optimizer_named(name: str) -> Callable[..., optax.GradientTransformation]:
    """The function that makes an optimiser: one of the package's, or one's own by its dotted name.

    One's own is called as `f(learning_rate, **arguments)`, where the rate is an Optax schedule. It sees
    gradients and parameters of at least float32; if it takes `weight_dimension_numbers`, it is given
    `matrices`.

    Raises:
      SettingError: if there is none, with the nearest names.
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if "." not in name:
        near = difflib.get_close_matches(name, OPTIMIZERS) or sorted(OPTIMIZERS)
        raise SettingError(f"name={name!r} is not known; nearest: {', '.join(near)}")
    try:
        make = find(name)
    except ValueError as error:
        raise SettingError(f"name={name!r}: {error}") from error
    if not callable(make):
        raise SettingError(f"name={name!r} is {type(make).__name__}, not a function")

    @functools.wraps(make)
    def own(*args, **arguments):
        with calling(name):
            made = make(*args, **arguments)
        if not isinstance(made, optax.GradientTransformation):
            raise ValueError(
                f"optimizer.name={name!r} gives {type(made).__name__}, not an "
                f"optax.GradientTransformation"
            )
        return in_float32(made)

    taken = [
        key for key in inspect.signature(make).parameters if key.endswith("_dimension_numbers")
    ]
    return functools.partial(own, **dict.fromkeys(taken, matrices))


def split_leaves(name: str, params: Any) -> dict[str, list[int]]:
    """How an optimiser treats a model's parameters: the sizes of its arrays under each rule.

    Args:
      name: of the optimiser.
      params: the parameters, or their shapes.
    """
    arguments = getattr(optimizer_named(name), "keywords", {})
    takes = {"weight_dimension_numbers", "muon_weight_dimension_numbers"}
    rules = jax.tree.map(lambda _: None, params)
    if takes & arguments.keys():
        rules = resolve_axes(matrices, params)
    found: dict[str, list[int]] = {}
    for leaf, rule in zip(
        jax.tree.leaves(params),
        jax.tree.leaves(rules, is_leaf=lambda x: x is None or is_axes(x)),
        strict=True,
    ):
        how = {None: f"under {name}", ADAMW: "under AdamW"}.get(rule, f"as matrices under {name}")
        found.setdefault(how, []).append(math.prod(leaf.shape))
    return dict(sorted(found.items(), key=lambda item: item[0] == "under AdamW"))


def needs_layer_inputs(config: Mapping[str, Any]) -> bool:
    """Whether the update of the optimiser that `config` names takes the layers' inputs."""
    return config["name"] == "delta_gradient_descent"


def _check(config: Mapping[str, Any], key: str, low: float, *high: float, **how: Any) -> None:
    value = config[key]
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"optimizer.{key} must be a number, got {value!r}")
    check_range(f"optimizer.{key}", value, low, *high, **how)


def make_schedule(config: Mapping[str, Any], steps: int) -> optax.Schedule:
    """Linear warm-up to `learning_rate`, then a cosine to `final_fraction` of it."""
    _check(config, "warmup_steps", 0, whole=True)
    _check(config, "learning_rate", 0, ends="()")
    _check(config, "final_fraction", 0, 1, ends="[]")
    warmup, peak = config["warmup_steps"], config["learning_rate"]
    if warmup >= steps:
        raise ValueError(
            f"optimizer.warmup_steps={warmup} must lie below steps={steps}; shorten the warm-up or "
            "train for more steps"
        )
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
      ValueError: for a name or argument that is not known, with the nearest ones, and for a number
        out of its range.
    """
    _check(config, "clip_norm", 0)
    _check(config, "weight_decay", 0)
    name, arguments = config["name"], dict(config["arguments"])
    with located("optimizer"):
        make = optimizer_named(name)
    known = inspect.signature(make).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    allowed = [argument for argument in known if argument not in _NOT_ARGUMENTS]
    for argument in arguments:
        if argument in allowed:
            continue
        if argument in _NOT_ARGUMENTS and (argument in known or takes_any):
            elsewhere = _NOT_ARGUMENTS[argument]
            raise ValueError(
                f"optimizer.arguments.{argument} cannot be set there; "
                + (f"set {elsewhere}" if elsewhere else f"{name!r} has its own here")
            )
        if takes_any:
            continue
        near = difflib.get_close_matches(argument, allowed) or sorted(allowed)
        raise ValueError(
            f"optimizer.arguments.{argument} is no argument of {name!r}; nearest: {', '.join(near)}"
        )
    if "weight_decay" not in known and config["weight_decay"]:
        raise ValueError(
            f"optimizer.weight_decay={config['weight_decay']}, but {name!r} has no weight decay; "
            f"set it to 0"
        )
    if "weight_decay" in known:
        arguments["weight_decay"] = config["weight_decay"]  # also 0, which is not Optax's default
        # Muon gives its own mask to the matrices alone.
        if "mask" in known:
            arguments["mask"] = decayed
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
        # In float32 the squares of float16 gradients exist and those of bfloat16 ones add up.
        clip = in_float32(optax.clip_by_global_norm(config["clip_norm"]))
        optimizer = optax.chain(clip, optimizer)
    return optax.with_extra_args_support(optimizer)


def _labels(params: Any, names: Mapping[str, int]) -> Any:
    """The name that each parameter's path holds, so that each group keeps its own time."""
    found = set()

    def label(path, leaf):
        parts = leaf_name(path).split("/")
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
    """Which parameters decay: maps, but no embeddings, norms, biases, convolutions, steps, tokens.

    Of a sequence layer of one's own, those that are matrices.
    """

    def rule(path, leaf):
        name = leaf_name(path)
        own = own_leaf(name)
        if own is not None:
            try:
                return _own_rule(*own, leaf) is not None
            except ValueError:  # of three axes or more, and only M3 needs to know which they are
                return True
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
