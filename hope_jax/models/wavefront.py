"""Sequences whose parts lie on different devices: the state of each block is handed from part to part."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

# What one block makes of a part: (which block, part, state) -> (part, state).
Stage = Callable[[Int[Array, ""], Any, Any], tuple[Any, Any]]


def wavefront(
    stage: Stage,
    fresh: Callable[[Int[Array, ""]], PyTree[Array]],
    stages: int,
    x: PyTree[Array],
    axis: str,
    policy: Callable[..., Any] | None = None,
) -> PyTree[Array]:
    """Reads one part a device with all blocks, each block on from its state at the part before.

    ```
    device 0   block 0   block 1   block 2   ...
    device 1             block 0   block 1   block 2   ...
    device 2                       block 0   block 1   block 2   ...
    ```

    At tick t the device of part s computes block t - s, of which the device before has just sent the
    state. So L blocks of S parts take L + S - 1 ticks, in which each device works for L; what it
    computes in the others is thrown away. The backward pass goes the same way back, recomputing each
    tick: of the activations each device keeps one part for every tick.

    It is called on each device, within `jax.shard_map`.

    Args:
      stage: reads a part with a block.
      fresh: state of a block that has read nothing, with which the first part begins.
      stages: number of blocks, L.
      x: this device's part of what the first block reads.
      axis: of the mesh, on whose devices the parts lie in their order.
      policy: of `jax.checkpoint`, what a tick need not recompute.

    Returns:
      This device's part of what the last block has made.

    Example:
      Running sums, of twice as much with each block, over numbers that lie on all devices there are:

      >>> from jax.sharding import AxisType, PartitionSpec as P
      >>> def stage(block, x, total):
      ...     sums = total + jnp.cumsum((block + 1) * x)
      ...     return sums, sums[-1]
      >>> read = lambda x: wavefront(stage, lambda block: jnp.zeros(()), 2, x, "sequence")
      >>> mesh = jax.make_mesh((jax.device_count(),), ("sequence",), axis_types=(AxisType.Auto,))
      >>> place = P("sequence")
      >>> call = jax.jit(
      ...     jax.shard_map(read, mesh=mesh, in_specs=place, out_specs=place, check_vma=False)
      ... )
      >>> call(jnp.ones(8)).tolist()
      [2.0, 6.0, 12.0, 20.0, 30.0, 42.0, 56.0, 72.0]
    """
    part, parts = jax.lax.axis_index(axis), jax.lax.axis_size(axis)

    def read(block: Array, goes_on: Array, x: Any, received: Any) -> tuple[Any, Any]:
        return stage(block, x, _select(goes_on, received, fresh(block)))

    read = jax.checkpoint(read, policy=policy, prevent_cse=False)

    def tick(carry: tuple[Any, Any], time: Array) -> tuple[tuple[Any, Any], None]:
        x, received = carry
        block = time - part
        works = (block >= 0) & (block < stages)
        # Whoever waits reads with some block, from a fresh state: nothing there can overflow.
        y, state = read(jnp.clip(block, 0, stages - 1), works & (part > 0), x, received)
        return (_select(works, y, x), _hand_on(state, axis, parts)), None

    shapes = jax.eval_shape(fresh, jnp.zeros((), jnp.int32))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(tick, (x, nothing), jnp.arange(stages + parts - 1))[0][0]


def _hand_on(state: PyTree[Array], axis: str, parts: int) -> PyTree[Array]:
    pairs = [(part, part + 1) for part in range(parts - 1)]
    return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, axis, pairs), state)


def _select(condition: Array, new: PyTree[Array], old: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)
