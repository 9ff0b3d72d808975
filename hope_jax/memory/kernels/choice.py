"""Where a memory's chunks run in a kernel, and why not elsewhere."""

import functools

import jax
import jax.numpy as jnp

from hope_jax.memory.bank import Weights
from hope_jax.memory.chunks import Loop
from hope_jax.memory.objectives import HuberError, LpError, dot_error, l2_error
from hope_jax.memory.rule import MemoryRule

# A core of v5p has 64 MiB, of v5e and v6e 128. What a kernel does not take is left to the compiler.
VMEM_BYTES = 48 << 20


def chosen_loop(rule: MemoryRule, initial: Weights, dtype: jnp.dtype) -> Loop | None:
    """What is to run the chunks of a memory, as `rule.form` says.

    The platform is that of the mesh in context, so that a program can be compiled for TPUs on a machine
    without one, or else JAX's default.

    Args:
      rule: how the memory learns.
      initial: its initial weights.
      dtype: of its keys, in which the kernel keeps the states at the chunks' starts.

    Returns:
      A `Loop` for `scan_chunks`; `None` for a scan of XLA's.

    Raises:
      ValueError: if the rule asks for a kernel that does not cover it.
    """
    # Where it is not asked for, no device is asked, which would start it.
    if rule.form == "xla" or (rule.form == "auto" and device()[0] != "tpu"):
        return None
    why, here = not_covered(rule, initial, dtype), device()[0]
    if why and rule.form == "auto":
        return None
    if why or here not in ("tpu", "cpu"):
        raise ValueError(
            f"form='kernel', but {why or f'the kernel is for TPUs, not for {here}'}; set form='auto' or "
            f"form='xla'."
        )
    # Pallas takes half a second to import.
    from hope_jax.memory.kernels.scan import scan_in_vmem

    return functools.partial(scan_in_vmem, kept=dtype, interpret=here != "tpu", vmem=VMEM_BYTES)


def not_covered(rule: MemoryRule, initial: Weights, dtype: jnp.dtype) -> str | None:
    """Says in a few words what of a memory the kernel does not cover, if anything.

    Args:
      rule: how the memory learns.
      initial: its initial weights.
      dtype: of its keys.

    Example:
      >>> import jax
      >>> rule = MemoryRule(projector="none", window=4)
      >>> not_covered(rule, rule.bank.init(jax.random.key(0), width=8), jnp.dtype("float32"))
      'the kernel writes one error a token, and window=4'
    """
    if rule.window > 1:
        return f"the kernel writes one error a token, and window={rule.window}"
    error = rule.error
    if error not in (l2_error, dot_error) and not isinstance(error, LpError | HuberError):
        return f"the kernel has the objectives of this package, not {error!r}"
    if rule.bank.activation not in (None, jax.nn.gelu):
        return f"the kernel has matrices and MLPs with jax.nn.gelu, not {rule.bank.activation!r}"
    if dtype not in (jnp.float32, jnp.bfloat16) or initial.first.dtype != jnp.float32:
        return (
            f"the kernel reads float32 or bfloat16 into float32 weights, not {dtype} into "
            f"{initial.first.dtype}"
        )
    needed = vmem_bytes(rule, initial)
    if needed > VMEM_BYTES:
        return (
            f"chunks of {rule.chunk_size} and these weights need about {needed >> 20} MiB of VMEM, of "
            f"which the kernel takes at most {VMEM_BYTES >> 20}"
        )
    kind = device()[1]
    if kind.startswith(("TPU v2", "TPU v3", "TPU v4")):
        return f"a core of {kind} has too little VMEM"
    mesh = jax.sharding.get_abstract_mesh()
    several = [name for name in mesh.auto_axes if mesh.shape[name] > 1]
    if several:
        return (
            f"a kernel runs on one device, and the mesh leaves {several} to the compiler: call it inside "
            f"jax.shard_map"
        )
    return None


def vmem_bytes(rule: MemoryRule, initial: Weights) -> int:
    """About how much VMEM the backward kernel needs: fitted to what the compiler took, and rounded up."""
    lanes = lambda size: -(-size // 128) * 128
    maps = jax.tree.leaves(initial)
    states = (1 + rule.momentum) * sum(x.size // x.shape[-1] * lanes(x.shape[-1]) for x in maps)
    triangle = rule.chunk_size * lanes(rule.chunk_size)
    rows = rule.chunk_size * max(lanes(size) for x in maps for size in x.shape[-2:])
    return 4 * (5 * states + 120 * triangle + 50 * rows)


def device() -> tuple[str, str]:
    """Platform (`cpu`, `gpu` or `tpu`) and kind of the devices for which a program is being traced."""
    found = jax.sharding.get_abstract_mesh().abstract_device
    if found is None:
        found = jax.config.values["jax_default_device"] or jax.default_backend()
    if isinstance(found, str):
        found = jax.devices(found)[0]
    return found.platform, found.device_kind
