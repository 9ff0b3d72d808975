"""Parameters of any model as model.safetensors, to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from hope_jax.models.llama import read_tensors

WEIGHTS = "model.safetensors"


def write_params(folder: str | Path, params: Any) -> None:
    """Writes `model.safetensors`, whose names are the parameters' paths, joined with dots.

    Args:
      folder: that is there.
      params: nested dictionaries of arrays, of any dtype.
    """
    flat = flatten_dict(nn.unbox(params), sep=".")
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}
    save_file(tensors, Path(folder) / WEIGHTS)


def read_params(folder: str | Path, shapes: Any) -> Any:
    """Reads what `write_params` has written.

    Args:
      folder: with `model.safetensors`.
      shapes: of the model's parameters, with their dtypes.

    Returns:
      The parameters, as NumPy's arrays.

    Raises:
      ValueError: if the file cannot be read, or holds other parameters than the model's.
    """
    found = dict(read_tensors(Path(folder)))
    expected = flatten_dict(shapes, sep=".")
    for name in sorted(found.keys() ^ expected.keys()):
        where = "lacks" if name in expected else "has, and the model of its config has not,"
        raise ValueError(f"{folder}/{WEIGHTS} {where} {name}")
    for name, leaf in expected.items():
        given = found[name]
        if (given.shape, given.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"{folder}/{WEIGHTS}: {name} is {given.dtype}{list(given.shape)}, and by the config "
                f"{leaf.dtype}{list(leaf.shape)}"
            )
    # The names of one's own layers have dots themselves.
    return unflatten_dict({path: found[".".join(path)] for path in flatten_dict(shapes)})
