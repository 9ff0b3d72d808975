"""This checkout's speed against another one's, in turns in one process, one JSON line a measurement.

    git worktree add /tmp/before COMMIT
    taskset -c 0 python experiments/benchmarks/against.py /tmp/before
    taskset -c 0 python experiments/benchmarks/against.py /tmp/before layer m3   # only what is named

Machines change their speed by more than a change of code does: both versions are therefore imported
into one process, and each run of one follows a run of the other. `ratio` is the median of the pairs'
ratios, this checkout's seconds over the other's, with its standard error.

`layer` and `static` are forward and exact backward passes of experiments/benchmarks/memory.py's `layer`
(chunked) and `titans_pytorch`; `m3` is an update of 12 matrices of 256 x 256, a slow step in 16.
"""

import argparse
import importlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

HERE = Path(__file__).parents[2]


def imported(checkout: Path) -> Callable[[str], Any]:
    """Imports modules of the package from a checkout, beside those of the other one."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("hope_jax", "memory")]:
        del sys.modules[name]
    path = [str(checkout), str(checkout / "experiments/benchmarks")]
    sys.path[:0] = path
    modules = {name: importlib.import_module(name) for name in ("memory", "hope_jax.optim")}
    for entry in path:
        sys.path.remove(entry)
    return modules.__getitem__


def layer_pass(benchmark: Any, config: Any) -> Callable[[], None]:
    layer, params, x = benchmark.make(config, benchmark.BATCH, benchmark.LENGTH)
    function = benchmark.gradient(lambda params, x: layer.apply(params, x)[0])
    return lambda: jax.block_until_ready(function(params, x))


def m3_updates(optim: Any) -> Callable[[], None]:
    params = {str(i): jax.random.normal(jax.random.key(i), (256, 256)) for i in range(12)}
    optimizer = optim.m3(1e-3, slow_every=16)
    update = jax.jit(optimizer.update, donate_argnums=1)
    state = jax.jit(optimizer.init)(params)

    def run() -> None:
        nonlocal state
        for _ in range(16):
            updates, state = update(params, state, params)
        jax.block_until_ready((updates, state))

    return run


CASES: dict[str, Callable[[Callable[[str], Any]], Callable[[], None]]] = {
    "layer": lambda module: layer_pass(
        module("memory"),
        module("memory").TitansConfig(module("memory").WIDTH, module("memory").HEADS),
    ),
    "static": lambda module: layer_pass(module("memory"), module("memory").STATIC),
    "m3": lambda module: m3_updates(module("hope_jax.optim")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="a checkout of another commit")
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; none: all"
    )
    parser.add_argument("--pairs", type=int, default=40)
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"{', '.join(sorted(unknown))} not among the cases: {', '.join(CASES)}")
    if not (arguments.other / "hope_jax").is_dir():
        parser.error(f"{arguments.other} holds no hope_jax: give the root of a checkout")
    for name in arguments.cases or CASES:
        runs = []
        for checkout in (HERE, arguments.other):
            run = CASES[name](imported(checkout))
            run()  # compiled while this checkout's modules are the imported ones
            runs.append(run)
        pairs = []
        for index in range(arguments.pairs):
            seconds = [0.0, 0.0]
            for which in (0, 1) if index % 2 else (1, 0):
                start = time.perf_counter()
                runs[which]()
                seconds[which] = time.perf_counter() - start
            pairs.append(seconds)
        ratios = [new / old for new, old in pairs]
        print(
            json.dumps(
                {
                    "bench": name,
                    "platform": jax.default_backend(),
                    "milliseconds": round(1e3 * statistics.median(new for new, _ in pairs), 2),
                    "other_milliseconds": round(
                        1e3 * statistics.median(old for _, old in pairs), 2
                    ),
                    "ratio": round(statistics.median(ratios), 4),
                    "standard_error": round(
                        1.25 * statistics.stdev(ratios) / math.sqrt(len(ratios)), 4
                    ),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
