"""What is someone's own, by name: `my_file.my_function` is what `my_file.py` calls `my_function`.

A config holds names, which can be compared, hashed and written down; whoever needs the thing finds it.
Files are found as `import` finds them; the command `hope` also looks in the current directory and
beside the config.

>>> find("math.sqrt")(9)
3.0
>>> name_of(find)
'hope_jax.named.find'
"""

import contextlib
import difflib
import importlib
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def look_in(folder: str | Path) -> None:
    """Has the files of a folder found, after all that is found without it."""
    path = str(Path(folder).absolute())
    if path not in sys.path:
        sys.path.append(path)


def find(name: str) -> Any:
    """What a dotted name names.

    Args:
      name: `module.attribute`.

    Raises:
      ValueError: in one line, if there is no such module or nothing of the name in it, with the nearest
        names, and if the module fails.
    """
    module_name, _, attribute = name.rpartition(".")
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
        raise ValueError("this is no name of something in a file, such as my_file.my_function")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever may be wrong with somebody's file
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if not missing or not f"{module_name}.".startswith(f"{missing}."):
            said = failure(error, _first_file(error))
            raise ValueError(f"the file of {module_name} fails with {said}") from error
        near = difflib.get_close_matches(missing, {item.name for item in pkgutil.iter_modules()})
        raise ValueError(
            f"there is no module {missing} from {os.getcwd()}{_nearest(near)}; run from the folder "
            f"that holds {missing.replace('.', '/')}.py, or set PYTHONPATH to it"
        ) from error
    if not hasattr(module, attribute):
        public = [known for known in vars(module) if not known.startswith("_")]
        near = difflib.get_close_matches(attribute, public) or sorted(public)[:5]
        file = getattr(module, "__file__", None)
        place = f" ({file})" if file else ""
        raise ValueError(f"{module_name}{place} has no {attribute!r}{_nearest(near)}")
    return getattr(module, attribute)


def name_of(thing: Any) -> str:
    """The dotted name by which a function or class is found again, by other programs too.

    Raises:
      ValueError: if it has none.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    mend = "write it as a function at the top of a file, such as my_file.py, and import it"
    if not module or not name or not name.isidentifier():  # "<lambda>", "outer.<locals>.inner"
        said = "has no name by which it is found again"
    elif module == "__main__":
        said = "stands in the program that runs, where no other program finds it"
    else:
        found = find(f"{module}.{name}")
        # A config that is run as a file is not the module that it is when imported.
        same = (getattr(found, "__qualname__", None), getattr(found, "__code__", None))
        if found is thing or same == (name, getattr(thing, "__code__", None)):
            return f"{module}.{name}"
        said = f"is not what {module}.{name} is now"
    raise ValueError(f"it {said}; {mend}")


@contextlib.contextmanager
def calling(name: str) -> Iterator[None]:
    """Says in one line, as a ValueError, what goes wrong in a function of somebody's own."""
    try:
        yield
    except Exception as error:  # whatever may be wrong with it
        file = getattr(sys.modules.get(name.rpartition(".")[0]), "__file__", None)
        raise ValueError(f"{name} fails with {failure(error, file)}") from error


def failure(error: Exception, path: str | Path | None) -> str:
    """An error of somebody's file, with the line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(path or "").resolve()
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == own]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    place = f" in line {line}" if line else ""
    return f"{type(error).__name__}{place}: {error}"


def _first_file(error: Exception) -> str | None:
    """The file that was being imported: the first beyond this one and those that import."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    own = [file for file in files if not file.startswith("<") and Path(file) != Path(__file__)]
    return next((file for file in own if Path(file).parent.name != "importlib"), None)


def _nearest(names: list[str]) -> str:
    return f"; nearest: {', '.join(names)}" if names else ""
