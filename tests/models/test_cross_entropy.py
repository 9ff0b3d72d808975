import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope_jax.models.cross_entropy import chunked_cross_entropy

BATCH, TOKENS, WIDTH, VOCABULARY = 2, 7, 3, 11


def plain_losses(hidden, table, targets):
    log_probabilities = jax.nn.log_softmax(hidden @ table.T, axis=-1)
    return -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_values_and_gradients_are_those_of_the_plain_form(chunk):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        hidden = jnp.asarray(rng.normal(size=(BATCH, TOKENS, WIDTH)))
        table = jnp.asarray(rng.normal(size=(VOCABULARY, WIDTH)))
        targets = jnp.asarray(rng.integers(VOCABULARY, size=(BATCH, TOKENS)))
        weights = jnp.asarray(rng.normal(size=(BATCH, TOKENS)))

        def chunked(hidden, table):
            return chunked_cross_entropy(hidden, table, targets, chunk, jnp.float64)

        losses, pull_back = jax.vjp(chunked, hidden, table)
        expected, pull_back_plain = jax.vjp(
            lambda hidden, table: plain_losses(hidden, table, targets), hidden, table
        )
        assert losses.dtype == jnp.float64
        np.testing.assert_allclose(losses, expected, rtol=1e-12)
        for ours, theirs in zip(pull_back(weights), pull_back_plain(weights), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16_operands_leave_losses_and_sums_of_table_gradients_in_float32(dtype):
    hidden = jnp.ones((1, 64, WIDTH), jnp.bfloat16)
    table = jnp.zeros((VOCABULARY, WIDTH), dtype)
    targets = jnp.zeros((1, 64), jnp.int32)

    def total(table):
        losses = chunked_cross_entropy(hidden, table, targets, chunk=1, dtype=jnp.bfloat16)
        assert losses.dtype == jnp.float32
        return losses.sum()

    # Each token adds 1/11 to every row but its target's. Summed in bfloat16 it would end at 4.
    gradient = jax.grad(total)(table)
    assert gradient.dtype == dtype
    np.testing.assert_allclose(np.float32(gradient[1:]), 64 / VOCABULARY, rtol=4e-3)


def test_logits_are_never_whole_forward_or_backward():
    batch, tokens, width, vocabulary = 2, 256, 4, 512
    whole = batch * tokens * vocabulary * 4
    arguments = (
        jax.ShapeDtypeStruct((batch, tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.float32),
        jax.ShapeDtypeStruct((batch, tokens), jnp.int32),
    )

    def memory(losses):
        def mean(hidden, table, targets):
            return losses(hidden, table, targets).mean()

        step = jax.jit(jax.value_and_grad(mean, argnums=(0, 1)))
        return step.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert memory(plain_losses) > whole
    assert memory(lambda *inputs: chunked_cross_entropy(*inputs, chunk=8)) < whole / 4
