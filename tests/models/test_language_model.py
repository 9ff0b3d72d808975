import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.layers.family import FAMILY
from hope_jax.models import LanguageModel, LanguageModelConfig, init_state

BATCH, TOKENS = 2, 13
SMALL = LanguageModelConfig(
    vocab_size=11, width=8, num_layers=2, num_heads=2, mlp_width=12, attention_window=5
)
TRANSFORMER = dataclasses.replace(SMALL, sequence_layer="attention")
CONFIGS = {
    "transformer": TRANSFORMER,
    "hope": dataclasses.replace(
        SMALL, cms_levels=2, titans={"memory_chunk": 2, "generator_chunk": 4, "convolution": 3}
    ),
    "hope_attention": dataclasses.replace(TRANSFORMER, cms_levels=2, tie_embeddings=False),
    "hybrid": dataclasses.replace(
        SMALL,
        num_layers=4,
        pattern=("titans", "attention"),
        titans={**FAMILY["gated_delta_net"], "memory_chunk": 4, "convolution": 2},
    ),
    "joined": dataclasses.replace(
        SMALL,
        pattern=("memory_as_context", "memory_as_gate"),
        attention_window=4,
        persistent_tokens=2,
        titans={**FAMILY["delta_net"], "memory_chunk": 4, "convolution": 3},
    ),
}
each_model = pytest.mark.parametrize("name", CONFIGS)
each_table = pytest.mark.parametrize("name", ["transformer", "hope_attention"])  # tied, and not

TEXT = np.random.default_rng(0).integers(11, size=(BATCH, TOKENS))
RESET = np.zeros((BATCH, TOKENS), bool)
RESET[0, 4] = RESET[1, [0, 5, 6]] = True


@functools.cache
def made(name):
    """A model, its parameters, and its compiled forward pass, whose logits are NumPy's."""
    model = LanguageModel(CONFIGS[name])
    variables = jax.jit(model.init)(jax.random.key(0), TEXT)
    params = nn.unbox(variables["params"])
    compiled = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs))

    def forward(*inputs):
        logits, state = compiled(*inputs)
        return np.asarray(logits), state

    return model, params, forward


@each_model
def test_a_token_changes_nothing_before_it_and_nothing_in_other_sequences(name):
    _, _, forward = made(name)
    before, _ = forward(TEXT, None, RESET)
    for t in (0, 3, 7, TOKENS - 1):
        changed = TEXT.copy()
        changed[1, t] = (changed[1, t] + 1) % 11
        after, _ = forward(changed, None, RESET)
        np.testing.assert_array_equal(after[0], before[0])
        np.testing.assert_array_equal(after[1, :t], before[1, :t])
        assert np.abs(after[1, t] - before[1, t]).max() > 1e-3


@each_model
def test_nothing_is_seen_across_a_document_boundary(name):
    _, _, forward = made(name)
    together, _ = forward(TEXT, None, RESET)
    alone, _ = forward(TEXT[:1, 4:], None, None)
    np.testing.assert_allclose(together[:1, 4:], alone, atol=1e-5)
    longer, _ = forward(TEXT, None, np.zeros_like(RESET))
    assert np.abs(together[0, 4:] - longer[0, 4:]).max() > 1e-3


@each_model
@pytest.mark.parametrize("pieces", [[5] + [1] * 8, [6, 0, 7]], ids=["token_by_token", "pieces"])
def test_streaming_gives_what_one_call_gives(name, pieces):
    model, params, forward = made(name)
    one_call, last = forward(TEXT, None, RESET)
    state = init_state(model, params, BATCH)
    ends = np.cumsum(pieces)
    outputs = []
    for begin, end in zip(ends - pieces, ends, strict=True):
        logits, state = forward(TEXT[:, begin:end], state, RESET[:, begin:end])
        outputs.append(logits)
    np.testing.assert_allclose(np.concatenate(outputs, 1), one_call, atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), state, last)


@each_table
def test_next_logits_are_the_last_of_all(name):
    model, params, forward = made(name)
    logits, _ = forward(TEXT, None, RESET)
    next_logits = functools.partial(model.apply, method="next_logits")
    last, _ = jax.jit(next_logits)({"params": params}, TEXT, None, RESET)
    np.testing.assert_allclose(last, logits[:, -1], atol=1e-6)


@each_table
def test_token_losses_are_the_cross_entropy_of_the_logits(name):
    model, params, forward = made(name)
    targets = np.roll(TEXT, -1, axis=1)
    logits, _ = forward(TEXT, None, RESET)
    token_losses = functools.partial(model.apply, method="token_losses")
    losses = jax.jit(token_losses)({"params": params}, TEXT, targets, RESET)
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(probability, targets[..., None], -1)[..., 0])
    np.testing.assert_allclose(losses, expected, atol=1e-5)


@each_model
def test_every_parameter_is_used_and_names_its_axes(name):
    model, params, _ = made(name)

    def loss(params):
        return model.apply({"params": params}, TEXT, TEXT[:, ::-1], method="token_losses").mean()

    gradients = jax.jit(jax.grad(loss))(params)
    gradients = jax.tree.map(np.asarray, gradients)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients)), gradients
    shapes = jax.eval_shape(model.init, jax.random.key(0), TEXT)["params"]
    specs = jax.tree.leaves_with_path(
        nn.get_partition_spec(shapes), is_leaf=lambda leaf: leaf is None
    )
    for (path, spec), leaf in zip(specs, jax.tree.leaves(nn.unbox(shapes)), strict=True):
        where = jax.tree_util.keystr(path)
        assert spec is not None and len(spec) == leaf.ndim and None not in spec, where
        assert (spec[0] == "layers") == ("blocks" in where), where


@pytest.mark.parametrize("name", ["transformer", "hope"])
def test_remat_changes_the_program_and_not_the_gradient(name):
    # One matrix memory: it is rematerialised as all of them are, and compiles in less time.
    titans = {"network": "matrix", "adaptive": ("k",), "memory_chunk": 2, "generator_chunk": 4}
    config = dataclasses.replace(CONFIGS[name], titans=titans)
    params = jax.jit(LanguageModel(config).init)(jax.random.key(0), TEXT)["params"]

    def compiled(remat):
        policy = LanguageModel(dataclasses.replace(config, remat=remat))

        def loss(params):
            inputs = {"params": params}, TEXT, np.roll(TEXT, -1, axis=1), RESET
            return policy.apply(*inputs, method="token_losses").mean()

        return jax.jit(jax.grad(loss)).lower(params).compile()

    policies = ("none", "block") if name == "hope" else ("none", "dots", "block")
    programs = {remat: compiled(remat) for remat in policies}
    work = [program.cost_analysis()["flops"] for program in programs.values()]
    assert work == sorted(set(work)), work
    plain, *others = (program(params) for program in programs.values())
    for gradients in others:
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), gradients, plain)


@each_model
def test_bfloat16_gives_float32_logits_near_the_exact_ones(name):
    model, params, forward = made(name)
    low = LanguageModel(dataclasses.replace(model.config, dtype="bfloat16"))
    exact, _ = forward(TEXT, None, RESET)
    logits, _ = jax.jit(low.apply)({"params": params}, TEXT, None, RESET)
    assert logits.dtype == jnp.float32
    assert 0 < np.std(np.asarray(logits) - exact) < 0.05 * np.std(exact)


def test_layers_are_initialised_apart():
    _, params, _ = made("transformer")
    for kernel in map(np.asarray, jax.tree.leaves(params["blocks"]["attention"])):
        assert np.abs(kernel[0] - kernel[1]).max() > 0.01
