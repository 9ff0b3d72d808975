"""Self-modifying Titans written as an independent loop over tokens in NumPy, float64."""

import numpy as np

from tests.memory.reference import gelu

NUMBERS = ("eta", "alpha")


def unit(x):
    return x / max(np.linalg.norm(x), 0.01)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def convolved(kernel, x, reset):
    """Tap 0 is the token's own, the next that of the token before; none looks over a reset."""
    window, out, document = len(kernel), np.zeros_like(x), 0
    for t in range(len(x)):
        document = t if reset[t] else document
        for s in range(max(document, t - window + 1), t + 1):
            out[t] += kernel[t - s] * x[s]
    return out


def apply(memory, x, residual):
    inner, outer = memory
    out = gelu(x @ inner)[0] @ outer
    return x + out if residual else out


def read_layer(config, params, x, reset):
    """Reads one sequence (T, D) with residual MLPs; returns outputs and, by head and name, weights."""
    x = convolved(params["convolution"]["kernel"], x, reset)
    heads = [read_head(config, params, x, reset, h) for h in range(config.num_heads)]
    out = 0.0
    for (y, _), kernel in zip(heads, params["out"]["kernel"], strict=True):
        if config.output_norm:
            size = np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-6)
            y = y / size * params["output_norm"]["scale"]
        out = out + y @ kernel
    return out, [memories for _, memories in heads]


def read_head(config, params, x, reset, h):
    project = lambda name, row: row @ params[name]["kernel"][:, h]
    names = (*config.adaptive, "memory")
    initial = {n: [params[f"{n}_first"][h], params[f"{n}_second"][h]] for n in names}
    chunk = {n: config.generator_chunk for n in names} | {"memory": config.memory_chunk}
    weights, start, outputs = initial, initial, []
    moving = {n: [np.zeros_like(w) for w in initial[n]] for n in names}
    for t, row in enumerate(x):
        if reset[t]:
            weights, start = initial, initial
            moving = {n: [np.zeros_like(w) for w in initial[n]] for n in names}

        def raw(name, row=row, start=start):
            if name in config.adaptive:
                given = project(f"{name}_in" if config.own_projections else "in", row)
                return apply(start[name], given, residual=name not in NUMBERS)
            return project(name, row)

        k, v, q = unit(raw("k")), unit(raw("v")), unit(raw("q"))
        eta = config.largest_eta * sigmoid(np.squeeze(raw("eta")) + params["eta_bias"][h])
        alpha = 1.0
        if config.retention == "gate":
            alpha = sigmoid(np.squeeze(raw("alpha")) + params["alpha_bias"][h])
        beta = eta
        if config.strength == "gate":
            beta = project("strength", row) + params["strength_bias"][h]
            beta = min(config.strength_max * sigmoid(beta), 1 + alpha)
        theta = 0.0
        if config.momentum != "none":
            moved = project("theta", row) if config.momentum == "gate" else 0.0
            theta = sigmoid(moved + params["theta_bias"][h])
        seen = {"before": weights, "chunk": start}[config.read]
        outputs.append(apply(seen["memory"], q, residual=True))

        new, pushed = {}, {}
        for n in names:
            inner, outer = start[n]
            residual = n not in NUMBERS
            target = v
            if config.generated_target or n in NUMBERS:
                target = apply(start[n], v, residual)
            d = apply(start[n], k, residual) - target
            hidden, slope = gelu(k @ inner)
            back = (outer @ d) * slope
            on_first = beta if config.projector in ("per_map", "first_map") else 0.0
            on_second = beta if config.projector in ("per_map", "second_map") else 0.0
            maps = ((k, back, on_first), (hidden, d, on_second))
            step = eta * (1 - theta) if config.dampening else eta
            if config.bounded_step:
                gains = [(k @ k) * (back @ back) / (d @ d), hidden @ hidden]
                if config.generated_target or n in NUMBERS:
                    at_value, slope_there = gelu(v @ inner)
                    back_there = (outer @ d) * slope_there
                    gains[0] += max(0, -(k @ v) * (back @ back_there) / (d @ d))
                    gains[1] += max(0, -(hidden @ at_value))
                gain, kept = 0.0, 1.0
                for (z, _, strength), moves in zip(maps, gains, strict=True):
                    lost = 1 - alpha + strength * min(1, z @ z)
                    gain += moves / min(1, max(1 / chunk[n], lost))
                    kept = min(kept, 1 - lost if lost > 1 else (1 - lost) ** chunk[n])
                limit = max(1e-6, 1 + (kept if config.flips else min(kept, 0)))
                step = step * limit / max(limit, step / (1 - theta) * gain)
            new[n], pushed[n] = [], []
            for w, s, (z, error, strength) in zip(weights[n], moving[n], maps, strict=True):
                u = z / max(1, np.linalg.norm(z))
                s = theta * s - step * np.outer(z, error)
                pushed[n].append(s)
                new[n].append((alpha * np.eye(len(z)) - strength * np.outer(u, u)) @ w + s)
        weights, moving = new, pushed
        start = {n: weights[n] if (t + 1) % chunk[n] == 0 else start[n] for n in names}
    return np.stack(outputs), weights
