"""Language models with an explicit streaming state."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from hope_jax.layers.experts import Experts
from hope_jax.layers.level_learning import Adaptation, InContextConfig
from hope_jax.layers.normalization import RMSNorm
from hope_jax.models.blocks import BlockState
from hope_jax.models.config import LanguageModelConfig
from hope_jax.models.cross_entropy import chunked_cross_entropy, logits_of
from hope_jax.models.in_context import (
    AdaptingState,
    Head,
    HeldState,
    at_least_float32,
    levels_of,
    make_adaptation,
    read_adapting,
    read_part_next_token,
)
from hope_jax.models.stack import make_stack, read_part, read_token, with_held


class ModelState(NamedTuple):
    """All that a model carries from one call to the next; a pytree of arrays.

    Attributes:
      blocks: states of the blocks that do not adapt, stacked: arrays `(layers, batch, ...)`.
      adapting: of the last blocks, where their MLP levels learn in context; else `()`. A `HeldState` if
        they do not learn from what is read now.
    """

    blocks: BlockState
    adapting: AdaptingState | HeldState | tuple[()] = ()


class LanguageModel(nn.Module):
    """Embedding, `num_layers` blocks, RMSNorm, logits.

    Attributes:
      config: sizes and settings.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> config = LanguageModelConfig(
      ...     vocab_size=256, width=16, num_layers=2, num_heads=2, mlp_width=32,
      ...     sequence_layer="attention",
      ... )
      >>> model = LanguageModel(config)
      >>> tokens = jnp.array([[72, 111, 112, 101]])
      >>> params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
      >>> logits, state = model.apply({"params": params}, tokens[:, :3])
      >>> logits, state = model.apply({"params": params}, tokens[:, 3:], state)
      >>> logits.shape
      (1, 1, 256)
    """

    config: LanguageModelConfig

    def setup(self) -> None:
        config = self.config
        param_dtype = jnp.dtype(config.param_dtype)
        table_init: Callable[..., Any] = nn.with_logical_partitioning(
            nn.initializers.normal(config.width**-0.5), ("vocab", "embed")
        )
        table_shape = (config.vocab_size, config.width)
        self.embedding = self.param("embedding", table_init, table_shape, param_dtype)
        if not config.tie_embeddings:
            self.unembedding = self.param("unembedding", table_init, table_shape, param_dtype)
        self.blocks = make_stack(config, config.num_layers, self)
        self._setup_adaptation()
        self.norm = RMSNorm(
            config.norm_epsilon, dtype=jnp.dtype(config.dtype), param_dtype=param_dtype
        )

    def _setup_adaptation(self) -> None:
        config, learning = self.config, self.config.in_context_config
        self.log_step = self.local_keys = self.local_values = None
        self.experts: tuple[Experts, ...] = ()
        if learning is None:
            return
        levels = levels_of(config)
        param_dtype = jnp.dtype(config.param_dtype)
        if learning.learned_step:
            zero: Callable[..., Any] = nn.with_logical_partitioning(
                nn.initializers.zeros_init(), ("layers", None)
            )
            self.log_step = self.param("log_step", zero, levels, jnp.float32)
        if learning.local_loss is not None:
            square = nn.initializers.lecun_normal(batch_axis=(0, 1))
            init: Callable[..., Any] = nn.with_logical_partitioning(
                square, ("layers", None, "embed", None)
            )
            shape = (*levels, config.width, config.width)
            self.local_keys = self.param("local_keys", init, shape, param_dtype)
            self.local_values = self.param("local_values", init, shape, param_dtype)
        if learning.experts:
            self.experts = (self._setup_experts(learning),)

    def _setup_experts(self, learning: InContextConfig) -> Experts:
        """Everyone's. As B = 0 they change nothing, so that none need be switched off."""
        width, rank = self.config.width, learning.expert_width
        pools = learning.sender_of_each(*levels_of(self.config))
        shape = (*pools.shape, learning.experts)
        normal = nn.initializers.lecun_normal(batch_axis=(0, 1, 2))
        zeros = nn.initializers.zeros_init()

        def made(name: str, init: Any, *axes: tuple[int, str | None]) -> Array:
            sizes, names = zip(*axes, strict=True)
            init = nn.with_logical_partitioning(init, ("layers", None, None, *names))
            return self.param(name, init, (*shape, *sizes), jnp.dtype(self.config.param_dtype))

        return Experts(
            made("expert_down", normal, (width, "embed"), (rank, None)),
            made("expert_up", zeros, (rank, None), (width, "embed")),
            made("expert_router", zeros, (width, "embed")),
            jnp.ones(shape, bool),
        )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        state: ModelState | None = None,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T V"], ModelState]:
        """Logits of the next token after each of `tokens`.

        Args:
          tokens: ids; any number of them, none included.
          state: what an earlier call returned, to continue from; None starts a context.
          reset: True where a token starts a new document, which sees nothing before it.

        Returns:
          Logits in float32, and the state after the last token.
        """
        hidden, state = self.hidden(tokens, state, reset)
        return self.logits(hidden), state

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        state: ModelState | None = None,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], ModelState]:
        """As a call, but with the normed final activations, of which `logits` are made."""
        return self._advance(tokens, state, reset)

    def below(
        self,
        tokens: Int[Array, "B T"],
        state: ModelState | None = None,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], BlockState]:
        """What the blocks that do not adapt make of tokens, of a model whose levels learn in context.

        Arguments are those of a call.

        Returns:
          What the adapting blocks read, and the states of those below them after the last token.
        """
        config = self.config
        x, still = self._embedded(tokens), config.num_layers - config.adapting_blocks
        held = None if state is None else state.blocks
        if not still:
            return x, BlockState((), ())
        params = nn.unbox(self.blocks.variables["params"])
        if held is not None and tokens.shape[1] == 1:
            return read_token(config, params, range(still), x, held, reset)
        lower = jax.tree.map(lambda w: w[:still], params)
        return _apply_stack(config, lower, x, held, reset, None, None, ())

    def hidden_above(
        self, below: Float[Array, "B T D"], state: ModelState
    ) -> Float[Array, "B T D"]:
        """The first output of `hidden` for the same tokens and a state whose levels are held.

        What `below` has made stays what it is while nothing but experts changes, and is read again and
        again.

        Args:
          below: the first output of `below`.
          state: whose `adapting` is a `HeldState`.
        """
        return self._read_adapting(below, None, state, None, None)[0]

    def next_logits(
        self,
        tokens: Int[Array, "B T"],
        state: ModelState | None = None,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B V"], ModelState]:
        """As a call, but with the logits after the last token only, and at least one token."""
        hidden, state = self._advance(tokens, state, reset)
        return self.logits(hidden[:, -1:])[:, 0], state

    def token_losses(
        self,
        tokens: Int[Array, "B T"],
        targets: Int[Array, "B T"],
        reset: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B T"]:
        """Cross-entropy in nats of each target, from a fresh context; logits are never whole.

        Args:
          tokens: ids that are read.
          targets: the id that should follow each.
          reset: True where a token starts a new document.

        Returns:
          Losses in float32.
        """
        return self.score(tokens, targets, None, reset)[0]

    def score(
        self,
        tokens: Int[Array, "B T"],
        targets: Int[Array, "B T"],
        state: ModelState | None = None,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T"], ModelState]:
        """As `token_losses`, from any state, and with the state after the last token.

        Where levels learn, the targets are what they learn from: the tokens that follow.
        """
        if self._adapts:
            return self._advance(tokens, state, reset, targets)
        hidden, state = self._advance(tokens, state, reset)
        return self._losses(hidden, targets, self._output_table()), state

    def part_losses(
        self,
        tokens: Int[Array, "B P"],
        targets: Int[Array, "B P"],
        reset: Bool[Array, "B P"] | None,
        axis: str,
    ) -> Float[Array, "B P"]:
        """As `token_losses` of whole sequences, of which each device of a mesh axis has one part.

        It is called on each device, within `jax.shard_map`. Blocks are recomputed in the backward pass,
        but for what `config.remat` keeps.

        Args:
          tokens: this device's part, a multiple of all of `config.part_edges` long.
          targets: the id that should follow each.
          reset: True where a token starts a new document.
          axis: of the mesh, on whose devices the parts lie in their order.

        Returns:
          Losses of this part, in float32.
        """
        config, x = self.config, self._embedded(tokens)
        params = nn.unbox(self.blocks.variables["params"])
        if not self._adapts:
            x = read_part(config, params, x, reset, axis)
            return self._losses(self.norm(x), targets, self._output_table())
        still = config.num_layers - config.adapting_blocks
        if still:
            x = read_part(config, jax.tree.map(lambda w: w[:still], params), x, reset, axis)
        upper, head = self._above()
        adaptation = self._adaptation(upper)
        assert config.in_context_config is not None
        if config.in_context_config.local_loss is not None:
            x = read_part(config, upper, x, reset, axis, adaptation, self.experts)
            return head.losses(head.norm(x), targets)
        stack = functools.partial(_apply_stack, config, upper)
        return read_part_next_token(
            config,
            lambda *inputs: stack(*inputs, self.experts),
            head,
            adaptation,
            x,
            tokens,
            targets,
            reset,
            axis,
        )

    @property
    def _adapts(self) -> bool:
        return self.config.in_context_config is not None and not self.is_initializing()

    def _advance(
        self,
        tokens: Array,
        state: ModelState | None,
        reset: Array | None,
        targets: Array | None = None,
    ) -> tuple[Array, ModelState]:
        """Final activations, or where levels adapt and targets are given, losses; and the state."""
        if self._adapts:
            x, blocks = self.below(tokens, state, reset)
            output, adapting = self._read_adapting(x, tokens, state, reset, targets)
            return output, ModelState(blocks, adapting)
        x = self._embedded(tokens)
        recording = self.is_mutable_collection("dense_inputs")
        if state is not None and tokens.shape[1] == 1 and not recording:
            params = nn.unbox(self.blocks.variables["params"])
            groups = range(jax.tree.leaves(params)[0].shape[0])
            x, blocks = read_token(self.config, params, groups, x, state.blocks, reset)
        else:
            x, blocks = self.blocks(
                x, None if state is None else state.blocks, reset, None, None, ()
            )
        return self.norm(x), ModelState(blocks)

    def _embedded(self, tokens: Array) -> Array:
        config = self.config
        # Whole rows are gathered, so that the result lies with the batch from the start.
        table = self.embedding.astype(config.dtype)
        table = nn.with_logical_constraint(table, ("vocab", "activation_embed"))
        x = table[tokens]
        if config.scaled_embedding:
            # Rows have unit length, which suits logits; the residual stream starts at unit variance.
            x = x * config.width**0.5
        return nn.with_logical_constraint(x, ("batch", "length", "activation_embed"))

    def _read_adapting(
        self,
        x: Array,
        tokens: Array | None,
        state: ModelState | None,
        reset: Array | None,
        targets: Array | None,
    ) -> tuple[Array, AdaptingState | HeldState]:
        """What `_advance` does with what `below` has made; tokens may be None where levels are held."""
        config = self.config
        still = config.num_layers - config.adapting_blocks
        upper, head = self._above()
        stack = functools.partial(_apply_stack, config)
        adapting: Any = () if state is None else state.adapting
        own = () if adapting == () else adapting.experts
        experts = self.experts if own == () else (*self.experts, own)
        if isinstance(adapting, HeldState):
            sequence, weights, _ = adapting
            held = BlockState(sequence, ())
            if x.shape[1] == 1:
                places = range(still, config.num_layers)
                params = nn.unbox(self.blocks.variables["params"])
                x, held = read_token(config, params, places, x, held, reset, experts, weights)
            else:
                x, held = stack(with_held(upper, weights), x, held, reset, None, None, experts)
            output = head.norm(x) if targets is None else head.losses(head.norm(x), targets)
            return output, adapting._replace(sequence=held.sequence)
        assert tokens is not None
        output, adapting = read_adapting(
            config,
            lambda *inputs: stack(upper, *inputs, experts),
            lambda x, states, reset, fast: read_token(
                config, upper, range(config.adapting_blocks), x, states, reset, experts, fast=fast
            ),
            head,
            self._adaptation(upper),
            x,
            tokens,
            None if adapting == () else adapting,
            reset,
            targets,
        )
        return output, adapting._replace(experts=own)

    def _above(self) -> tuple[Any, Head]:
        """Parameters of the adapting blocks, and what follows them, as functions of parameters.

        That is what they are within the gradients of the inner loop.
        """
        params = nn.unbox(self.blocks.variables["params"])
        still = self.config.num_layers - self.config.adapting_blocks
        upper = jax.tree.map(lambda w: w[still:], params)
        # Gradients of what every chunk reads are sums over chunks: they are formed in float32.
        upper, norm_params, table = (
            jax.tree.map(at_least_float32, tree)
            for tree in (upper, nn.unbox(self.norm.variables["params"]), self._output_table())
        )
        norm = self.norm.clone(parent=None, name=None)
        normed = lambda x: cast(Array, norm.apply({"params": norm_params}, x))
        return upper, Head(normed, lambda hidden, targets: self._losses(hidden, targets, table))

    def _adaptation(self, upper: Any) -> Adaptation:
        return make_adaptation(
            self.config, upper, self.log_step, self.local_keys, self.local_values
        )

    def _losses(self, hidden: Array, targets: Array, table: Array) -> Array:
        return chunked_cross_entropy(
            hidden,
            table,
            targets,
            chunk=self.config.loss_chunk,
            dtype=jnp.dtype(self.config.dtype),
        )

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits, float32 or wider, of what `hidden` has returned."""
        return logits_of(hidden, self._output_table(), jnp.dtype(self.config.dtype))

    def _output_table(self) -> Array:
        return self.embedding if self.config.tie_embeddings else self.unembedding


def _apply_stack(
    config: LanguageModelConfig, params: Any, x: Array, *inputs: Any
) -> tuple[Array, BlockState]:
    """Blocks as a function of their stacked parameters, which say how many there are."""
    stack = make_stack(config, jax.tree.leaves(params)[0].shape[0], None)
    return stack.apply({"params": params}, x, *inputs)


@functools.partial(jax.jit, static_argnames=("model", "batch_size"))
def init_state(model: LanguageModel, params: Any, batch_size: int) -> ModelState:
    """The state of a context in which nothing has been read.

    Args:
      model: whose state is wanted.
      params: of the model; initial memories are among them.
      batch_size: number of sequences.

    Returns:
      State that `model.apply` continues from; no two of its arrays share memory, so that it can be
      donated.
    """
    nothing = jnp.zeros((batch_size, 0), jnp.int32)
    # Compiled, since the arrays of a program have their own memory each.
    _, state = cast(tuple[Array, ModelState], model.apply({"params": params}, nothing))
    return state
