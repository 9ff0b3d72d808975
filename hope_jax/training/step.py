"""One training step and one evaluation step, compiled for a mesh."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from hope_jax.models import LanguageModel
from hope_jax.models.in_context import at_least_float32
from hope_jax.models.parameter_count import boxed_shapes
from hope_jax.optim.dense_inputs import apply_with_dense_inputs
from hope_jax.training.bad_batches import SeenBatches, judge, no_batches
from hope_jax.training.sharding import (
    batch_sharding,
    on_mesh,
    optimizer_shardings,
    own_share,
    parameter_shardings,
)

Batch = Mapping[str, Array]


class TrainState(NamedTuple):
    """All that training changes.

    Attributes:
      step: number of steps taken, int32.
      params: of the model.
      optimizer: the optimiser's state.
      seen: what was seen of the batches; `()` in a checkpoint of before this was kept.
    """

    step: Int[Array, ""]
    params: Any
    optimizer: Any
    seen: SeenBatches | tuple[()] = ()


class Metrics(NamedTuple):
    """What a step tells.

    Attributes:
      loss: mean cross-entropy in nats per token, before the step; 0 where no token has a weight.
      gradient_norm: global norm of the gradient, before clipping.
      update_norm: global norm of what the optimiser adds to the parameters, in float32, or would
        have added if the batch is skipped; 0 where no token has a weight.
      skipped: batches of the run that were not learnt from, with this one.
      in_a_row: of these, those since the last that was learnt from; 0 if this one was.
    """

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    update_norm: Float[Array, ""]
    skipped: Int[Array, ""] | int = 0
    in_a_row: Int[Array, ""] | int = 0


class OnMesh:
    """A jitted function on its mesh.

    Args:
      function: of `jax.jit`.
      mesh: that is set while it is traced.
    """

    def __init__(self, function: Any, mesh: Mesh):
        self.function, self.mesh = function, mesh

    def __call__(self, *args: Any) -> Any:
        """Compiles it on first use, and runs it."""
        with on_mesh(self.mesh):
            return self.function(*args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """What `jax.jit(...).lower` gives for arrays, or their shapes and shardings."""
        with on_mesh(self.mesh):
            return self.function.lower(*args)


@functools.lru_cache(maxsize=1)  # a run asks three times, and a large model is long traced
def abstract_state(
    model: LanguageModel, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes and shardings of a `TrainState`, without making one."""
    boxed = boxed_shapes(model)
    params = nn.unbox(boxed)
    state = jax.eval_shape(optimizer.init, params)
    shardings = parameter_shardings(mesh, boxed)
    everywhere, seen = NamedSharding(mesh, P()), jax.eval_shape(no_batches)
    places: Any = (
        everywhere,
        shardings,
        optimizer_shardings(mesh, state, params, shardings),
        jax.tree.map(lambda _: everywhere, seen),
    )
    shapes: Any = (jax.ShapeDtypeStruct((), jnp.int32), params, state, seen)
    leaves = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        places,
    )
    return TrainState(*leaves)


def init_state(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
) -> TrainState:
    """Makes the state of a run that has not begun, each part on its own devices from the start."""

    def init(key):
        tokens = jnp.zeros((1, 1), jnp.int32)
        params = nn.unbox(model.init(key, tokens)["params"])
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), no_batches())

    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer, mesh))
    with on_mesh(mesh):
        return jax.jit(init, out_shardings=places)(jax.random.key(seed))


def with_seen(state: TrainState, target: TrainState) -> TrainState:
    """A state of which `seen` begins, where a checkpoint of before did not hold it.

    Args:
      state: with `seen` or without.
      target: shapes and shardings of a state.
    """
    if state.seen:
        return state
    places = jax.tree.map(lambda leaf: leaf.sharding, target.seen)
    return state._replace(seen=jax.jit(no_batches, out_shardings=places)())


def make_train_step(
    model: LanguageModel,
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    accumulate: int = 1,
    layer_inputs: bool = False,
    skip_above: float = 0.0,
) -> "OnMesh":
    """Compiles a step on first use; the state it is given is donated.

    The gradient is that of the whole batch's mean loss, however many micro-batches it is formed in.
    It is summed and given to the optimiser in float32, or wider, whatever the parameters' dtype; they
    and the optimiser's state keep theirs. A batch in which no token has a weight has no mean: of such
    a step nothing but the count of steps is left, neither decay nor momentum. Nor is there of a bad
    batch (see `judge`), besides that it is counted; the optimiser's own counts, and with them the
    schedule, stand still.

    Args:
      model: to train.
      optimizer: that changes it.
      mesh: the devices.
      accumulate: micro-batches a step, one after the other.
      layer_inputs: whether the optimiser's update takes `inputs`, what went into each Dense layer
        at every position of the batch (see `hope_jax.optim.delta_gradient_descent`).
      skip_above: see `judge`.

    Returns:
      `step(state, batch) -> (state, metrics)`; the batch has `tokens`, `targets` and `weights`, and
      `reset` where documents are to be kept apart, each (B, T).

    Raises:
      ValueError: for `layer_inputs` of a model whose levels learn in context, or whose sequences are
        cut into parts.
    """
    if layer_inputs and model.config.in_context_config is not None:
        raise ValueError(
            "an optimiser that takes the layers' inputs, such as delta_gradient_descent, cannot train "
            "a model whose levels learn in context: what a level reads there goes through weights "
            "that differ by sequence and chunk. Choose another optimizer.name, or leave out "
            "model.in_context"
        )
    if layer_inputs and mesh.shape["sequence"] > 1:
        raise ValueError(
            f"an optimiser that takes the layers' inputs, such as delta_gradient_descent, cannot train "
            f"with mesh.sequence={mesh.shape['sequence']}, where blocks read parts of sequences. Choose "
            f"another optimizer.name, or set mesh.sequence to 1"
        )
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer, mesh))
    rows = batch_sharding(mesh)

    def step(state, batch):
        total = jnp.sum(batch["weights"])
        empty = total == 0
        divisor = jnp.where(empty, 1, total)

        def mean_loss(params, part):
            summed, inputs = _summed(model, params, part, mesh, layer_inputs)
            return summed / divisor, inputs

        gradient = jax.value_and_grad(mean_loss, has_aux=True)
        if accumulate == 1:
            (loss, inputs), gradients = gradient(state.params, batch)
        else:
            # Row i goes to micro-batch i mod n, so that every device keeps the rows it has.
            split = lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)

            def add(carry, part):
                (loss, inputs), gradients = gradient(state.params, part)
                return jax.tree.map(jnp.add, carry, (loss, gradients)), inputs

            # In bfloat16 a sum would stop growing after some hundred equal addends.
            zero = (
                jnp.zeros(()),
                jax.tree.map(lambda w: at_least_float32(jnp.zeros_like(w)), state.params),
            )
            (loss, gradients), inputs = jax.lax.scan(add, zero, jax.tree.map(split, dict(batch)))
            # Micro-batches are further rows, (layers, accumulate, rows, in).
            inputs = jax.tree.map(lambda rows: jnp.moveaxis(rows, 0, -3), inputs)
        gradients = jax.tree.map(at_least_float32, gradients)
        extra = {"inputs": inputs} if layer_inputs else {}
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer, state.params, **extra
        )
        changed = (optax.apply_updates(state.params, updates), optimizer_state)
        # The squares of bfloat16 updates would not add up in bfloat16.
        moved = optax.tree.norm(jax.tree.map(at_least_float32, updates))
        moved, norm = jnp.where(empty, 0.0, moved), optax.tree.norm(gradients)
        bad, seen = judge(state.seen, loss, norm, moved, skip_above)
        kept = _unless(bad | empty, changed, (state.params, state.optimizer))
        seen = _unless(empty, seen, state.seen)
        skipped = seen.skipped, jnp.where(bad, seen.in_a_row, 0)
        return TrainState(state.step + 1, *kept, seen), Metrics(loss, norm, moved, *skipped)

    compiled = jax.jit(
        step, in_shardings=(places, rows), out_shardings=(places, None), donate_argnums=0
    )
    return OnMesh(compiled, mesh)


def _unless(without: Array, new: Any, old: Any) -> Any:
    """What is new, in the dtypes of what is old, or all that is old."""
    return jax.tree.map(lambda new, old: jnp.where(without, old, new.astype(old.dtype)), new, old)


def make_eval_step(model: LanguageModel, mesh: Mesh) -> Callable[[Any, Batch], tuple[Array, Array]]:
    """Compiles `evaluate(params, batch) -> (summed loss in nats, summed weight)` on first use."""

    def evaluate(params, batch):
        return _summed(model, params, batch, mesh)[0], jnp.sum(batch["weights"])

    return OnMesh(jax.jit(evaluate), mesh)


def abstract_batch(
    mesh: Mesh, batch_size: int, length: int, resets: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of the batch that a step takes, without making one.

    Args:
      mesh: the devices.
      batch_size: B, sequences of all devices.
      length: T, tokens of a sequence.
      resets: whether documents are kept apart.
    """
    kinds = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
    kinds |= {"reset": jnp.bool_} if resets else {}
    place = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((batch_size, length), kind, sharding=place)
        for name, kind in kinds.items()
    }


def put_batch(batch: Mapping[str, Any], mesh: Mesh) -> Batch:
    """Sends to this process's devices their parts of its rows of a batch."""
    place, shares = batch_sharding(mesh), own_share(mesh)[1]

    def put(rows):
        shape = (len(rows) * shares, *rows.shape[1:])
        # Of whole sequences, each device takes its part.
        return jax.make_array_from_process_local_data(place, rows, shape)

    return {name: put(rows) for name, rows in batch.items()}


def _summed(model, params, batch, mesh, layer_inputs=False):
    """Weighted sum of the losses; also what went into the Dense layers, or None."""
    variables, texts = {"params": params}, (batch["tokens"], batch["targets"])
    settings = {"reset": batch.get("reset"), "method": "token_losses"}
    if mesh.shape["sequence"] > 1:
        losses, inputs = _losses_in_parts(model, variables, *texts, batch.get("reset")), None
    elif layer_inputs:
        losses, inputs = apply_with_dense_inputs(model, variables, *texts, **settings)
    else:
        losses, inputs = model.apply(variables, *texts, **settings), None
    return jnp.sum(losses * batch["weights"]), inputs


def _losses_in_parts(model, variables, tokens, targets, reset):
    """The model's `token_losses`, where each device of the mesh's `sequence` has one part of each."""

    def read(variables, tokens, targets, reset):
        return model.apply(variables, tokens, targets, reset, "sequence", method="part_losses")

    parts = P(None, "sequence")
    # Whether a value differs from part to part is not followed: scans of layers begin with zeros.
    return jax.shard_map(
        read,
        in_specs=(P(), parts, parts, parts),
        out_specs=parts,
        axis_names={"sequence"},
        check_vma=False,
    )(variables, tokens, targets, reset)
