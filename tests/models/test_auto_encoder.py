"""What an auto-encoder tells, beside NumPy's from the encoder's activations."""

import dataclasses
import math

import jax
import numpy as np
from flax import linen as nn

from hope_jax.memory.kernels import choice
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.models.auto_encoder import AutoEncoder
from hope_jax.models.parameter_count import parameter_shapes
from hope_jax.training.optimizer import matrices

CONFIG = LanguageModelConfig(
    vocab_size=11, width=6, num_layers=1, num_heads=1, mlp_width=4, sequence_layer="attention"
)


def normed(x, scale):
    return scale * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def test_the_whole_text_is_told_from_the_last_activations():
    model = AutoEncoder(CONFIG)
    tokens = np.random.default_rng(0).integers(11, size=(2, 5)).astype(np.int32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    keys = iter(jax.random.split(jax.random.key(1), 100))
    moved = lambda w: w + 0.3 * jax.random.normal(next(keys), w.shape)
    params = jax.tree.map(moved, params)
    run = jax.jit(
        lambda params: (
            model.apply({"params": params}, tokens),
            model.apply({"params": params}, tokens, tokens, method="token_losses"),
            jax.grad(
                lambda params: model.apply(
                    {"params": params}, tokens, tokens, method="token_losses"
                ).sum()
            )(params),
        )
    )
    (logits, _), losses, gradients = run(params)
    known = {name: w for name, w in params.items() if not name.startswith("decoder")}
    encoder = jax.jit(
        lambda params: LanguageModel(CONFIG).apply({"params": params}, tokens, method="hidden")
    )
    last = np.asarray(encoder(known)[0], np.float64)[:, -1]
    for position in range(5):
        turned = [position, position * 10_000**-0.5, position * 1e-4]
        x = last + np.concatenate([np.sin(turned), np.cos(turned)])
        for layer in range(2):
            x = normed(x, np.asarray(params[f"decoder_norms_{layer}"]["scale"]))
            dense = params[f"decoder_{layer}"]
            x = gelu(x @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"]))
        x = normed(x, np.asarray(params["decoder_norms_2"]["scale"]))
        wanted = x @ np.asarray(params["embedding"]).T
        np.testing.assert_allclose(logits[:, position], wanted, rtol=1e-4, atol=1e-4)
        probability = np.exp(wanted) / np.exp(wanted).sum(axis=1, keepdims=True)
        told = -np.log(probability[np.arange(2), tokens[:, position]])
        np.testing.assert_allclose(losses[:, position], told, rtol=1e-4, atol=1e-4)
    assert all(np.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(gradients))


def test_every_matrix_of_the_decoder_is_one_for_m3():
    shapes = jax.eval_shape(
        AutoEncoder(CONFIG).init, jax.random.key(0), np.zeros((1, 1), np.int32)
    )["params"]
    rules = matrices(nn.unbox(shapes))
    assert rules["decoder_0"]["kernel"] is not None and rules["decoder_1"]["bias"] is None


def test_its_parameters_are_counted_with_its_decoder():
    made = jax.eval_shape(AutoEncoder(CONFIG).init, jax.random.key(0), np.zeros((1, 1), np.int32))
    assert parameter_shapes(AutoEncoder(CONFIG)) == nn.unbox(made)["params"]


def test_shapes_are_known_before_any_device_is(monkeypatch):
    """Processes of a launch must meet before they start their devices."""
    monkeypatch.setattr(choice, "device", None)
    parameter_shapes(AutoEncoder(dataclasses.replace(CONFIG, sequence_layer="titans")))
