"""What is taken for the result of a run."""

import json

import pytest

from hope_jax.comparison.trial import read_result
from hope_jax.runs.run_config import keep_config
from hope_jax.training.config import whole_config
from tests.comparison.plans import loss_of, plan_of, write_result


def test_a_result_of_other_defaults_is_not_taken(tmp_path):
    trial = plan_of(tmp_path).selection()[0]
    assert trial.config["optimizer"]["name"] == "m3" and read_result(trial) is None
    write_result(trial)
    keep_config(trial.folder, whole_config(trial.config))
    assert read_result(trial).loss == loss_of(trial)
    # As a run of 0.1.0, which does not say its version, and whose M3 had other defaults.
    (trial.folder / "config.json").write_text(json.dumps(trial.config))
    with pytest.raises(ValueError, match="optimizer.arguments.alpha: 0.5 there, None here"):
        read_result(trial)
