"""What optimisers are compared on: two small language models and a small image classifier.

`language` is the package's own two-layer Transformer on the bytes of the Python standard library, its
layers stacked by a scan. `plain` is a Transformer written here in plain JAX, another architecture on
other text: every second file of the library, learned positions, GELU, an untied head. `vision` is a
two-layer ViT on generated images: a class's smooth pattern, shifted anywhere, under noise.
"""

import pathlib
import sysconfig
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.optim import dimension_numbers_by_path


class Task(NamedTuple):
    """A model to train: parameters from a key, loss of a batch, batch from a key."""

    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    batch: Callable[[jax.Array], Any]
    held_out: list[Any]
    dimension_numbers: Callable[[Any], Any]
    size: str
    steps: int


def library(
    which: slice, batch_size: int, length: int
) -> tuple[Callable[[jax.Array], jax.Array], list[jax.Array], str]:
    """Batches of the standard library's bytes: by a key, eight held out, and what they are."""
    files = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[which]
    text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
    train, rest = jnp.asarray(text[: -len(text) // 20]), text[-len(text) // 20 :]

    def batch(key: jax.Array) -> jax.Array:
        start = jax.random.randint(key, (batch_size, 1), 0, len(train) - length - 1)
        return train[start + jnp.arange(length + 1)].astype(jnp.int32)

    held_out = rest[: 8 * batch_size * (length + 1)].reshape(8, batch_size, length + 1)
    size = f"{len(text):,} bytes, {batch_size} x {length} tokens a step"
    return batch, list(jnp.asarray(held_out, jnp.int32)), size


def plain() -> Task:
    """A byte Transformer without any library but JAX."""
    width, heads, layers, batch_size, length = 64, 4, 2, 16, 96
    draw, held_out, size = library(slice(0, None, 2), batch_size, length)
    shapes = {
        "embedding": (256, width),
        "position": (length, width),
        "head": (width, 256),
        "final_norm": (width,),
    }
    for layer in range(layers):
        shapes |= {
            f"query_{layer}": (width, width),
            f"key_{layer}": (width, width),
            f"value_{layer}": (width, width),
            f"out_{layer}": (width, width),
            f"up_{layer}": (width, 4 * width),
            f"down_{layer}": (4 * width, width),
            f"norm_a_{layer}": (width,),
            f"norm_b_{layer}": (width,),
        }

    def init(key: jax.Array) -> dict[str, jax.Array]:
        params = {}
        for index, (name, shape) in enumerate(shapes.items()):
            draw = jax.random.normal(jax.random.fold_in(key, index), shape)
            size = 0.02 if name in ("embedding", "position") else shape[0] ** -0.5
            params[name] = jnp.ones(shape) if len(shape) == 1 else size * draw
        return params

    def normalize(x: jax.Array, gain: jax.Array) -> jax.Array:
        return gain * x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    def loss(params: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        x = params["embedding"][inputs] + params["position"]
        split = lambda y: y.reshape(*y.shape[:-1], heads, width // heads)
        for layer in range(layers):
            y = normalize(x, params[f"norm_a_{layer}"])
            q, k, v = (split(y @ params[f"{name}_{layer}"]) for name in ("query", "key", "value"))
            y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
            x = x + y.reshape(x.shape) @ params[f"out_{layer}"]
            y = normalize(x, params[f"norm_b_{layer}"])
            x = x + jax.nn.gelu(y @ params[f"up_{layer}"]) @ params[f"down_{layer}"]
        logits = normalize(x, params["final_norm"]) @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    inner = MuonDimensionNumbers()
    rules = [(r"(query|key|value|out|up|down)_\d", inner), ("", None)]
    return Task(init, loss, draw, held_out, dimension_numbers_by_path(rules), size, steps=300)


def language() -> Task:
    batch_size, length = 16, 96
    draw, held_out, size = library(slice(None), batch_size, length)
    config = LanguageModelConfig(
        vocab_size=256,
        width=64,
        num_layers=2,
        num_heads=2,
        mlp_width=128,
        sequence_layer="attention",
        attention_window=length,
    )
    model = LanguageModel(config)

    def loss(params, tokens):
        losses = model.apply(
            {"params": params}, tokens[:, :-1], tokens[:, 1:], method="token_losses"
        )
        return losses.mean()

    return Task(
        lambda key: nn.unbox(model.init(key, draw(key)[:, :-1])["params"]),
        loss,
        draw,
        held_out,
        dimension_numbers_by_path(
            [
                (r"attention/(query|key|value)", MuonDimensionNumbers(1, (2, 3))),
                (r"attention/out", MuonDimensionNumbers((1, 2), 3)),
                (r"(up|gate|down)/kernel", MuonDimensionNumbers(1, 2)),
                ("", None),
            ]
        ),
        size,
        steps=250,
    )


class VisionTransformer(nn.Module):
    """Patches of 4 x 4, learned positions, two pre-norm blocks, mean pooling."""

    width: int = 64
    classes: int = 10

    @nn.compact
    def __call__(self, images):
        b, side, _ = images.shape
        grid = images.reshape(b, side // 4, 4, side // 4, 4).transpose(0, 1, 3, 2, 4)
        x = nn.Dense(self.width, name="patch_embedding")(grid.reshape(b, -1, 16))
        x += self.param("position_embedding", nn.initializers.normal(0.02), x.shape[1:])
        for i in range(2):
            h = nn.LayerNorm(name=f"norm_{i}")(x)
            x += nn.MultiHeadDotProductAttention(2, name=f"attention_{i}")(h)
            h = nn.LayerNorm(name=f"mlp_norm_{i}")(x)
            h = nn.gelu(nn.Dense(2 * self.width, name=f"up_{i}")(h))
            x += nn.Dense(self.width, name=f"down_{i}")(h)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm(name="norm")(x).mean(axis=1))


def vision() -> Task:
    model, side, batch_size = VisionTransformer(), 24, 64
    noise = jax.random.normal(jax.random.key(99), (10, side, side))
    low = jnp.abs(jnp.fft.fftfreq(side) * side) <= 3
    patterns = jnp.fft.ifft2(jnp.fft.fft2(noise) * low[:, None] * low[None]).real
    patterns = patterns / patterns.std(axis=(1, 2), keepdims=True)

    def batch(key):
        label_key, shift_key, noise_key = jax.random.split(key, 3)
        labels = jax.random.randint(label_key, (batch_size,), 0, 10)
        shifts = jax.random.randint(shift_key, (batch_size, 2), 0, side)
        images = jax.vmap(lambda p, s: jnp.roll(p, s, axis=(0, 1)))(patterns[labels], shifts)
        return images + 2.5 * jax.random.normal(noise_key, images.shape), labels

    def loss(params, data):
        images, labels = data
        logits = model.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return Task(
        lambda key: model.init(key, batch(key)[0])["params"],
        loss,
        batch,
        [batch(jax.random.key(10_000 + i)) for i in range(8)],
        dimension_numbers_by_path(
            [
                (r"attention_\d/(query|key|value)/kernel", MuonDimensionNumbers(0, (1, 2))),
                (r"attention_\d/out/kernel", MuonDimensionNumbers((0, 1), 2)),
                (r"(up|down)_\d/kernel", MuonDimensionNumbers()),
                ("", None),
            ]
        ),
        f"images of {side} x {side}, fresh every step, {batch_size} a step",
        steps=400,
    )
