"""The memory update written as an independent loop over tokens in NumPy, float64."""

import numpy as np


def gelu(x):
    """The tanh form, with its derivative."""
    c = np.sqrt(2 / np.pi)
    inner = c * (x + 0.044715 * x**3)
    tanh = np.tanh(inner)
    slope = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * c * (1 + 3 * 0.044715 * x**2)
    return 0.5 * x * (1 + tanh), slope


def network(weights, x):
    """M(x): one matrix, or the residual MLP."""
    if len(weights) == 1:
        return x @ weights[0]
    return x + gelu(x @ weights[0])[0] @ weights[1]


def loop(
    initial,
    keys,
    values,
    queries,
    eta,
    alpha,
    beta,
    theta,
    *,
    chunk,
    objective,
    projector,
    momentum,
    decay_to,
    read,
    generated_target=False,
    reset=None,
    window=1,
    gamma=None,
):
    """Reads and writes token by token; returns what was read, the weights and the momenta."""
    weights = [w.copy() for w in initial]
    start = [w.copy() for w in initial]
    moving = [np.zeros_like(w) for w in initial]
    outputs, document = [], 0
    for t, q in enumerate(queries):
        if reset is not None and reset[t]:
            weights = [w.copy() for w in initial]
            start = [w.copy() for w in initial]
            moving = [np.zeros_like(w) for w in initial]
            document = t
        before = [w.copy() for w in weights]
        steps = [np.zeros_like(w) for w in initial]
        for s in range(max(document, t - window + 1), t + 1):
            target = network(start, values[s]) if generated_target else values[s]
            d = network(start, keys[s]) - target if objective == "l2" else -target
            if len(start) == 1:
                inputs, errors = [keys[s]], [d]
            else:
                hidden, slope = gelu(keys[s] @ start[0])
                inputs, errors = [keys[s], hidden], [(start[1] @ d) * slope, d]
            weight = 1.0 if gamma is None else gamma[s]
            for step, x, error in zip(steps, inputs, errors, strict=True):
                step -= eta[t] * weight * np.outer(x, error)
        for i, (x, step) in enumerate(zip(inputs, steps, strict=True)):
            if momentum:
                moving[i] = theta[t] * moving[i] + step
                step = moving[i]
            origin = initial[i] if decay_to == "initial" else np.zeros_like(initial[i])
            held = weights[i] - origin
            if projector == "values":
                v = values[t] / max(1, np.linalg.norm(values[t]))
                shrink = alpha[t] * np.eye(len(v)) - beta[t] * np.outer(v, v)
                weights[i] = held @ shrink + step + origin
                continue
            shrink = alpha[t] * np.eye(len(x))
            if projector in ("per_map", ("first_map", "second_map")[i]):
                u = x / max(1, np.linalg.norm(x))
                shrink -= beta[t] * np.outer(u, u)
            weights[i] = shrink @ held + step + origin
        outputs.append(network({"before": before, "after": weights, "chunk": start}[read], q))
        if (t + 1) % chunk == 0:
            start = [w.copy() for w in weights]
    return np.stack(outputs), weights, moving
