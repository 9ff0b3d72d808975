"""Memories that learn while they read: the primitive under every layer of this package."""

from hope_jax.memory.bank import Bank, Weights
from hope_jax.memory.gates import Gates
from hope_jax.memory.memory import (
    MemoryState,
    Tokens,
    init_state,
    read,
    update,
    update_and_read,
    update_and_read_by_token,
)
from hope_jax.memory.objectives import dot_error, l2_error
from hope_jax.memory.rule import MemoryRule

__all__ = [
    "Bank",
    "Gates",
    "MemoryRule",
    "MemoryState",
    "Tokens",
    "Weights",
    "dot_error",
    "init_state",
    "l2_error",
    "read",
    "update",
    "update_and_read",
    "update_and_read_by_token",
]
