"""What each part of Hope is worth, and the published family beside it.

    hope compare --config=experiments/ablations.py:hope,no_dgd,no_momentum \
        --workdir=runs/ablations
    hope train --config=experiments/ablations.py:no_cms --workdir=runs/no_cms

Rows of the paper's Table 6: `hope`, `no_dgd`, `no_momentum`, `no_decay`, `no_cms`, `no_inner_k`,
`no_inner_v`, `no_inner_q`. Further settings of Hope: `delta_objective`, `unbounded_step`,
`no_convolution`, `matrix_memory`, `chunks_4_16`, `chunks_64_64`, `one_head`, `eight_heads`,
`read_after`, `read_chunk`, `fixed_gates`, `static_gates`, `no_inner`, `given_targets`,
`own_projections`, `no_output_norm`, `second_map`, `flips`, `plain_memory`, `no_normalization`. And the
family: `transformer`, `hope_attention`, `hybrid` (Titans and attention in turn), the names in
`hope_jax.layers.family`, and `memory_as_context`, `memory_as_gate`, `memory_as_layer` (attention over
64 tokens, joined with `titans_lmm`).

All have the parameters of `hope` within 2%, by the width of their MLPs, and the quickstart's data.
Memories that generate keys overflow without L2 normalisation, and are refused; what it is worth is seen
between `no_normalization` and `plain_memory`, which is the same with it: static projections and plain
descent.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from hope_jax.layers.family import FAMILY
from hope_jax.models import LanguageModelConfig
from hope_jax.models.parameter_count import match_parameter_count
from hope_jax.runs.config_file import load_config_file
from hope_jax.settings import as_values

ETA_MAX = 0.5  # half of what the layer allows, for all that descend an L2 loss
ALL = ("k", "v", "q", "eta", "alpha")
HOPE = LanguageModelConfig(
    vocab_size=256,
    width=64,
    num_layers=2,
    num_heads=2,
    mlp_width=128,
    cms_levels=2,
    attention_window=512,
    titans=dict(
        adaptive=ALL, memory_chunk=16, generator_chunk=64, initial_alpha=0.999, eta_max=ETA_MAX
    ),
)


def without(*names: str) -> tuple[str, ...]:
    return tuple(part for part in ALL if part not in names)


PLAIN = {
    "adaptive": (),
    "generated_target": False,
    "projector": "none",
}
# What differs from Hope, in its Titans layers.
TITANS: dict[str, dict[str, Any]] = {
    "hope": {},
    "no_dgd": {"projector": "none"},
    # The projector and the L2 objective both erase along the key; this erases once (the delta rule).
    "delta_objective": {"objective": "dot"},
    # As printed: overflows on repetitive text once the memories' maps have grown.
    "unbounded_step": {"bounded_step": False},
    "no_momentum": {"momentum": "none"},
    "no_decay": {"retention": "none", "adaptive": without("alpha")},
    "no_inner_k": {"adaptive": without("k")},
    "no_inner_v": {"adaptive": without("v")},
    "no_inner_q": {"adaptive": without("q")},
    "no_inner": {"adaptive": (), "generated_target": False},
    "static_gates": {"adaptive": without("eta", "alpha")},
    "given_targets": {"generated_target": False},
    "own_projections": {"own_projections": True},
    "no_output_norm": {"output_norm": False},
    "second_map": {"projector": "second_map"},
    "flips": {"flips": True},
    "no_convolution": {"convolution": 1},
    "matrix_memory": {"network": "matrix"},
    "chunks_4_16": {"memory_chunk": 4, "generator_chunk": 16},
    "chunks_64_64": {"memory_chunk": 64, "generator_chunk": 64},
    "read_after": {"read": "after"},
    "read_chunk": {"read": "chunk"},
    "plain_memory": PLAIN,
    "no_normalization": {**PLAIN, "unit_keys": False, "unit_values": False},
    "fixed_gates": {"step": "one", "retention": "fixed", "adaptive": ("k", "v", "q")},
}
# What differs in the model.
MODEL: dict[str, dict[str, Any]] = {
    "no_cms": {"cms_levels": 1},
    "one_head": {"num_heads": 1},
    "eight_heads": {"num_heads": 8},
    "transformer": {"sequence_layer": "attention", "titans": {}, "cms_levels": 1},
    "hybrid": {"pattern": ("titans", "attention")},
    "hope_attention": {"sequence_layer": "attention", "titans": {}},
}
JOINED = ("memory_as_context", "memory_as_gate", "memory_as_layer")
ROWS = (*TITANS, *MODEL, *JOINED, *(name for name in FAMILY if name != "hope"))


@functools.cache
def _models() -> Mapping[str, LanguageModelConfig]:
    """The models of all rows before their sizes are made equal.

    Raises:
      ValueError: if two rows are the same model.
    """
    models: dict[str, LanguageModelConfig] = {}
    for row in ROWS:
        if row in TITANS:
            changes: dict[str, Any] = {"titans": {**HOPE.titans, **TITANS[row]}}
        elif row in MODEL:
            changes = MODEL[row]
        else:
            titans = dict(FAMILY["titans_lmm" if row in JOINED else row], initial_alpha=0.999)
            # As published, all of these with an MLP overflowed here.
            titans["bounded_step"] = True
            if titans["objective"] != "dot":
                titans["eta_max"] = ETA_MAX
            changes = {"titans": titans, "cms_levels": 1}
            if row in JOINED:
                changes |= {"sequence_layer": row, "persistent_tokens": 4, "attention_window": 64}
        model = dataclasses.replace(HOPE, **changes)
        for other, theirs in models.items():
            if model == theirs:
                raise ValueError(
                    f"rows {other!r} and {row!r} are the same model; change one of them"
                )
        models[row] = model
    return models


def model_config(row: str) -> LanguageModelConfig:
    """The model of a row.

    Raises:
      ValueError: for a row that is not known.
    """
    if row not in ROWS:
        raise ValueError(f"unknown row {row!r}; known are {', '.join(ROWS)}")
    return match_parameter_count(_models()[row], HOPE)


def get_config(row: str = "hope") -> ConfigDict:
    """Returns the config of a row."""
    model = model_config(row)
    here = pathlib.Path(__file__)
    config = load_config_file(here.with_name("quickstart.py")).get_config("hope")
    config.model = ConfigDict(as_values(model))
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 4e-3
    config.evaluate.ngram_orders = ()
    config.evaluate.sample_tokens = 0
    return config
