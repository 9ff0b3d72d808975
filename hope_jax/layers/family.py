"""Published sequence models as settings of one layer (section 5 and Table 1 of the paper).

Each is a mapping of `TitansConfig` settings that are not its defaults: a memory, an objective, a
projector, a decay, a momentum. Keys, values and gates are static projections of the input in all but
Hope's own. All are as published, but for `titans_lmm_dampened`; those whose memory is an MLP are trained
with `bounded_step=True` beside them, since their steps grow with it.

    >>> from hope_jax.layers.titans import TitansConfig
    >>> TitansConfig(width=128, num_heads=2, **FAMILY["delta_net"]).objective
    'dot'

In a language model they are `titans=FAMILY[name]` with `sequence_layer="titans"`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_STATIC: dict[str, Any] = {
    "adaptive": (),
    "generated_target": False,
    "unit_values": False,
    "momentum": "none",
    "read": "after",
    "memory_chunk": 64,
    "output_norm": True,
    "bounded_step": False,
}
_MATRIX = {**_STATIC, "network": "matrix", "learned_initial": False}
# A chunk's writes are summed at errors of its start: with long chunks equal keys overshoot.
_DESCENT = {**_STATIC, "objective": "l2", "projector": "none", "memory_chunk": 16}

FAMILY: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # W_t = W_{t-1} + v k^T
        "linear_attention": {
            **_MATRIX,
            "objective": "dot",
            "projector": "none",
            "retention": "none",
            "step": "one",
            "unit_keys": False,
        },
        # W_t = g_h W_{t-1} + v k^T with g_h = 1 - 2^(-5 - h); without its rotation of keys
        "retnet": {
            **_MATRIX,
            "objective": "dot",
            "projector": "none",
            "retention": "fixed",
            "step": "one",
            "unit_keys": False,
        },
        # W_t = W_{t-1} + b v (k - W_{t-1}^T v)^T
        "oja": {
            **_MATRIX,
            "objective": "dot",
            "projector": "values",
            "retention": "none",
            "unit_values": True,
        },
        # W_t = W_{t-1} (I - b k k^T) + b v k^T
        "delta_net": {**_MATRIX, "objective": "dot", "retention": "none"},
        # W_t = a W_{t-1} (I - b k k^T) + b v k^T
        "gated_delta_net": {**_MATRIX, "objective": "dot", "projector_decays": True},
        # W_t = W_{t-1} - eta grad |W k - v|^2 / 2, gradients at the chunk's start
        "ttt_linear": {**_DESCENT, "network": "matrix", "retention": "none"},
        # the same with a residual MLP in place of W
        "ttt_mlp": {**_DESCENT, "retention": "none"},
        # an MLP that descends -<M(k), v>, with decay
        "dla": {**_DESCENT, "objective": "dot"},
        # an MLP with L2, decay and momentum: S_t = theta S_{t-1} - eta grad, W_t = a W_{t-1} + S_t
        "titans_lmm": {**_DESCENT, "momentum": "gate", "dampening": False},
        # a variant: S_t = theta S_{t-1} - (1 - theta) eta grad, the average of steps, not their sum
        "titans_lmm_dampened": {**_DESCENT, "momentum": "gate"},
        # an MLP with an L_3 objective (Moneta) or Huber's (Yaad), and decay
        "miras_lp": {**_DESCENT, "objective": "lp"},
        "miras_huber": {**_DESCENT, "objective": "huber"},
        # as dla with L2, where each token descends the errors of a window, weighed by token
        "omega": {**_DESCENT, "window": 8},
        # self-modifying Titans
        "hope": {},
    }
)
