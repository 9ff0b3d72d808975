"""Config files: Python files with a function `get_config`."""

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
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    # Whatever its suffix, it is Python; nothing is written beside it, as an import would.
    exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    return module
