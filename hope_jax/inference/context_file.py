"""What a model has read, kept in a file."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from hope_jax.data.whole_file import write_whole
from hope_jax.inference.array_file import named_leaves, packed, unpacked
from hope_jax.inference.sampling import Context, read
from hope_jax.layers.experts import Experts
from hope_jax.models.config import LanguageModelConfig
from hope_jax.models.language_model import LanguageModel


def save_context(path: str | Path, context: Context, model: LanguageModel, params: Any) -> None:
    """Writes a context and the marks of the model that it belongs to, as MessagePack with a checksum.

    The file appears whole or not at all.

    Args:
      path: file to write; its folder is made.
      context: to keep.
      model: that has read it.
      params: of the model.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, context_content(context, model, params))


def context_content(context: Context, model: LanguageModel, params: Any) -> bytes:
    """What `save_context` writes: the same bytes for the same bits."""
    words = {
        "config": json.dumps(_settings(model.config), sort_keys=True),
        "parameters": fingerprint(params),
    }
    return packed("context", words, named_leaves(context))


def load_context(path: str | Path, model: LanguageModel, params: Any) -> Context:
    """Reads what `save_context` wrote.

    A memory means something only to the parameters that wrote it, so a file of another model, or
    of the same model after further training, is refused.

    Args:
      path: file to read.
      model: that is to continue.
      params: of the model.

    Returns:
      The context.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged, no context, or another model's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no state file {path}")
    content = unpacked(path, "context", "state file")
    try:
        theirs, arrays = _completed(json.loads(content["config"])), content["arrays"]
        parameters = content["parameters"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no state file, or a damaged one ({error})") from error

    ours = _settings(model.config)
    if theirs != ours:
        changed = [
            f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
            for name in sorted(theirs | ours)
            if theirs.get(name) != ours.get(name)
        ]
        raise ValueError(f"{path} belongs to another model: {'; '.join(changed)}")
    if parameters != fingerprint(params):
        raise ValueError(
            f"{path} was written with other parameters: another run, or another checkpoint of this "
            f"one; read the text again with these, or restore those"
        )
    return context_of_arrays(path, arrays, model, params)


def context_of_arrays(
    path: Path, arrays: dict[str, Any], model: LanguageModel, params: Any
) -> Context:
    """The context whose `named_leaves` these arrays are.

    Args:
      path: of their file, for the error.
      arrays: by name.
      model: that is to continue.
      params: of the model.

    Raises:
      ValueError: if they are those of another version.
    """
    one_token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    expected = jax.eval_shape(lambda tokens: read(model, params, tokens), one_token)
    expected = _with_experts(expected, arrays)
    names = named_leaves(expected)
    arrays = _with_rings(arrays, names)
    if arrays.keys() != names.keys():
        raise ValueError(f"{path} was written by another version of hope_jax; its arrays differ")
    leaves = [jnp.asarray(arrays[name]) for name in names]
    return jax.tree.unflatten(jax.tree.structure(expected), leaves)


def _with_rings(arrays: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Arrays of a file, also of one from when heads of attention's rings lay within their slots."""
    arrays = dict(arrays)
    for name in names:
        before = re.sub(r"\.ring_(keys|values)$", r".\1", name)
        if before != name and before in arrays:
            arrays[name] = np.swapaxes(arrays.pop(before), -3, -2)
    return arrays


def _with_experts(expected: Context, arrays: dict[str, Any]) -> Context:
    """What the file should hold: experts too, if who has read it has slept."""
    held = {field: arrays.get(f".state.adapting.experts.{field}") for field in Experts._fields}
    if any(array is None for array in held.values()):
        return expected
    state: Any = expected.state
    adapting = state.adapting._replace(experts=Experts(**held))
    return expected._replace(state=state._replace(adapting=adapting))


def _settings(config: LanguageModelConfig) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=dict))


def _completed(settings: dict[str, Any]) -> dict[str, Any]:
    """A model's settings with the defaults of those that are newer than the file."""
    try:
        return _settings(LanguageModelConfig.from_config_dict(settings))
    except ValueError:  # one of another version, or no config
        return settings


def fingerprint(params: Any) -> str:
    """Digest of the start of every array: a training step changes all of them."""
    digest = hashlib.sha256()
    for name, leaf in named_leaves(nn.unbox(params)).items():
        digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode())
        digest.update(_start(leaf).tobytes())
    return digest.hexdigest()


def _start(leaf: Any, count: int = 1024) -> np.ndarray:
    """The first entries of an array, which may be split over devices and is never whole on one."""
    while leaf.ndim > 1 and math.prod(leaf.shape[1:]) >= count:
        leaf = leaf[0]
    rows = -(-count // max(math.prod(leaf.shape[1:]), 1))
    return np.asarray(leaf[:rows] if leaf.ndim else leaf).reshape(-1)[:count]
