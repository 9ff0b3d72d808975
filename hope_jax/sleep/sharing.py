"""What one reader has learned in sleep, for everyone: experts of a state become parameters."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from hope_jax.layers.experts import Experts
from hope_jax.models.config import LanguageModelConfig
from hope_jax.models.language_model import LanguageModel, ModelState
from hope_jax.sleep.expansion import experts_of


def share(
    model: LanguageModel, params: Any, state: ModelState, reader: int = 0
) -> tuple[LanguageModelConfig, Any]:
    """A model in which everyone has the experts of one reader.

    With nothing read, it says what that reader would say. What fast weights hold is not in it.

    Args:
      model: whose state it is.
      params: of the model.
      state: of any number of readers.
      reader: whose experts are taken.

    Returns:
      The config, in which `in_context.experts` is higher, and the parameters.

    Raises:
      ValueError: if the reader has no expert, or the parameters hold some of another rank.
    """
    own, config, learning = experts_of(state), model.config, model.config.in_context_config
    held = isinstance(own, Experts) and bool(np.asarray(own.active[:, reader]).any())
    if not held or not isinstance(own, Experts) or learning is None:
        raise ValueError(
            "there is no expert in this state to be shared; let its reader sleep first"
        )
    rank = own.down.shape[-1]
    if learning.experts and learning.expert_width != rank:
        raise ValueError(
            f"the model's own experts have rank {learning.expert_width}, and these have {rank}; let the "
            f"reader sleep with expert_width={learning.expert_width}"
        )
    used = int(np.asarray(own.active[:, reader]).sum(-1).max())
    down, up, router, active = (leaf[:, reader, :, :used] for leaf in own)
    new = {
        "expert_down": down,
        "expert_up": jnp.where(active[..., None, None], up, 0),
        "expert_router": router,
    }
    params = dict(nn.unbox(params))
    for name, leaf in new.items():
        leaf = leaf.astype(config.param_dtype)
        params[name] = jnp.concatenate([params[name], leaf], 2) if learning.experts else leaf
    in_context = {
        **config.in_context,
        "experts": learning.experts + used,
        "expert_width": rank,
    }
    return dataclasses.replace(config, in_context=in_context), params
