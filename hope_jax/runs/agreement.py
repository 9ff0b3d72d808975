"""What one process decides for all, and whether all see the same."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from hope_jax.data.bucket import BucketError
from hope_jax.runs.folder_error import RunFolderError

_KINDS = {kind.__name__: kind for kind in (ValueError, RunFolderError, BucketError)}


def all_see(number: int) -> bool:
    """Whether a number below 2^32 is the same in every process; each calls it at the same place.

    Example:
      >>> all_see(3)
      True
    """
    seen = np.asarray(multihost_utils.process_allgather(np.uint32(number)))
    return bool(np.all(seen == seen.ravel()[0]))


def first_decides(action: Callable[[], Any]) -> Any:
    """Does something in the first process alone, and tells the others what came of it.

    Every process calls it at the same place. An error of the first is raised in all of them, so that
    none goes on without the others.

    Args:
      action: whose result is plain data, as JSON has it.

    Returns:
      The result.

    Example:
      >>> first_decides(lambda: 3)
      3
    """
    if jax.process_count() == 1:
        return action()
    raised: Exception | None = None
    answer = b""
    if jax.process_index() == 0:
        try:
            answer = json.dumps({"result": action()}).encode()
        except Exception as error:
            raised = error
            answer = json.dumps({"error": str(error), "kind": type(error).__name__}).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(answer))))
    padded = np.frombuffer(answer, np.uint8) if answer else np.zeros(size, np.uint8)
    told = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())
    if raised is not None:
        raise raised
    if "error" in told:
        raise _KINDS.get(told["kind"], RuntimeError)(told["error"])
    return told["result"]
