"""The causal convolution against a loop, in pieces, and across document boundaries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.layers.convolution import CausalConvolution

BATCH, LENGTH, WIDTH = 2, 9, 3
RESET = np.zeros((BATCH, LENGTH), bool)
RESET[0, 4] = RESET[1, [0, 5, 6]] = True


def by_loop(x, kernel, reset):
    """Every tap on its own, stopping at the first token of the document."""
    out = np.zeros_like(x)
    for row in range(BATCH):
        for t in range(LENGTH):
            for j in range(min(len(kernel), t + 1)):
                out[row, t] += kernel[j] * x[row, t - j]
                if reset[row, t - j]:
                    break
    return out


@pytest.mark.parametrize("window", [1, 3, 4])
def test_equals_a_loop_in_pieces_of_any_size(window, x64):
    layer = CausalConvolution(window, jnp.float64, jnp.float64)
    x = np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH))
    params = nn.unbox(layer.init(jax.random.key(0), x))
    kernel = np.array(params["params"]["kernel"])
    for reset in (RESET, np.zeros_like(RESET)):
        expected = by_loop(x, kernel, reset)
        for cuts in ((0, LENGTH), (0, 1, 2, 7, 7, LENGTH), range(LENGTH + 1)):
            tail, parts = None, []
            for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
                out, tail = layer.apply(params, x[:, begin:end], tail, reset[:, begin:end])
                parts.append(out)
            np.testing.assert_allclose(np.concatenate(parts, 1), expected, atol=1e-12)
    without_mask, _ = layer.apply(params, x)
    np.testing.assert_allclose(without_mask, expected, atol=1e-12)
