"""The first state of a run that begins from another one's weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from hope_jax.data.tokenizers import Tokenizer, load_tokenizer
from hope_jax.runs.agreement import all_see
from hope_jax.runs.checkpoint_reader import PARTS, read_other
from hope_jax.runs.fetch import fetch_run
from hope_jax.runs.origin import Origin
from hope_jax.runs.run_config import load_config
from hope_jax.runs.run_tokenizer import tokenizer_of
from hope_jax.training.bad_batches import no_batches
from hope_jax.training.step import TrainState


def begin_from(
    origin: Origin,
    optimizer: optax.GradientTransformation,
    target: TrainState,
    tokenizer: Tokenizer,
) -> tuple[TrainState, Origin]:
    """Makes the state of step 0 from the newest whole checkpoint of another run, which is only read.

    Args:
      origin: the other run, and whether its optimiser's state comes along. Its momenta and their
        counts then do; the schedule of the learning rate begins anew.
      optimizer: of the new run.
      target: shapes and shardings of the state.
      tokenizer: of the new run.

    Returns:
      The state, and the origin with the step that was read.

    Raises:
      ValueError: if there is no such run or checkpoint, it does not fit the target (its arrays are
        named, with both shapes), or the other run has another tokenizer.
    """
    run = fetch_run(origin.run, PARTS if origin.optimizer else ("params",), "--from_run")
    name = load_config(run, "--from_run").data.get("tokenizer", "bytes")
    theirs = tokenizer_of(run, name)
    if load_tokenizer(theirs).digest != tokenizer.digest:
        raise ValueError(
            f"--from_run={origin.run} has learnt with another tokenizer; give it to the new run, too: "
            f"--config.data.tokenizer={theirs}"
        )
    step, read = read_other(run, target, origin.optimizer)
    if not all_see(step):
        raise ValueError(
            f"--from_run={origin.run} writes checkpoints while the processes read; wait for its end"
        )

    def begin(read: Any) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        if origin.optimizer:
            return TrainState(zero, read.params, restart_schedules(read.optimizer), no_batches())
        return TrainState(zero, read, optimizer.init(read), no_batches())

    places = jax.tree.map(lambda leaf: leaf.sharding, target)
    state = jax.jit(begin, out_shardings=places, donate_argnums=0)(read)
    return state, origin._replace(step=step)


def restart_schedules(state: Any) -> Any:
    """An optimiser's state in which every schedule is at its beginning, and all else is as it was."""

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def restart(node: Any) -> Any:
        return node._replace(count=jnp.zeros_like(node.count)) if is_schedule(node) else node

    return jax.tree.map(restart, state, is_leaf=is_schedule)
