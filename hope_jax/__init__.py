"""Nested Learning in JAX: Hope, self-modifying Titans, the Continuum Memory System, M3.

The names below are imported when first used, so that `import hope_jax.optim` needs no Flax.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_MODULE_OF = {
    "LanguageModel": "hope_jax.models",
    "LanguageModelConfig": "hope_jax.models",
    "ModelState": "hope_jax.models",
    "SelfModifyingTitans": "hope_jax.layers.titans",
    "TitansConfig": "hope_jax.layers.titans",
    "init_state": "hope_jax.models",
}
_SUBPACKAGES = (
    "data",
    "evaluation",
    "inference",
    "layers",
    "memory",
    "models",
    "optim",
    "runs",
    "sleep",
    "training",
)

__all__ = [*_MODULE_OF, *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"hope_jax.{name}")
    raise AttributeError(
        f"module 'hope_jax' has no attribute {name!r}; it has {', '.join(__all__)}"
    )


def __dir__() -> list[str]:
    return sorted(__all__)
