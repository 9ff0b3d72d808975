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


# Shapes of real models, as their frameworks name them: "matrix", "adamw", or None for an error.
# L is a scan's axis of layers.
L, D = 6, 8
MODELS = {
    "flax linen, a T5 encoder": {
        "token_embedder/embedding": ((32, D), "adamw"),
        "encoder/relpos_bias/rel_embedding": ((4, 32), "adamw"),
        "encoder/layers_0/pre_attention_layer_norm/scale": ((D,), "adamw"),
        "encoder/layers_0/attention/query/kernel": ((D, D), "matrix"),
        "encoder/layers_0/mlp/wi_0/kernel": ((D, 16), "matrix"),
        "decoder/logits_dense/kernel": ((D, 32), "adamw"),
    },
    "flax linen, BERT with its heads": {
        "embeddings/word_embeddings/embedding": ((32, D), "adamw"),
        "embeddings/LayerNorm/scale": ((D,), "adamw"),
        "encoder/layer/0/attention/self/query/kernel": ((D, D), "matrix"),
        "encoder/layer/0/attention/output/dense/kernel": ((D, D), "matrix"),
        "mlm_head/kernel": ((D, 32), "adamw"),
        "LMHead_0/Dense_0/kernel": ((D, 32), "adamw"),
        "classifier/kernel": ((D, 3), "adamw"),
        "PositionwiseFeedForward_0/Dense_0/kernel": ((D, 16), "matrix"),
        "PreNorm_0/to_q/kernel": ((D, D), "matrix"),
        "MultiHeadAttention_0/out/kernel": ((D, D), "matrix"),
    },
    "stacked over layers by a scan": {
        "wte": ((32, D), "adamw"),
        "wpe/embedding": ((16, D), "adamw"),
        "pos_emb": ((16, D), "adamw"),
        "vocab": ((32, D), "adamw"),
        "layers/ln1/g": ((L, D), "adamw"),
        "layers/ln_2/b": ((L, D), "adamw"),
        "layers/attention_norm/kernel": ((L, D), "adamw"),
        "layers/LayerNorm_0/scale": ((L, D), "adamw"),
        "layers/wi_1_bias": ((L, 16), "adamw"),
        "layers/b1": ((L, 16), "adamw"),
        "layers/layerscale/gamma": ((L, D), "adamw"),
        "layers/ssm/A_log": ((D, 16), "adamw"),
        "layers/ssm/D": ((L, D), "adamw"),
        "layers/ssm/dt_bias": ((L, D), "adamw"),
        "layers/conv1d/kernel": ((4, D), "adamw"),
        "layers/short_conv/kernel": ((L, 4, 1, D), "adamw"),
        "layers/mlp/kernel": ((L, D, 16), None),
    },
    "flax nnx": {
        "embed/embedding/value": ((32, D), "adamw"),
        "layers/0/attn/value/kernel/value": ((D, D), "matrix"),
        "layers/0/norm/scale/value": ((L, D), "adamw"),
        "layers/0/linear/bias/value": ((L, D), "adamw"),
        "lm_head/kernel/value": ((D, 32), "adamw"),
    },
    "haiku": {
        "transformer/embed/embeddings": ((32, D), "adamw"),
        "transformer/h0_attn/multi_head_attention/query/w": ((D, D), "matrix"),
        "transformer/h0_mlp/linear/w": ((D, 16), "matrix"),
        "transformer/h0_mlp/linear/b": ((L, 16), "adamw"),
        "transformer/h0_ln_1/offset": ((L, D), "adamw"),
        "transformer/depthwise_conv1_d/w": ((4, 1, D), "adamw"),
    },
    "equinox": {
        "embedder/token_embedder/weight": ((32, D), "adamw"),
        "layers/0/attention/query_proj/weight": ((D, D), "matrix"),
        "layers/0/norm1/weight": ((L, D), "adamw"),
        "layers/0/mlp/layers/1/weight": ((16, D), "matrix"),
        "layers/0/lora_a": ((D, 2), "matrix"),
        "layers/0/lora_b": ((2, D), "matrix"),
        "cls_token": ((1, D), "adamw"),
        "heads_mixing": ((4, 4), "matrix"),
        "value": ((D, 1), "adamw"),
        "head/weight": ((3, D), "adamw"),
        "convolution/weight": ((D, 1, 4), "adamw"),
        "stem/conv/weight": ((D, 3, 4, 4), None),
    },
}


def tree_of(leaves):
    """Nested dictionaries of shapes from slashed names."""
    tree = {}
    for name, (shape, _) in leaves.items():
        *modules, own = name.split("/")
        below = tree
        for module in modules:
            below = below.setdefault(module, {})
        below[own] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree


@pytest.mark.parametrize("model", MODELS)
def test_default_rule_of_models_as_their_frameworks_name_them(model):
    leaves = MODELS[model]
    lines = describe_weight_rules(tree_of(leaves)).splitlines()
    found = {line.split()[0]: line.split(")  ")[-1].strip() for line in lines[: len(leaves)]}
    expected = {
        name: {"adamw": "adamw", "matrix": f"1 matrix of {' x '.join(map(str, shape))}"}.get(
            rule, "NO RULE"
        )
        for name, (shape, rule) in leaves.items()
    }
    assert found == expected
    refused = [name for name, (_, rule) in leaves.items() if rule is None]
    assert len(lines) == len(leaves) + bool(refused)
    if refused:
        assert f"no rule covers {refused[0]}: shape" in lines[-1]


def test_description_marks_what_a_rule_refuses_and_raises_nothing():
    params = {"a": jnp.ones((2, 3)), "b": {"c": jnp.ones((2, 3, 4)), "d": jnp.ones(3)}}
    rules = dimension_numbers_by_path([("a", MuonDimensionNumbers()), ("c", None)])
    lines = describe_weight_rules(params, rules).splitlines()
    assert [line.split("  ")[-1].strip() for line in lines[:3]] == [
        "1 matrix of 2 x 3",
        "adamw",
        "NO RULE",
    ]
    assert lines[3].startswith("1 without a rule, which m3 refuses: no rule covers b/d")
    # Dimension numbers that do not fit, a rule of the user's own that fails, a tree that is another.
    misfit = describe_weight_rules(params, {"a": MuonDimensionNumbers(0, 2), "b": None})
    assert misfit.splitlines()[0].endswith("NO RULE") and "reduction_axis (0,)" in misfit
    for spec in (lambda p: p["missing"], {"a": None}):
        assert describe_weight_rules(params, spec).count("NO RULE") == 3


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
