"""A scan whose carry stays in a TPU's VMEM from the first step to the last, forward and backward."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from hope_jax.memory.kernels.lowering import for_mosaic


class Part(NamedTuple):
    """An array that a kernel reads or writes.

    Attributes:
      shape: of what one step sees.
      dtype: of its entries.
      stepped: whether every step has a part of its own, along a leading axis, or all have the whole.
    """

    shape: tuple[int, ...]
    dtype: DTypeLike
    stepped: bool


def scan_in_vmem(
    body: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    inputs: Any,
    kept: DTypeLike | None = None,
    interpret: bool = False,
    vmem: int | None = None,
) -> tuple[Any, Any]:
    """As `jax.lax.scan`, in one Pallas kernel.

    Inputs and outputs of a step are brought to VMEM and back; the carry stays there. The backward pass
    is a second kernel, in reverse: it is given the carry before every step, forms the step again and
    pulls back through it, with the carry's cotangent in VMEM.

    Args:
      body: `body(carry, inputs) -> (carry, outputs)`, arrays to arrays, all floating but for its
        inputs. What it closes over is brought to VMEM once, and has its derivative.
      carry: before the first step.
      inputs: a pytree of arrays of shape (steps, ...).
      kept: dtype in which the carries are kept for the backward pass; `None` for their own.
      interpret: run the kernel's operations one by one on any machine, to test it.
      vmem: how many bytes of VMEM the kernel may take; `None` for what its compiler takes by itself.

    Returns:
      The carry after the last step, and outputs of shape (steps, ...).

    Example:
      >>> import jax.numpy as jnp
      >>> sums = lambda carry, x: (carry + x, carry * x)
      >>> end, out = scan_in_vmem(sums, jnp.zeros((1, 1)), jnp.ones((3, 1, 1)), interpret=True)
      >>> end.item(), out.ravel().tolist()
      (3.0, [0.0, 1.0, 2.0])
    """
    one = jax.tree.map(lambda leaf: jax.eval_shape(lambda x: x[0], leaf), inputs)
    traced, (_, outputs) = jax.make_jaxpr(body, return_shape=True)(carry, one)
    before, carry_tree = jax.tree.flatten(carry)
    arrays = [jnp.asarray(leaf) for leaf in (*traced.consts, *jax.tree.leaves(inputs))]
    masks = [array.dtype == bool for array in arrays]
    # Masks travel as numbers, of which Mosaic can cut rows.
    arrays = [x.astype(jnp.int32) if mask else x for x, mask in zip(arrays, masks, strict=True)]
    cut = len(traced.consts)

    def step(carry, arrays):
        arrays = [x != 0 if mask else x for x, mask in zip(arrays, masks, strict=True)]
        out = jax.core.eval_jaxpr(traced.jaxpr, arrays[:cut], *carry, *arrays[cut:])
        return out[: len(before)], out[len(before) :]

    parts = [Part(x.shape, x.dtype, False) for x in arrays[:cut]]
    parts += [Part(x.shape[1:], x.dtype, True) for x in arrays[cut:]]
    states = [Part(x.shape, x.dtype, False) for x in before]
    results = [Part(x.shape, x.dtype, True) for x in jax.tree.leaves(outputs)]
    steps = jax.tree.leaves(inputs)[0].shape[0]

    floating = [jnp.issubdtype(x.dtype, jnp.floating) for x in arrays]
    keeps = [Part(x.shape, kept or x.dtype, True) for x in before]
    shapes = step, steps, states, parts, results, keeps
    call = functools.partial(_call, interpret=interpret, vmem=vmem)

    @jax.custom_vjp
    def run(carry, arrays):
        return _forward(*shapes, False, call, (*carry, *arrays))

    def run_and_keep(carry, arrays):
        kernel = functools.partial(_forward, *shapes, True, call)
        twin = functools.partial(_forward_in_xla, *shapes)
        out = _with_derivatives_of(twin, kernel)((*carry, *arrays))
        shown = len(states) + len(results)
        return out[:shown], (out[shown:], arrays)

    def pull(saved, cotangents):
        kernel = functools.partial(_backward, *shapes, floating, call)
        twin = functools.partial(_backward_in_xla, *shapes, floating)
        kept, arrays = saved
        of_carry, found = _with_derivatives_of(twin, kernel)((*cotangents, *kept, *arrays))
        rest = iter(found)
        zero = lambda x: np.zeros(x.shape, jax.dtypes.float0)
        return of_carry, [
            next(rest) if some else zero(x) for x, some in zip(arrays, floating, strict=True)
        ]

    run.defvjp(run_and_keep, pull)
    out = run(before, arrays)
    end, out = out[: len(before)], out[len(before) :]
    return jax.tree.unflatten(carry_tree, end), jax.tree.unflatten(jax.tree.structure(outputs), out)


def _with_derivatives_of(twin, kernel):
    """A kernel that is differentiated by way of its twin, as where derivatives are of second order."""
    function = jax.custom_jvp(kernel)
    function.defjvp(lambda primals, tangents: jax.jvp(twin, primals, tangents))
    return function


def _forward_in_xla(step, steps, states, parts, results, keeps, given):
    """The same numbers as `_forward`, which keeps."""
    carry, arrays = _split(given, (states, parts))
    whole, stepped = _by_kind(arrays, parts)

    def body(carry, stepped):
        kept = [x.astype(part.dtype) for x, part in zip(carry, keeps, strict=True)]
        after, out = step(carry, _in_order(whole, stepped, parts))
        return after, (out, kept)

    carry, (out, kept) = jax.lax.scan(body, carry, stepped, steps)
    return [*carry, *out, *kept]


def _backward_in_xla(step, steps, states, parts, results, keeps, floating, given):
    """The same numbers as `_backward`."""
    of_end, of_outputs, kept, arrays = _split(given, (states, results, keeps, parts))
    whole, stepped = _by_kind(arrays, parts)
    ours = [part for part, some in zip(parts, floating, strict=True) if some]
    sums = [jnp.zeros(part.shape, part.dtype) for part in ours if not part.stepped]

    def body(carried, given):
        of_carry, sums = carried
        kept, of_outputs, stepped = given
        carry = [x.astype(part.dtype) for x, part in zip(kept, states, strict=True)]
        arrays = _in_order(whole, stepped, parts)
        of_carry, found = _pulled(step, floating, carry, arrays, of_carry, of_outputs)
        of_whole, of_stepped = _by_kind(found, ours)
        return (of_carry, jax.tree.map(jnp.add, sums, of_whole)), of_stepped

    (of_carry, sums), of_stepped = jax.lax.scan(
        body, (of_end, sums), (kept, of_outputs, stepped), steps, reverse=True
    )
    return of_carry, _in_order(sums, of_stepped, ours)


def _by_kind(arrays, parts):
    """Those that every step sees whole, and those of which it sees a part."""
    pairs = list(zip(arrays, parts, strict=True))
    return [x for x, part in pairs if not part.stepped], [x for x, part in pairs if part.stepped]


def _in_order(whole, stepped, parts):
    whole, stepped = iter(whole), iter(stepped)
    return [next(stepped if part.stepped else whole) for part in parts]


def _pulled(step, floating, carry, arrays, of_carry, of_outputs):
    """Cotangents of one step's carry, and of its floating arrays."""

    def function(carry, some):
        some = iter(some)
        chosen = zip(arrays, floating, strict=True)
        return step(carry, [next(some) if of else array for array, of in chosen])

    some = [array for array, of in zip(arrays, floating, strict=True) if of]
    return jax.vjp(function, carry, some)[1]((of_carry, of_outputs))


def _forward(step, steps, states, parts, results, keeps, keep, call, given):
    """Carries, outputs and, if asked for, the carry before every step."""
    keeps = keeps if keep else []

    def kernel(before, arrays, after, outputs, kept):
        _at_first_step(lambda: _copy(before, after))
        carry = [ref[...] for ref in after]
        for ref, state in zip(kept, carry, strict=False):
            ref[...] = state.astype(ref.dtype)
        carry, found = _split(
            for_mosaic(lambda *args: sum(step(*args), []), carry, [ref[...] for ref in arrays]),
            (states, results),
        )
        _copy(carry, after)
        _copy(found, outputs)

    shapes = states, results, keeps
    return call(kernel, steps, lambda i: i, (states, parts), shapes, given)


def _backward(step, steps, states, parts, results, keeps, floating, call, given):
    """Cotangents of the carry and of the floating arrays, those of whole arrays summed over steps."""
    ours = [part for part, some in zip(parts, floating, strict=True) if some]

    def kernel(of_end, of_outputs, kept, arrays, of_carry, of_arrays):
        whole = [ref for ref, part in zip(of_arrays, ours, strict=True) if not part.stepped]

        @_at_first_step
        def _():
            _copy(of_end, of_carry)
            for ref in whole:
                ref[...] = jnp.zeros(ref.shape, ref.dtype)

        arrays = [ref[...] for ref in arrays]
        carry = [ref[...].astype(part.dtype) for ref, part in zip(kept, states, strict=True)]

        def pull(*args):
            return sum(_pulled(step, floating, *args), [])

        found, more = _split(
            for_mosaic(
                pull, carry, arrays, [x[...] for x in of_carry], [x[...] for x in of_outputs]
            ),
            (states, ours),
        )
        _copy(found, of_carry)
        for ref, array, part in zip(of_arrays, more, ours, strict=True):
            ref[...] = array if part.stepped else ref[...] + array

    out = call(
        kernel,
        steps,
        lambda i: steps - 1 - i,
        (states, results, keeps, parts),
        (states, ours),
        given,
    )
    return tuple(_split(out, (states, ours)))


def _call(kernel, steps, order, parts_in, parts_out, arrays, interpret, vmem):
    """Runs a kernel `kernel(*groups of references)`, the i-th time with the parts of step `order(i)`."""
    flat_in, flat_out = sum(parts_in, []), sum(parts_out, [])

    def spec(part):
        axes = _two_axes(part.shape)
        if not part.stepped:
            return pl.BlockSpec(axes, lambda i: (0,) * len(axes))
        return pl.BlockSpec((None, *axes), lambda i: (order(i), *[0] * len(axes)))

    def shape(part):
        lead = (steps,) if part.stepped else ()
        return (*lead, *part.shape), (*lead, *_two_axes(part.shape))

    def run(*refs):
        views = [_View(ref, part.shape) for ref, part in zip(refs, flat_in + flat_out, strict=True)]
        kernel(*_split(views, (*parts_in, *parts_out)))

    out = pl.pallas_call(
        run,
        grid=(steps,),
        in_specs=[spec(part) for part in flat_in],
        out_specs=[spec(part) for part in flat_out],
        out_shape=[jax.ShapeDtypeStruct(shape(part)[1], part.dtype) for part in flat_out],
        interpret=interpret,
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=vmem),
    )(*(x.reshape(shape(part)[1]) for x, part in zip(arrays, flat_in, strict=True)))
    return [x.reshape(shape(part)[0]) for x, part in zip(out, flat_out, strict=True)]


class _View:
    """A reference, seen as an array of the shape that the step's function knows."""

    def __init__(self, ref, shape):
        self.ref, self.shape, self.dtype = ref, shape, ref.dtype

    def __getitem__(self, _):
        return self.ref[...].reshape(self.shape)

    def __setitem__(self, _, array):
        self.ref[...] = array.reshape(_two_axes(self.shape))


def _two_axes(shape):
    """The shape with axes of length 1 put in front until it has two, which Mosaic's layouts need."""
    return (*[1] * (2 - len(shape)), *shape)


def _at_first_step(function):
    return pl.when(pl.program_id(0) == 0)(function)


def _copy(arrays, refs):
    for array, ref in zip(arrays, refs, strict=True):
        ref[...] = array[...]


def _split(flat: Sequence[Any], groups: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Cuts a list into pieces as long as the groups."""
    rest = iter(flat)
    return [[next(rest) for _ in group] for group in groups]
