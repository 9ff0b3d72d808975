"""Scripts of `experiments/` as modules."""

import importlib
import pathlib
import sys
from collections.abc import Iterator
from types import ModuleType

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from hope_jax.comparison import suite_run
from hope_jax.training.sharding import AXES

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"


def suite_script(name: str, monkeypatch) -> Iterator[ModuleType]:
    """The script of a suite as a module, on one device; for a fixture."""
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module(name)
    devices = np.array(jax.devices()[:1]).reshape((1,) * len(AXES))
    mesh = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    monkeypatch.setattr(suite_run, "make_mesh", lambda: mesh)
    yield module
    sys.modules.pop(name)
