"""The curved valley of section 4.4: delta momentum against heavy-ball momentum, both tuned.

    python experiments/optimizers/toy.py                        # about 20 seconds on two cores

Minimises r^2 + k (r - th + a sin(w r))^2 from (r, th) = (-3.5, 2), whose optimum is the origin, for
every learning rate and decay of one grid; delta momentum also for each strength of its delta term.
A run arrives at the first step from which its distance to the optimum stays below 0.05. Writes
toy.md (for each learning rate the best of the other settings, and the best overall) and toy.png
(both best paths and steps against learning rate) beside this file. Paths in this valley are
sensitive, so that the best of a grid is partly luck: a second tuning takes the median over 32
starts drawn around (-3.5, 2).
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

from hope_jax.optim import delta_momentum

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = pathlib.Path(__file__).parent
K, A, OMEGA = 5.0, 1.0, 2.0
START = (-3.5, 2.0)
STEPS, NEAR = 3000, 0.05
RATES = np.geomspace(1e-4, 1e-1, 25)
DECAYS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
DELTAS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)  # 0 is heavy-ball


def landscape(point):
    r, theta = point[..., 0], point[..., 1]
    return r**2 + K * (r - theta + A * jnp.sin(OMEGA * r)) ** 2


def path(rate, decay, delta, start=START):
    """The points visited, (STEPS + 1, 2)."""
    optimizer = delta_momentum(rate, decay, delta)
    start = jnp.asarray(start)

    def step(carry, _):
        point, state = carry
        updates, state = optimizer.update(jax.grad(landscape)(point), state, point)
        point = optax.apply_updates(point, updates)
        return (point, state), point

    _, points = jax.lax.scan(step, (start, optimizer.init(start)), length=STEPS)
    return jnp.concatenate([start[None], points])


def arrival(points):
    """First step from which the path stays near the optimum; STEPS + 1 if there is none."""
    far = ~(jnp.linalg.norm(points, axis=-1) < NEAR)
    return jnp.where(far.any(), len(points) - jnp.argmax(far[::-1]), 0)


def main():
    grid = jnp.array(np.meshgrid(RATES, DECAYS, DELTAS, indexing="ij")).reshape(3, -1).T
    # One delta at a time: 0 as a Python number leaves the delta term out altogether.
    steps = np.empty((len(RATES), len(DECAYS), len(DELTAS)), int)
    settings = grid.reshape(len(RATES), len(DECAYS), len(DELTAS), 3)
    for i, delta in enumerate(DELTAS):
        run = jax.jit(jax.vmap(lambda s, delta=delta: arrival(path(s[0], s[1], delta))))
        steps[..., i] = run(settings[..., i, :].reshape(-1, 3)).reshape(len(RATES), len(DECAYS))

    starts = jnp.array(START) + 0.2 * jax.random.normal(jax.random.key(0), (32, 2))
    around = np.empty_like(steps)
    for i, delta in enumerate(DELTAS):
        runs = jax.jit(
            lambda s, delta=delta: jax.lax.map(
                lambda x: jnp.median(
                    jax.vmap(lambda p: arrival(path(x[0], x[1], delta, p)))(starts)
                ),
                s,
                batch_size=len(DECAYS),
            )
        )
        around[..., i] = runs(settings[..., i, :].reshape(-1, 3)).reshape(steps.shape[:2])

    heavy, delta = steps[..., 0], steps[..., 1:].reshape(len(RATES), -1)
    same_decay = steps[..., 1:].min(axis=(0, 2))
    shown = lambda n: "never" if n > STEPS else str(n)

    best_heavy = np.unravel_index(heavy.argmin(), heavy.shape)
    best_delta = np.unravel_index(steps[..., 1:].argmin(), steps[..., 1:].shape)
    lines = [
        f"Steps until the distance to the optimum stays below {NEAR} "
        f"(k = {K}, a = {A}, w = {OMEGA}; at most {STEPS} steps).",
        "",
        "| | steps | learning rate | decay | delta | runs that arrive |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| heavy-ball, best of {heavy.size} | {shown(heavy.min())} | {RATES[best_heavy[0]]:.2e} | "
        f"{DECAYS[best_heavy[1]]} | | {(heavy <= STEPS).sum()} of {heavy.size} |",
        f"| delta momentum, best of {delta.size} | {shown(delta.min())} | "
        f"{RATES[best_delta[0]]:.2e} | {DECAYS[best_delta[1]]} | {DELTAS[1 + best_delta[2]]} | "
        f"{(delta <= STEPS).sum()} of {delta.size} |",
        "",
        f"With the same budget of trials for each delta, {heavy.size} settings; beside the start "
        "of the paper the median over 32 starts around it, tuned by itself:",
        "",
        "| delta | best steps | settings that arrive | best median steps |",
        "| --- | --- | --- | --- |",
        *(
            f"| {d if d else '0 (heavy-ball)'} | {shown(steps[..., i].min())} | "
            f"{(steps[..., i] <= STEPS).sum()} of {heavy.size} | {shown(around[..., i].min())} |"
            for i, d in enumerate(DELTAS)
        ),
        "",
        "At one decay, best learning rate (delta momentum: best delta too):",
        "",
        "| decay | heavy-ball | delta momentum |",
        "| --- | --- | --- |",
        *(
            f"| {decay} | {shown(heavy[:, i].min())} | {shown(same_decay[i])} |"
            for i, decay in enumerate(DECAYS)
        ),
        "",
        "At one learning rate, best decay (delta momentum: best delta too):",
        "",
        "| learning rate | heavy-ball | delta momentum |",
        "| --- | --- | --- |",
        *(
            f"| {rate:.2e} | {shown(heavy[i].min())} | {shown(delta[i].min())} |"
            for i, rate in enumerate(RATES)
        ),
    ]
    (HERE / "toy.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))
    r, theta = np.meshgrid(np.linspace(-4.2, 2.5, 300), np.linspace(-4.5, 4.5, 300))
    values = landscape(jnp.stack([r, theta], axis=-1))
    left.contourf(r, theta, np.log10(values + 1e-3), 30, cmap="Greys")
    for name, colour, where, strength in (
        ("heavy-ball", "tab:blue", best_heavy, 0.0),
        ("delta momentum", "tab:orange", best_delta[:2], DELTAS[1 + best_delta[2]]),
    ):
        points = np.asarray(path(RATES[where[0]], DECAYS[where[1]], strength))
        count = int(arrival(points))
        left.plot(
            *points[: count + 1].T, ".-", color=colour, lw=1, ms=3, label=f"{name}, {count} steps"
        )
    left.plot(0, 0, "k*", ms=10)
    left.set(xlabel="r", ylabel="theta", xlim=(-4.2, 2.5), ylim=(-4.5, 4.5), title="best paths")
    left.legend()
    for name, colour, counts in (
        ("heavy-ball", "tab:blue", heavy.min(axis=1)),
        ("delta momentum", "tab:orange", delta.min(axis=1)),
    ):
        right.loglog(
            RATES, np.where(counts <= STEPS, counts, np.nan), "o-", color=colour, label=name
        )
    right.set(
        xlabel="learning rate", ylabel="steps to the optimum", title="best of the other settings"
    )
    right.legend()
    figure.tight_layout()
    figure.savefig(HERE / "toy.png", dpi=120)


if __name__ == "__main__":
    main()
