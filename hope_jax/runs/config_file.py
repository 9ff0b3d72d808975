"""Config files: Python files with a function `get_config`."""

import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType


def load_config_file(path: str | Path) -> ModuleType:
    """Runs a config file, so that another can begin with what it holds.

    Args:
      path: of a Python file with `get_config(variant)`.

    Returns:
      It as a module.

    Raises:
      ValueError: if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file; give the path of a config, such as experiments/X.py")
    # Whatever its suffix, it is Python.
    loader = importlib.machinery.SourceFileLoader(path.stem, str(path))
    spec = importlib.util.spec_from_file_location(path.stem, path, loader=loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
