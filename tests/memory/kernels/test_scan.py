"""The scan in VMEM, interpreted, against `jax.lax.scan`."""

import jax
import jax.numpy as jnp
import numpy as np

from hope_jax.memory.kernels.scan import scan_in_vmem

STEPS = 5
DRAW = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(DRAW.normal(size=shape), jnp.float32)
MATRIX, SCALE = normal(4, 4), normal()
CARRY = {"rows": normal(4, 4), "row": normal(4)}
INPUTS = {
    "rows": normal(STEPS, 4, 4),
    "gate": normal(STEPS, 4),
    "number": normal(STEPS),
    "mask": jnp.arange(4 * STEPS).reshape(STEPS, 4) % 3 == 0,
}


def body_with(matrix, scale):
    """Every kind of array: closed over or not, of no to two axes, and a mask."""

    def body(carry, given):
        rows = jnp.tanh(carry["rows"] @ matrix + given["number"] * given["rows"])
        row = scale * carry["row"] + jnp.where(given["mask"], given["gate"], 0)
        return {"rows": rows, "row": row}, (rows + row, jnp.sum(row))

    return body


def run(scan, matrix, scale, carry, inputs):
    return scan(body_with(matrix, scale), carry, inputs)


def in_vmem(*args, **settings):
    return scan_in_vmem(*args, interpret=True, **settings)


def gradients(scan):
    def loss(*args):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(run(scan, *args)))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), allow_int=True))


def assert_close(mine, theirs):
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        if a.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_equals_the_scan():
    """Values and gradients, alone and over a batch that shares what the body closes over."""
    args = MATRIX, SCALE, CARRY, INPUTS
    assert_close(run(in_vmem, *args), run(jax.lax.scan, *args))
    assert_close(gradients(in_vmem)(*args), gradients(jax.lax.scan)(*args))
    two = lambda tree: jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), tree)
    args = MATRIX, SCALE, two(CARRY), two(INPUTS)

    def batched(scan):
        return lambda *args: jax.vmap(gradients(scan), in_axes=(None, None, 0, 0))(*args)

    assert_close(batched(in_vmem)(*args), batched(jax.lax.scan)(*args))


def test_kept_in_bfloat16_only_the_gradients_are_rounded():
    args = MATRIX, SCALE, CARRY, INPUTS
    rounded = lambda *args: in_vmem(*args, kept=jnp.bfloat16)
    assert_close(run(rounded, *args), run(jax.lax.scan, *args))
    mine, theirs = gradients(rounded)(*args), gradients(jax.lax.scan)(*args)
    difference = np.linalg.norm(mine[0] - theirs[0]) / np.linalg.norm(theirs[0])
    assert 1e-5 < difference < 2e-2
