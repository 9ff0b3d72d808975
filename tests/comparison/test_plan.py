"""Which runs a comparison takes, with what settings, and where."""

import pytest

from hope_jax.comparison.plan import check_plan, differences
from tests.comparison.plans import config_of, plan_of


def test_selection_seeds_are_not_reported(tmp_path):
    plan = plan_of(tmp_path)
    selection = plan.selection()
    assert len(selection) == 2 * 3 * 2
    assert {trial.seed for trial in selection} == {0, 1}
    reported = plan.reported("wide", plan.choices()[1])
    assert [trial.seed for trial in reported] == [2, 3, 4]
    alone = plan._replace(tuned={})
    assert alone.selection() == []
    assert [trial.seed for trial in alone.reported("wide", ())] == [0, 1, 2]


def test_a_run_has_its_rows_settings_its_own_and_its_seed(tmp_path):
    plan = plan_of(tmp_path)
    plan.rows["wide"].seed = 7
    trial = plan.reported("wide", plan.choices()[1])[0]
    assert trial.config["model"]["mlp_width"] == 8
    assert trial.config["optimizer"]["learning_rate"] == 0.2
    assert trial.config["seed"] == 7 + 2
    assert trial.folder == tmp_path / "wide" / "optimizer.learning_rate=0.2" / "seed_2"
    assert str(trial) == "wide, optimizer.learning_rate=0.2, seed 2"
    assert plan.rows["wide"].seed == 7  # nothing of the plan has changed
    changed = ["model.mlp_width=8", "seed=7"]
    assert differences(plan, "wide") == changed


def test_all_combinations_are_tried(tmp_path):
    tuned = {"optimizer.learning_rate": (0.1, 0.2), "optimizer.clip_norm": (0.0, 1.0, 2.0)}
    plan = plan_of(tmp_path)._replace(tuned=tuned)
    assert len({trial.folder for trial in plan.selection()}) == 2 * 6 * 2
    assert {
        (t.config["optimizer"]["learning_rate"], t.config["optimizer"]["clip_norm"])
        for t in plan.selection()
    } == {(rate, norm) for rate in (0.1, 0.2) for norm in (0.0, 1.0, 2.0)}


def test_what_cannot_be_told_apart_is_refused(tmp_path):
    check_plan(plan_of(tmp_path))
    for message, plan in {
        "--baseline=broad is no row": plan_of(tmp_path)._replace(baseline="broad"),
        "rows 'narrow' and 'same' are the same": plan_of(
            tmp_path, narrow=config_of(), same=config_of()
        ),
        "--tune=optimizer.learning_rate has 0.1 twice": plan_of(tmp_path, rates=(0.1, 0.1)),
        "in one folder": plan_of(
            tmp_path,
            **{"narrow": config_of(), "a/b": config_of(width=8), "a?b": config_of(width=12)},
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            check_plan(plan)
