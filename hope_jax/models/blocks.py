"""The residual block that every language model here is a stack of (section 8.3)."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from hope_jax.layers.attention import Attention
from hope_jax.layers.continuum import ContinuumMemory, ContinuumState
from hope_jax.layers.experts import Experts
from hope_jax.layers.level_learning import Adaptation, FastWeights
from hope_jax.layers.memory_and_attention import MemoryAsGate, MemoryAsLayer
from hope_jax.layers.memory_as_context import MemoryAsContext
from hope_jax.layers.normalization import RMSNorm
from hope_jax.layers.titans import SelfModifyingTitans
from hope_jax.models.config import LanguageModelConfig
from hope_jax.models.own_layer import is_own, lay_out, own_layer, settings_of


class BlockState(NamedTuple):
    """What a block carries from one call to the next.

    Attributes:
      sequence: state of the sequence layer.
      continuum: what the MLP levels have learnt; `()` in a block that does not adapt.
    """

    sequence: Any
    continuum: ContinuumState | tuple[()]


def _sequence_layer(config: LanguageModelConfig, **dtypes: Any) -> nn.Module:
    """The layer that `config.sequence_layer` names, which is its name among the parameters too."""
    memory = functools.partial(SelfModifyingTitans, config.titans_config, **dtypes)
    attention = functools.partial(
        Attention,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        window=config.attention_window,
        rope_base=config.rope_base,
        rope_scaling=config.rotary_scaling,
        persistent=config.persistent_tokens,
        sinks=config.attention_sinks,
        kernel=config.attention_kernel,
        **dtypes,
    )
    name = str(config.sequence_layer)
    if is_own(name):
        return own_layer(name, config.layer, **config.own_sizes)
    if name == "titans":
        return memory(name=name)
    if name == "attention":
        return attention(name=name)
    if name == "memory_as_context":
        return MemoryAsContext(
            config.titans_config,
            config.attention_window,
            config.persistent_tokens,
            config.rope_base,
            config.attention_kernel,
            name=name,
            **dtypes,
        )
    joined = MemoryAsGate if name == "memory_as_gate" else MemoryAsLayer
    return joined(attention, memory, name=name, **dtypes)


class BlockGroup(nn.Module):
    """Blocks with the sequence layers of `config.pattern`, one after the other.

    Attributes:
      config: of the model.
      at_edge: whether states are known to have no open chunk; memories are faster then.
    """

    config: LanguageModelConfig
    at_edge: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: tuple[BlockState, ...] | None = None,
        reset: Bool[Array, "B T"] | None = None,
        fast: None = None,
        adaptation: None = None,
        experts: tuple[()] = (),
    ) -> tuple[Float[Array, "B T D"], tuple[BlockState, ...]]:
        """Reads tokens; arguments as those of `Block`, states one for each block."""
        del fast, adaptation, experts
        states = []
        for index, layer in enumerate(self.config.pattern):
            config = dataclasses.replace(
                self.config,
                sequence_layer=layer,
                pattern=(),
                layer=settings_of(str(layer), self.config.layer),
            )
            kind = "own" if is_own(str(layer)) else layer
            block = Block(config, self.at_edge, name=f"{kind}_{index}")
            x, new = block(x, None if state is None else state[index], reset)
            states.append(new)
        return x, tuple(states)


class Block(nn.Module):
    """`x <- x + Sequence(RMSNorm(x))`, then the chain of MLP levels (Eq. 94-97).

    Attributes:
      config: of the model.
      at_edge: whether states are known to have no open chunk; memories are faster then.
    """

    config: LanguageModelConfig
    at_edge: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: BlockState | None = None,
        reset: Bool[Array, "B T"] | None = None,
        fast: tuple[FastWeights, ...] | None = None,
        adaptation: Adaptation | None = None,
        experts: tuple[Experts, ...] = (),
    ) -> tuple[Float[Array, "B T D"], BlockState]:
        """Reads tokens.

        Args:
          x: input.
          state: what an earlier call returned; None starts a context.
          reset: True where a token starts a new document.
          fast: weights of the MLP levels in place of the parameters, within a chunk.
          adaptation: for levels that learn the local objective.
          experts: beside the levels, see `ContinuumMemory`.

        Returns:
          Output and state; with `fast`, what the maps of the levels have read is in the place of the
          levels' state.
        """
        config = self.config
        dtypes: dict[str, Any] = {
            "dtype": jnp.dtype(config.dtype),
            "param_dtype": jnp.dtype(config.param_dtype),
        }
        sequence = _sequence_layer(config, **dtypes)
        continuum = ContinuumMemory(
            levels=config.cms_levels,
            hidden=config.mlp_width,
            order=config.cms_order,
            connection=config.cms_connection,
            epsilon=config.norm_epsilon,
            name="continuum",
            **dtypes,
        )
        norm = RMSNorm(config.norm_epsilon, name="norm", **dtypes)
        sequence_state, continuum_state = (None, None) if state is None else state
        own, edges = is_own(str(config.sequence_layer)), {}
        if self.at_edge and not own and config.sequence_layer != "attention":
            edges = {"at_edge": True}
        mixed, sequence_state = sequence(norm(x), sequence_state, reset, **edges)
        if own:
            sequence_state = lay_out(sequence_state)
        x, continuum_state = continuum(
            x + mixed,
            reset,
            fast=fast,
            state=continuum_state if isinstance(continuum_state, ContinuumState) else None,
            adaptation=adaptation,
            learning=config.in_context_config,
            experts=experts,
        )
        x = nn.with_logical_constraint(x, ("batch", "length", "activation_embed"))
        return x, BlockState(sequence_state, continuum_state)
