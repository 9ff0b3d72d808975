"""A sequence layer of one's own: a Flax module in a file of its own, which a config names.

It is called as the package's layers are, `layer(x, state, reset) -> (y, state)`: x and y have shape
(B, T, D), T may be 0; the state, None at first, is a pytree of arrays whose first axis is that of the
sequences; reset, None or (B, T), is True where a token begins a new document. Of its fields, those named
`width`, `num_heads`, `dtype` and `param_dtype` are filled in by the model; those of a plain type are
settings. If it has an attribute `matrices`, it says which parameters M3 takes for matrices.
"""

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, Literal, Union

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from hope_jax.named import calling, find
from hope_jax.settings import SettingError, complete, unknown_key

_SIZES = ("width", "num_heads", "dtype", "param_dtype")
_BATCH, _TOKENS = 5, 3  # of the call by which a layer is seen to be one


def is_own(name: str) -> bool:
    """Whether a sequence layer is one's own: its name is dotted."""
    return "." in name


def own_leaf(path: str) -> tuple[str, str] | None:
    """The own layer and the parameter in it that a path among a model's parameters leads to.

    Example:
      >>> own_leaf("blocks/own_1/my_file.MyLayer/out/kernel")
      ('my_file.MyLayer', 'out/kernel')
      >>> own_leaf("blocks/attention/out/kernel")
    """
    found = re.match(r"blocks/(?:own_\d+/)?([^/]+\.[^/]+)/(.+)", path)
    return None if found is None else (found[1], found[2])


def own_settings(names: Collection[str], given: Mapping[str, Any]) -> FrozenDict:
    """The settings of a model's own layers, each checked, with the defaults of those left out.

    Args:
      names: of the layers.
      given: settings; each goes to all layers that have a field of its name.

    Raises:
      SettingError: for what is no setting of a layer or does not fit it, and where layers differ in
        the default of one that is not given.
    """
    known = {name: _settings(own_class(name)) for name in names}
    for key in given:
        if not any(key in fields for fields in known.values()):
            if not any(known.values()):
                raise SettingError(f"{key} is no setting: no sequence layer of your own has one")
            raise unknown_key(key, sorted({key for fields in known.values() for key in fields}))
    whole: dict[str, Any] = {}
    for name in names:
        layer, own = own_class(name), settings_of(name, given)
        others = {field.name for field in dataclasses.fields(layer)} - set(known[name])
        for key, value in complete(layer, own, others).items():
            if whole.setdefault(key, value) != value:
                raise SettingError(f"{key} has several defaults, in {' and '.join(names)}; give it")
    return FrozenDict(whole)


def own_layer(name: str, settings: Mapping[str, Any], **sizes: Any) -> nn.Module:
    """The layer, of that name among the parameters too.

    Args:
      name: dotted.
      settings: of all own layers.
      sizes: `width`, `num_heads`, `dtype` and `param_dtype` of the model.
    """
    layer = own_class(name)
    known = {field.name for field in dataclasses.fields(layer)}
    filled = {key: value for key, value in sizes.items() if key in known}
    with calling(name):
        return layer(**settings_of(name, settings), **filled, name=name)


def settings_of(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that go to the layer of a name; none to one of the package's."""
    known = _settings(own_class(name)) if is_own(name) else ()
    return {key: settings[key] for key in known if key in settings}


def own_class(name: str) -> type[nn.Module]:
    """The layer's class.

    Raises:
      ValueError: if the name is none of a Flax module.
    """
    layer = find(name)
    if not isinstance(layer, type) or not issubclass(layer, nn.Module):
        raise ValueError(f"{name} is no class of a Flax module, flax.linen.Module")
    return layer


def lay_out(state: Any) -> Any:
    """A state that lies on the mesh with its sequences."""
    place = lambda leaf: nn.with_logical_constraint(leaf, ("batch", *(None,) * (leaf.ndim - 1)))
    return jax.tree.map(place, state)


@functools.lru_cache
def check_own_layer(name: str, settings: FrozenDict, sizes: FrozenDict) -> None:
    """Sees, without running anything, that a layer can be one of a model's.

    Args:
      name: dotted.
      settings: of all own layers.
      sizes: as `own_layer` takes them.

    Raises:
      ValueError: in one line, if it fails or does not keep to what it is to take and give.
    """
    layer, dtype = own_layer(name, settings, **sizes).clone(parent=None), jnp.dtype(sizes["dtype"])
    key = jax.eval_shape(jax.random.key, 0)
    reset = jax.ShapeDtypeStruct((_BATCH, _TOKENS), bool)

    def x(tokens):
        return jax.ShapeDtypeStruct((_BATCH, tokens, sizes["width"]), dtype)

    def call(tokens, state, reset=None):
        with calling(name):
            return jax.eval_shape(
                lambda variables, x, state, reset: layer.apply(variables, x, state, reset),
                variables,
                x(tokens),
                state,
                reset,
            )

    with calling(name):
        variables = jax.eval_shape(layer.init, key, x(_TOKENS), None, None)
    if set(variables) - {"params"}:
        raise ValueError(
            f"{name} has variables of {', '.join(variables)}; a sequence layer has params alone: what "
            f"it carries from one call to the next is its state"
        )
    given = call(_TOKENS, None)
    if not isinstance(given, tuple) or len(given) != 2:
        raise ValueError(f"{name} gives {type(given).__name__}; it must give a pair, (y, state)")
    y, state = given
    wanted = x(_TOKENS)
    if (getattr(y, "shape", None), getattr(y, "dtype", None)) != (wanted.shape, dtype):
        raise ValueError(
            f"{name} gives y of {_said(y)} for x of {_said(wanted)}; both must be alike (a field dtype "
            f"is filled in by the model)"
        )
    for leaf in jax.tree.leaves(state):
        if leaf.shape[:1] != (_BATCH,):
            raise ValueError(
                f"{name} has {_said(leaf)} in its state after {_BATCH} sequences; the first axis of "
                f"each of its arrays must be that of the sequences"
            )
    calls = {
        "0 tokens": call(0, None),
        "1 token more": call(1, state),
        "resets": call(_TOKENS, state, reset),
    }
    for what, (_, other) in calls.items():
        if not _are_alike(other, state):
            raise ValueError(
                f"{name} has another state after {what} than after {_TOKENS} tokens: {_said(other)} "
                f"and {_said(state)}; its arrays must keep number, shape and dtype"
            )


def _settings(layer: type[nn.Module]) -> tuple[str, ...]:
    """Names of the fields that a config can hold."""
    hints = typing.get_type_hints(layer)

    def plain(hint: Any) -> bool:
        origin, options = typing.get_origin(hint), typing.get_args(hint)
        if origin in (Union, types.UnionType):
            return all(map(plain, options))
        if origin is tuple:
            return len(options) == 2 and options[1] is Ellipsis and plain(options[0])
        return origin is Literal or hint in (bool, int, float, str, type(None))

    return tuple(
        field.name
        for field in dataclasses.fields(layer)
        if field.name not in (*_SIZES, "name", "parent")
        and field.init
        and field.default_factory is dataclasses.MISSING
        and plain(hints[field.name])
    )


def _are_alike(one: Any, other: Any) -> bool:
    kinds = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    first, second = ((jax.tree.structure(tree), kinds(tree)) for tree in (one, other))
    return first == second


def _said(tree: Any) -> str:
    said = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else repr(leaf)
    return ", ".join(map(said, jax.tree.leaves(tree))) or "nothing"
