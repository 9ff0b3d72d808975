"""Sequences in parts on several devices: losses and gradients are those of one device."""

import functools
import re

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

from hope_jax.training.step import (
    OnMesh,
    abstract_batch,
    abstract_state,
    make_eval_step,
    make_train_step,
    put_batch,
)
from tests.models.exact_attention import exact_attention
from tests.training.meshes import (
    BATCH,
    ONE,
    TOKENS,
    Runs,
    batch_of,
    difference,
    mesh_of,
    model_of,
)

# (data, fsdp, sequence, tensor)
CASES = [
    ("transformer", (1, 1, 8, 1)),  # of which a window is longer than a part
    ("hope_attention", (1, 2, 2, 2)),
    ("in_context_levels", (2, 1, 4, 1)),
    ("local_levels", (1, 1, 2, 1)),
    ("small_hope", (1, 1, 8, 1)),
    ("small_hope", (1, 2, 2, 2)),
]


@functools.cache
def made(name):
    """A model of two blocks, its parameters in float64, and what one device makes of the batch."""
    model = model_of(name, "float64", blocks=2)
    tokens = np.zeros((1, 1), np.int32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    return model, params, read(model, params, ONE)


def read(model, params, shape):
    """Summed loss and gradients, on a mesh."""
    mesh = mesh_of(shape)
    evaluate = make_eval_step(model, mesh).function
    step = jax.jit(jax.value_and_grad(lambda params, batch: evaluate(params, batch)[0]))
    return jax.device_get(OnMesh(step, mesh)(params, put_batch(batch_of(), mesh)))


@pytest.mark.parametrize("name, shape", CASES)
def test_losses_and_gradients_are_those_of_one_device(name, shape, x64, monkeypatch):
    monkeypatch.setattr(jax.nn, "dot_product_attention", exact_attention)
    model, params, (loss, gradients) = made(name)
    found, in_parts = read(model, params, shape)
    np.testing.assert_allclose(found, loss, rtol=1e-12)
    for (path, one), several in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(in_parts), strict=True
    ):
        # The factors of step sizes are float32 whatever the parameters are.
        bound = 1e-5 if one.dtype == np.float32 else 1e-10
        scale = np.abs(one).max()
        assert scale > 0, path
        np.testing.assert_allclose(several, one, atol=bound * scale, err_msg=str(path))


def test_each_device_reads_its_part():
    """Not all of a sequence, as where the compiler is left to cut it."""
    model, mesh = model_of("transformer"), mesh_of((1, 1, 8, 1))
    params = abstract_state(model, optax.sgd(0.1), mesh).params
    batch = abstract_batch(mesh, BATCH, TOKENS, resets=True)
    program = make_eval_step(model, mesh).lower(params, batch).compile().as_text()
    assert f"f32[{BATCH},{TOKENS // 8},16]" in program
    assert f"f32[{BATCH},{TOKENS},16]" not in program


def test_inputs_of_layers_are_not_to_be_had():
    model = model_of("transformer")
    with pytest.raises(ValueError, match="set mesh.sequence to 1"):
        make_train_step(model, optax.adam(0.1), mesh_of((1, 1, 8, 1)), layer_inputs=True)


def test_steps_are_those_of_one_device_and_no_parameter_is_whole():
    runs = Runs("hope_attention", blocks=5)
    (single,) = runs.losses(ONE, batch_of())
    (parted,) = runs.losses((1, 2, 2, 2), batch_of())
    assert difference(parted, single).max() < 1e-5
    mesh = mesh_of((1, 2, 2, 2))
    state = abstract_state(runs.model, runs.optimizer, mesh)
    batch = abstract_batch(mesh, BATCH, TOKENS, resets=True)
    step = make_train_step(runs.model, runs.optimizer, mesh)
    program = step.lower(state, batch).compile().as_text()
    formed = set(re.findall(r"\w+\[[\d,]+\]", program))
    kernels = [leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.ndim > 2]
    assert len(kernels) == 10
    for shape in kernels:
        assert f"f32[{','.join(map(str, shape))}]" not in formed, shape
