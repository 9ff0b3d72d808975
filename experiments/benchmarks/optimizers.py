"""Time and state of the optimisers' updates, one JSON line a measurement.

    python experiments/benchmarks/optimizers.py                 # 24 of 512x512, 8 of 512x1536
    python experiments/benchmarks/optimizers.py --small         # a check that it runs, seconds

Lines: `update` (milliseconds of a jitted update, averaged over a slow step of M3, the median of
several), `state` (bytes a parameter), `newton_schulz` (the ways to run it on the same matrices),
`count` (M3 against the number of matrices of one shape). Optimisers take turns, so that a
disturbance of the machine falls on all of them; `spread` is (largest - smallest) / median.
"""

import argparse
import json
import os
import statistics
import time

import jax
import jax.numpy as jnp
import optax

from hope_jax.optim import adamuon, m3, newton_schulz
from hope_jax.optim.newton_schulz import QUINTIC, _iterate

STEPS = 16  # whole slow steps of M3


def matrices(shapes: list[tuple[tuple[int, int], int]]) -> dict[str, jax.Array]:
    """Random matrices, named by shape and index."""
    key = jax.random.key(0)
    tree = {}
    for shape, number in shapes:
        for i in range(number):
            key, use = jax.random.split(key)
            tree[f"{shape[0]}x{shape[1]}_{i}"] = jax.random.normal(use, shape)
    return tree


def emit(**line: object) -> None:
    print(json.dumps(line), flush=True)


class Candidate:
    """An optimiser with its state, stepped a slow step at a time."""

    def __init__(self, optimizer: optax.GradientTransformation, params: dict[str, jax.Array]):
        self.params = params
        self.state = jax.jit(optimizer.init)(params)
        # The old state is donated as in a training step, so that nothing is copied to keep it.
        self.update = jax.jit(optimizer.update, donate_argnums=1)
        self.updates = None

    def slow_step(self, steps: int) -> float:
        """Seconds per update, averaged over `steps` updates."""
        start = time.perf_counter()
        for _ in range(steps):
            self.updates, self.state = self.update(self.params, self.state, self.params)
        jax.block_until_ready((self.updates, self.state))
        return (time.perf_counter() - start) / steps


def measure(
    optimizers: dict[str, optax.GradientTransformation],
    params: dict[str, jax.Array],
    repeats: int,
    steps: int,
) -> dict[str, tuple[float, float]]:
    """Median milliseconds and spread of each optimiser's update, taking turns."""
    candidates = {name: Candidate(opt, params) for name, opt in optimizers.items()}
    for candidate in candidates.values():
        candidate.slow_step(1)
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(repeats):
        for name, candidate in candidates.items():
            times[name].append(1e3 * candidate.slow_step(steps))
    return {
        name: (statistics.median(ts), (max(ts) - min(ts)) / statistics.median(ts))
        for name, ts in times.items()
    }


def state_bytes(optimizer: optax.GradientTransformation, params: dict[str, jax.Array]) -> float:
    """Bytes of state per parameter."""
    leaves = jax.tree.leaves(jax.eval_shape(optimizer.init, params))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return total / sum(leaf.size for leaf in jax.tree.leaves(params))


def time_function(function: object, argument: object, repeats: int) -> float:
    """Median milliseconds of a jitted function."""
    jitted = jax.jit(function)  # type: ignore[call-overload]
    jax.block_until_ready(jitted(argument))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(jitted(argument))
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="matrices of 32x32 and 32x96")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS, help="updates in a measurement")
    arguments = parser.parse_args()
    side = 32 if arguments.small else 512
    params = matrices([((side, side), 24), ((side, 3 * side), 8)])
    emit(
        kind="machine",
        platform=jax.default_backend(),
        jax=jax.__version__,
        optax=optax.__version__,
        cores=os.cpu_count(),
        load=os.getloadavg()[0],
    )

    optimizers = {
        "adamw": optax.adamw(1e-3),
        "optax.contrib.muon": optax.contrib.muon(1e-3),
        "m3": m3(1e-3),
        "m3, every step slow": m3(1e-3, slow_every=1),
        "adamuon": adamuon(1e-3),
    }
    for name, optimizer in optimizers.items():
        emit(kind="state", optimizer=name, bytes_per_parameter=state_bytes(optimizer, params))

    result = measure(optimizers, params, arguments.repeats, arguments.steps)
    muon = result["optax.contrib.muon"][0]
    for name, (median, spread) in result.items():
        emit(
            kind="update",
            optimizer=name,
            milliseconds=round(median, 2),
            of_muon=round(median / muon, 3),
            spread=round(spread, 3),
        )

    def by_shape(tree: dict[str, jax.Array]) -> list[jax.Array]:
        shapes = sorted({leaf.shape for leaf in tree.values()})
        return [jnp.stack([x for x in tree.values() if x.shape == s]) for s in shapes]

    per_step = QUINTIC * 5
    ways = {
        "newton_schulz on stacks": lambda tree: [newton_schulz(x) for x in by_shape(tree)],
        "batched products": lambda tree: [_iterate(x, per_step, None) for x in by_shape(tree)],
        "one matrix after another": lambda tree: [
            _iterate(x, per_step, None) for x in tree.values()
        ],
        "optax.contrib": lambda tree: [
            optax.contrib._muon.orthogonalize_via_newton_schulz(x, jnp.array(QUINTIC[0]))
            for x in tree.values()
        ],
    }
    for name, way in ways.items():
        milliseconds = time_function(way, params, arguments.repeats)
        emit(kind="newton_schulz", way=name, milliseconds=round(milliseconds, 2))

    for number in (1, 2, 4, 8, 16, 32):
        some = matrices([((side, side), number)])
        median, spread = measure({"m3": m3(1e-3)}, some, arguments.repeats, arguments.steps)["m3"]
        emit(
            kind="count",
            matrices=number,
            side=side,
            milliseconds=round(median, 2),
            milliseconds_per_matrix=round(median / number, 3),
            spread=round(spread, 3),
        )


if __name__ == "__main__":
    main()
