"""Captures the inputs of Flax Dense layers while a loss is computed. This file needs Flax."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_COLLECTION = "dense_inputs"


def _append_rows(rows: jax.Array | None, new: jax.Array) -> jax.Array:
    return new if rows is None else jnp.concatenate([rows, new])


def apply_with_dense_inputs(
    module: nn.Module, variables: Any, *args: Any, **kwargs: Any
) -> tuple[Any, Any]:
    """Applies a module and returns what went into each of its `nn.Dense` layers.

    It is an ordinary traced computation: call it inside the loss, jitted or differentiated, and
    return the inputs as auxiliary output. A layer that runs several times has the rows of all its
    runs. Under `nn.scan` the collection "dense_inputs" has to be among the scan's variables
    (`variable_axes={"params": 0, "dense_inputs": 0}`) and the inputs get the leading layer axis
    that the kernels have.

    Args:
      module: Any Flax module.
      variables: Its variables, with "params".
      *args: Arguments of the module.
      **kwargs: Keyword arguments of the module, those of `Module.apply` included.

    Returns:
      The module's output, and a tree with the inputs, (rows, in) or (layers, rows, in), at the path
      of each Dense kernel: what `delta_gradient_descent` takes as `inputs`.

    Raises:
      ValueError: A Dense layer ran where its inputs could not be recorded.

    Examples:
      >>> import flax.linen as nn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from hope_jax.optim import delta_gradient_descent
      >>> from hope_jax.optim.dense_inputs import apply_with_dense_inputs
      >>> model = nn.Dense(1)
      >>> x, y = jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([[1.0], [0.0]])
      >>> params = model.init(jax.random.key(0), x)["params"]
      >>> @jax.jit
      ... def step(params, state):
      ...     def loss(params):
      ...         prediction, inputs = apply_with_dense_inputs(model, {"params": params}, x)
      ...         return jnp.mean((prediction - y) ** 2), inputs
      ...     gradients, inputs = jax.grad(loss, has_aux=True)(params)
      ...     updates, state = solver.update(gradients, state, params, inputs=inputs)
      ...     return optax.apply_updates(params, updates), state, inputs
      >>> solver = delta_gradient_descent(0.1)
      >>> params, state, inputs = step(params, solver.init(params))
      >>> inputs["kernel"].shape
      (2, 2)
    """
    ran: set[str] = set()

    def record(next_method: Any, method_args: Any, method_kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            ran.add("/".join((*context.module.path, "kernel")))
            x = method_args[0] if method_args else method_kwargs["inputs"]
            context.module.sow(
                _COLLECTION,
                "kernel",
                jax.lax.stop_gradient(x).reshape(-1, x.shape[-1]),
                reduce_fn=_append_rows,
                init_fn=lambda: None,
            )
        return next_method(*method_args, **method_kwargs)

    with nn.intercept_methods(record):
        output, recorded = module.apply(variables, *args, mutable=[_COLLECTION], **kwargs)
    inputs = recorded.get(_COLLECTION, {})
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(inputs)
    }
    lost = sorted(ran - found)
    if lost:
        raise ValueError(
            f"the inputs of {lost} were not recorded: a lifted transformation above them (nn.scan, "
            f'nn.vmap) has to carry the collection, variable_axes={{..., "{_COLLECTION}": 0}}.'
        )
    return output, inputs
