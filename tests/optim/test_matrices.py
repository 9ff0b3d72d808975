"""Which leaf is a weight matrix: the default, rules by path, prefixes, errors."""

import jax
import jax.numpy as jnp
import pytest
from optax.contrib import MuonDimensionNumbers

from hope_jax.optim import (
    default_dimension_numbers,
    describe_weight_rules,
    dimension_numbers_by_path,
    m3,
)
from hope_jax.optim.matrices import ADAMW, resolve_axes

PARAMS = {
    "token_embedding": jnp.ones((9, 4)),
    "blocks": [
        {"w": jnp.ones((4, 6)), "bias": jnp.ones(6), "mlp_norm": {"scale": jnp.ones((3, 4))}}
    ],
    "lm_head": {"kernel": jnp.ones((4, 9))},
    "heads_mixing": jnp.ones((4, 4)),
    "gain": jnp.ones(()),
}


def test_default_keeps_tables_heads_and_stacked_norms_from_being_matrices():
    numbers = default_dimension_numbers(PARAMS)
    chosen = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(
            numbers, is_leaf=lambda x: isinstance(x, MuonDimensionNumbers)
        )
    ]
    assert chosen == ["blocks/0/w", "heads_mixing"]


def test_description_lists_every_leaf():
    lines = describe_weight_rules(PARAMS).splitlines()
    assert len(lines) == len(jax.tree.leaves(PARAMS))
    assert lines[0].split() == ["blocks/0/bias", "(6,)", "adamw"]
    assert lines[2].split("  ")[-1] == "1 matrix of 4 x 6"


def test_prefix_and_whole_tree_specifications_mean_the_same():
    params = {"a": {"x": jnp.ones((2, 3)), "y": jnp.ones((3, 2))}, "b": jnp.ones((2, 2))}
    prefix = {"a": MuonDimensionNumbers(), "b": None}
    whole = {"a": {"x": MuonDimensionNumbers(), "y": MuonDimensionNumbers()}, "b": None}
    assert resolve_axes(prefix, params) == resolve_axes(whole, params)
    assert resolve_axes(prefix, params)["b"] == ADAMW
    assert resolve_axes(MuonDimensionNumbers(), params)["b"] != ADAMW


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (MuonDimensionNumbers(0, 0), r"blocks/0/w: shape \(4, 6\)"),
        (MuonDimensionNumbers(0, -2), "named twice"),
        (MuonDimensionNumbers(0, 2), "between -2 and 1"),
        (MuonDimensionNumbers((), 1), "at least one axis"),
    ],
)
def test_misfit_names_the_leaf(numbers, message):
    with pytest.raises(ValueError, match=message):
        resolve_axes(numbers, {"blocks": [{"w": jnp.ones((4, 6))}]})


def test_uncovered_leaf_is_named_at_init():
    params = {"blocks": [{"w": jnp.ones((2, 3, 4))}]}
    with pytest.raises(ValueError, match=r"no rule covers blocks/0/w: shape \(2, 3, 4\)"):
        m3(0.1).init(params)
    rules = dimension_numbers_by_path([("query", None)])
    with pytest.raises(ValueError, match=r"no rule covers blocks/0/w.*Patterns given: \['query'\]"):
        m3(0.1, weight_dimension_numbers=rules).init(params)


def test_first_matching_rule_counts():
    rules = dimension_numbers_by_path([("w$", MuonDimensionNumbers()), ("", None)])
    axes = resolve_axes(rules, PARAMS)
    assert axes["blocks"][0]["w"].reduction == (0,)
    assert axes["heads_mixing"] == ADAMW
