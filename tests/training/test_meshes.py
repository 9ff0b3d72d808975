"""Losses on eight devices, split every way at once, are those of one.

`python tests/training/meshes.py` goes through all models and meshes, which takes minutes.
"""

import numpy as np
import pytest

from tests.training.meshes import ONE, Runs, batch_of, difference


@pytest.mark.parametrize("name", ["in_context_levels", "small_hope"])
def test_data_fsdp_and_tensor_make_the_losses_of_one_device(name):
    runs = Runs(name)
    (single,) = runs.losses(ONE, batch_of())
    assert np.all(np.diff(single) < 0)  # under either optimiser
    assert np.abs(single[0, 1:] / single[1, 1:] - 1).min() > 1e-3
    (sharded,) = runs.losses((2, 2, 2), batch_of())
    assert difference(sharded, single).max() < 1e-5
