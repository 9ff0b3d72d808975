"""Nothing is said twice: Orbax's threads print a traceback for every array that cannot be written.

What failed in the background is raised where it is waited for, in one line.
"""

import logging
import sys
from typing import Any

_CLOSED = "Event loop is closed"
# What it warns of where each process writes to a folder of its own, as it is meant to.
_MEANT = ("Global object size logging disabled", "Skipping merge of OCDBT checkpoints")


def hush_background() -> None:
    """Leaves out what the threads that write a checkpoint print about errors, from now on."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_news)  # the same one is added once
    if not getattr(sys.excepthook, "hushed", False):
        sys.excepthook = _without_closed_loops(sys.excepthook)
    if not getattr(sys.unraisablehook, "hushed", False):
        sys.unraisablehook = _without_closed_loops(sys.unraisablehook)


def _is_news(record: logging.LogRecord) -> bool:
    if record.name == "asyncio":
        return "exception was never retrieved" not in record.getMessage()
    if any(meant in str(record.msg) for meant in _MEANT):
        return False
    return not (record.exc_info and "orbax" in record.pathname)


def _without_closed_loops(hook: Any) -> Any:
    """A hook for errors outside of all frames: TensorStore has an answer for a loop that is gone."""

    def hushed(*args: Any) -> None:
        error = args[1] if len(args) == 3 else args[0].exc_value
        if not (isinstance(error, RuntimeError) and str(error) == _CLOSED):
            hook(*args)

    hushed.hushed = True  # type: ignore[attr-defined]
    return hushed
