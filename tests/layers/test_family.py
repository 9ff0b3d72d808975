"""Published models as settings, each against its own paper's recurrence, token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.layers.family import FAMILY
from hope_jax.layers.titans import SelfModifyingTitans, TitansConfig

WIDTH, HEADS, LENGTH, CHUNK = 6, 2, 7, 3
SIZE = WIDTH // HEADS
NAMES = [name for name in FAMILY if name != "hope"]
RESET = np.array([[0, 0, 0, 0, 0, 1, 0]], bool)  # within the second chunk


SMALL = {"memory_chunk": CHUNK, "generator_chunk": CHUNK, "convolution": 1, "initial_eta": 0.3}
WINDOW = 5  # of the Omega rule: longer than a chunk


@functools.cache
def made(name):
    settings = {**FAMILY[name], **SMALL, "initial_alpha": 0.8}
    if name == "omega":
        settings["window"] = WINDOW
    layer = SelfModifyingTitans(TitansConfig(WIDTH, HEADS, **settings), jnp.float64, jnp.float64)
    x = jax.random.normal(jax.random.key(0), (1, LENGTH, WIDTH), jnp.float64)
    params = nn.unbox(jax.jit(layer.init)(jax.random.key(1), x))["params"]
    return layer, params, x


def rms(x):
    return x / jnp.sqrt(jnp.mean(x * x) + 1e-6)


def network(maps, k):
    """Matrix, or residual MLP (Eq. 89); maps are stored (in, out)."""
    if len(maps) == 1:
        return k @ maps[0]
    return k + jax.nn.gelu(k @ maps[0]) @ maps[1]


def objective(name, out, v):
    error = out - v
    if name == "miras_lp":
        return jnp.sum(jnp.abs(error) ** 3) / 3
    if name == "miras_huber":
        size = jnp.abs(error)
        return jnp.sum(jnp.where(size < 1, error**2 / 2, size - 0.5))
    return -jnp.sum(out * v) if name == "dla" else jnp.sum(error**2) / 2


def by_hand(name, params, x, reset):
    """One sequence, one token after the other, as the papers write it."""
    x = x * params["convolution"]["kernel"][0]
    unit = lambda a: a / jnp.linalg.norm(a)
    project = lambda part, h: x @ params[part]["kernel"][:, h]
    gate = lambda part, h: jax.nn.sigmoid(project(part, h) + params[f"{part}_bias"][h])

    def head(h):
        k, v, q = (project(part, h) for part in "kvq")
        initial = [jnp.zeros((SIZE, SIZE))]
        if "memory_first" in params:
            initial = [
                params[f"memory_{m}"][h] for m in ("first", "second") if f"memory_{m}" in params
            ]
        maps, surprise = initial, [jnp.zeros_like(w) for w in initial]
        start, read, document = maps, [], 0
        for t in range(LENGTH):
            if reset[t]:
                maps, surprise, start = initial, [jnp.zeros_like(w) for w in initial], initial
                document = t
            elif t % CHUNK == 0:
                start = maps
            kt, vt, qt = k[t], v[t], q[t]
            if name in ("linear_attention", "retnet"):
                decay = 1 - 2.0 ** (-5 - h) if name == "retnet" else 1.0
                maps = [decay * maps[0] + jnp.outer(kt, vt)]
                qt = qt / np.sqrt(SIZE)
            elif name in ("delta_net", "gated_delta_net"):
                kt, qt, b = unit(kt), unit(qt), gate("eta", h)[t]
                a = gate("alpha", h)[t] if name == "gated_delta_net" else 1.0
                erased = jnp.eye(SIZE) - b * jnp.outer(kt, kt)
                maps = [a * erased @ maps[0] + b * jnp.outer(kt, vt)]
            elif name == "oja":
                kt, vt, qt, b = unit(kt), unit(vt), unit(qt), gate("eta", h)[t]
                # Oja's rule with k for the input and v for the output: W (N_k, N_v).
                maps = [maps[0] + b * jnp.outer(kt - maps[0] @ vt, vt)]
            else:
                kt, qt, eta = unit(kt), unit(qt), gate("eta", h)[t]

                written = [(1.0, kt, vt)]
                if name == "omega":
                    seen = range(max(document, t - WINDOW + 1), t + 1)
                    written = [(gate("gamma", h)[i], unit(k[i]), v[i]) for i in seen]

                def loss(maps, written=written):
                    return sum(g * objective(name, network(maps, k), v) for g, k, v in written)

                gradient = jax.grad(loss)(start)
                a = gate("alpha", h)[t] if name not in ("ttt_linear", "ttt_mlp") else 1.0
                if name.startswith("titans_lmm"):
                    theta = gate("theta", h)[t]
                    pairs = zip(surprise, gradient, strict=True)
                    if name == "titans_lmm":
                        surprise = [theta * s - eta * g for s, g in pairs]
                    else:
                        surprise = [theta * s + (1 - theta) * (-eta * g) for s, g in pairs]
                    maps = [a * w + s for w, s in zip(maps, surprise, strict=True)]
                else:
                    maps = [a * w - eta * g for w, g in zip(maps, gradient, strict=True)]
            read.append(rms(network(maps, qt)) * params["output_norm"]["scale"])
        return jnp.stack(read)

    outputs = jax.vmap(head)(jnp.arange(HEADS))
    return jnp.einsum("htn,hnd->td", outputs, params["out"]["kernel"])


@pytest.mark.parametrize("name", NAMES)
def test_equals_its_own_recurrence_with_gradients(name, x64):
    layer, params, x = made(name)
    weights = jax.random.normal(jax.random.key(2), x.shape, jnp.float64)

    def ours(params, x):
        y = layer.apply({"params": params}, x, None, RESET)[0]
        return jnp.sum(y * weights), y

    def theirs(params, x):
        y = jnp.stack(
            [by_hand(name, params, row, flags) for row, flags in zip(x, RESET, strict=True)]
        )
        return jnp.sum(y * weights), y

    (_, y), gradient = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(params, x)
    (_, expected), wanted = jax.jit(jax.value_and_grad(theirs, (0, 1), has_aux=True))(params, x)
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-10)
    jax.tree.map_with_path(
        lambda path, a, b: np.testing.assert_allclose(
            a, b, rtol=1e-8, atol=1e-9, err_msg=jax.tree_util.keystr(path)
        ),
        gradient,
        wanted,
    )
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient)), "a parameter is not used"


def test_delta_net_in_chunks_is_the_well_known_one(x64):
    """`(I + tril(diag(b) K K^T, -1))^-1 diag(b)` (Yang et al. 2024), for one chunk and one head."""
    layer, params, x = made("delta_net")
    x, params = x[:1, :CHUNK], dict(params)
    y, _ = layer.apply({"params": params}, x)
    row = x[0] * params["convolution"]["kernel"][0]
    expected = 0.0
    for h in range(HEADS):
        k, v, q = (row @ params[part]["kernel"][:, h] for part in "kvq")
        k, q = (a / jnp.linalg.norm(a, axis=-1, keepdims=True) for a in (k, q))
        b = jax.nn.sigmoid(row @ params["eta"]["kernel"][:, h] + params["eta_bias"][h])
        system = jnp.eye(CHUNK) + jnp.tril(b[:, None] * (k @ k.T), -1)
        u = jnp.linalg.solve(system, b[:, None] * v)
        read = jnp.tril(q @ k.T) @ u
        read = read / jnp.sqrt(jnp.mean(read**2, -1, keepdims=True) + 1e-6)
        expected += read * params["output_norm"]["scale"] @ params["out"]["kernel"][h]
    np.testing.assert_allclose(y[0], expected, rtol=1e-9, atol=1e-10)
