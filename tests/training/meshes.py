"""Losses of the training step on meshes of eight devices, against those of one.

    python tests/training/meshes.py              # all models on all meshes, in float32
    python tests/training/meshes.py --float64    # the same to rounding of another order

As a script, which takes some twenty minutes, it prints a line for every model and mesh: the largest
relative difference of a loss under AdamW and under M3, and the control, which is one device that is given
the rows of the batch in reverse: what another order of the same sums does by itself. It ends with 1 where
a mesh is further off than the bound.
"""

# ruff: noqa: E402
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh

import tests.conftest  # noqa: F401
from hope_jax import optim
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.training.optimizer import matrices
from hope_jax.training.sharding import AXES
from hope_jax.training.step import abstract_state, init_state, make_train_step, put_batch
from tests.models.exact_attention import exact_attention

# (data, fsdp, sequence, tensor)
ONE = (1, 1, 1, 1)
MESHES = (
    (8, 1, 1, 1),
    (1, 8, 1, 1),
    (1, 1, 8, 1),
    (1, 1, 1, 8),
    (2, 2, 1, 2),
    (2, 1, 4, 1),
    (1, 2, 2, 2),
)
OPTIMIZERS = ("adamw", "m3")
ATTENTION = {"sequence_layer": "attention"}
TITANS = {"memory_chunk": 2, "generator_chunk": 4}
MODELS = {
    "transformer": ATTENTION,
    "hope_attention": {**ATTENTION, "cms_levels": 2},
    "in_context_levels": {
        **ATTENTION,
        "cms_levels": 2,
        "in_context": {"chunks": (4, 8), "step_size": 1.0},
    },
    "local_levels": {
        **ATTENTION,
        "cms_levels": 2,
        "in_context": {"chunks": (4, 8), "objective": "local", "step_size": 0.05},
    },
    "hope": {"sequence_layer": "titans", "cms_levels": 2, "titans": TITANS},
    # Compiles in a third of the time.
    "small_hope": {
        "sequence_layer": "titans",
        "titans": {**TITANS, "network": "matrix", "adaptive": ("k",)},
    },
}
VOCAB, BATCH, TOKENS, STEPS = 16, 8, 32, 3


def model_of(name: str, dtype: str = "float32", blocks: int = 1) -> LanguageModel:
    """A model of few blocks, whose heads and widths eight devices divide."""
    sizes = dict(vocab_size=VOCAB, width=16, num_layers=blocks, num_heads=8, mlp_width=24)
    kinds = dict(attention_window=8, dtype=dtype, param_dtype=dtype)
    return LanguageModel(LanguageModelConfig(**sizes, **kinds, **MODELS[name]))


def mesh_of(shape: tuple[int, ...]) -> Mesh:
    """A mesh of the first devices."""
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_of(reverse: bool = False) -> dict[str, np.ndarray]:
    """Rows with documents that end anywhere, and as many weights as it happens."""
    random = np.random.default_rng(0)
    shape = (BATCH, TOKENS)
    batch = dict(
        tokens=random.integers(0, VOCAB, shape, dtype=np.int32),
        targets=random.integers(0, VOCAB, shape, dtype=np.int32),
        reset=random.random(shape) < 0.1,
        weights=(random.random(shape) < 0.7).astype(np.float32),
    )
    return {name: rows[::-1] for name, rows in batch.items()} if reverse else batch


def either_optimizer(dtype: str) -> optax.GradientTransformationExtraArgs:
    """AdamW or M3, as a number in the state says: one program for two optimisers."""
    adamw = optax.with_extra_args_support(optax.adamw(0.01))
    # The slow momentum takes part from the third step on.
    m3 = optim.m3(0.01, slow_every=2, slow_dtype=dtype, weight_dimension_numbers=matrices)

    def init(params):
        return jnp.zeros((), jnp.int32), adamw.init(params), m3.init(params)

    def update(gradients, state, params=None, **_):
        which, *states = state

        def first(states):
            updates, new = adamw.update(gradients, states[0], params)
            return updates, [new, states[1]]

        def second(states):
            updates, new = m3.update(gradients, states[1], params)
            return updates, [states[0], new]

        updates, states = jax.lax.cond(which == 0, first, second, states)
        return updates, (which, *states)

    return optax.GradientTransformationExtraArgs(init, update)


class Runs:
    """Runs of one model, which all begin with the same parameters."""

    def __init__(self, name: str, dtype: str = "float32", blocks: int = 1):
        self.model, self.optimizer = model_of(name, dtype, blocks), either_optimizer(dtype)
        start = init_state(self.model, self.optimizer, mesh_of(ONE), 0)
        self.start = jax.tree.map(np.array, start)  # copied: steps give up what they are given

    def losses(self, shape: tuple[int, ...], *batches: dict[str, np.ndarray]) -> np.ndarray:
        """Losses on a mesh, (batches, optimisers, steps)."""
        mesh = mesh_of(shape)
        step = make_train_step(self.model, self.optimizer, mesh)
        places = jax.tree.map(
            lambda leaf: leaf.sharding, abstract_state(self.model, self.optimizer, mesh)
        )
        losses = np.zeros((len(batches), len(OPTIMIZERS), STEPS))
        for index, batch in enumerate(batches):
            for which in range(len(OPTIMIZERS)):
                optimizer = (np.int32(which), *self.start.optimizer[1:])
                state = jax.device_put(self.start._replace(optimizer=optimizer), places)
                for number in range(STEPS):
                    state, metrics = step(state, put_batch(batch, mesh))
                    losses[index, which, number] = metrics.loss
        return losses


def difference(losses: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The largest relative difference, for each optimiser."""
    return np.abs(losses / expected - 1).max(axis=-1)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--only", choices=MODELS, nargs="*", default=list(MODELS))
    given = parser.parse_args()
    dtype, bound = "float32", 1e-5
    if given.float64:
        dtype, bound = "float64", 1e-10
        jax.config.update("jax_enable_x64", True)
        jax.nn.dot_product_attention = exact_attention
    worst = 0.0
    for name in given.only:
        runs = Runs(name, dtype)
        single, reverse = runs.losses(ONE, batch_of(), batch_of(reverse=True))
        found = {"control": reverse}
        for shape in MESHES:
            (found[str(shape)],) = runs.losses(shape, batch_of())
        for where, losses in found.items():
            off = difference(losses, single)
            worst = max(worst, off.max())
            told = "  ".join(f"{kind} {x:.1e}" for kind, x in zip(OPTIMIZERS, off, strict=True))
            print(f"{name:18}{where:12}{told}", flush=True)
        jax.clear_caches()
    sys.exit(not worst < bound)


if __name__ == "__main__":
    main()
