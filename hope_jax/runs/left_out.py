"""Imports without a library that another one would bring along."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def left_out(name: str) -> Iterator[None]:
    """While it lasts, a module that is not yet imported is as if it were not installed.

    Args:
      name: the module.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
