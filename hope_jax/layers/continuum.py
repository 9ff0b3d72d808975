"""Continuum Memory System: MLPs, one for each update frequency (section 7.1)."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from hope_jax.layers.chunk_stream import OpenChunk, read_in_chunks
from hope_jax.layers.experts import Experts, level_of_pool, read_experts
from hope_jax.layers.inner_loop import INNER_LOOP
from hope_jax.layers.level_learning import (
    Adaptation,
    FastWeights,
    InContextConfig,
    LevelState,
    forgetting,
    init_level,
    learn_level,
    start_over,
)
from hope_jax.layers.mlp import MLPWeights, SwiGLU, swiglu
from hope_jax.layers.normalization import RMSNorm

Connection = Literal["sequential", "independent", "nested"]


class ContinuumState(NamedTuple):
    """What the levels of a block have learnt in context.

    Attributes:
      levels: the fast part of each.
      chunks: chunks of the smallest size learnt from so far.
      open_chunk: inputs not learnt from yet, for the local objective; `()` for the next-token one,
        whose open chunk the model keeps.
    """

    levels: tuple[LevelState, ...]
    chunks: Int[Array, ""]
    open_chunk: OpenChunk | tuple[()]


class ContinuumMemory(nn.Module):
    """Levels of pre-norm residual MLPs.

    Sequential (Eq. 73) and nested (Eq. 72): `x <- x + MLP_l(RMSNorm_l(x))`, level by level; a nested
    level also returns to its slow weights whenever the next slower one changes. Independent
    (Eq. 74): `x + sum_l a_l MLP_l(RMSNorm_l(x))` with learned `a`. Level 0 is the fastest; a level's
    parameters carry its number, `level_0`, `level_1`, ..., in either order of the chain. One level is
    the MLP of a Transformer block.

    Attributes:
      levels: number of MLPs.
      hidden: hidden width of each.
      order: which end of the spectrum reads the input first.
      connection: how levels are joined.
      epsilon: of the normalisations.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters.
    """

    levels: int
    hidden: int
    order: Literal["fast_to_slow", "slow_to_fast"] = "fast_to_slow"
    connection: Connection = "sequential"
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        reset: Bool[Array, "B T"] | None = None,
        *,
        fast: tuple[FastWeights, ...] | None = None,
        state: ContinuumState | None = None,
        adaptation: Adaptation | None = None,
        learning: InContextConfig | None = None,
        experts: tuple[Experts, ...] = (),
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Passes `x` through the levels.

        Args:
          x: input.
          reset: True where a token starts a new document.
          fast: weights to use in place of the parameters, for tokens of one chunk.
          state: where levels learn the local objective: what an earlier call returned, if any.
          adaptation: for such learning.
          learning: its settings.
          experts: everyone's and those of each sequence, as far as there are any.

        Returns:
          The output, and: of a call with `fast`, what each map of each level has read; of one that
          learns, the state after the last token; else `()`.
        """
        norms, mlps = [], []
        for level in range(self.levels):
            norms.append(
                RMSNorm(
                    self.epsilon,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name=f"level_{level}_norm",
                )
            )
            mlps.append(
                SwiGLU(
                    self.hidden,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name=f"level_{level}",
                )
            )
        shares = None
        if self.connection == "independent":
            even: Callable[..., Any] = nn.initializers.constant(1 / self.levels)
            shares = self.param("level_shares", even, (self.levels,), self.param_dtype)

        def slow(level: int, x: Array) -> Array:
            x = norms[level](x)
            return self._with_experts(level, x, mlps[level](x), experts)

        plain = lambda: self._connect(x, shares, slow)
        if fast is None and adaptation is None:
            return plain(), ()

        # From here on within transformed functions, where modules of this one cannot be called.
        scales = [norm.variables["params"]["scale"] for norm in norms]

        def normed(level: int, x: Array) -> Array:
            norm = RMSNorm(
                self.epsilon, dtype=self.dtype, param_dtype=self.param_dtype, parent=None
            )
            return cast(Array, norm.apply({"params": {"scale": scales[level]}}, x))

        if fast is not None:
            return self._read(x, shares, normed, fast, experts)
        assert adaptation is not None and learning is not None
        y, learnt = self._learn_locally(
            x, reset, shares, normed, state, adaptation, learning, experts
        )
        # Before anything is learnt the parameters themselves are read, to the same bits.
        return (plain() if state is None and x.shape[1] <= learning.chunks[0] else y), learnt

    def _connect(
        self, x: Array, shares: Array | None, branch: Callable[[int, Array], Array]
    ) -> Array:
        levels = range(self.levels)
        if shares is not None:
            return x + sum(shares[level].astype(x.dtype) * branch(level, x) for level in levels)
        for level in levels if self.order == "fast_to_slow" else reversed(levels):
            x = x + branch(level, x)
        return x

    def _with_experts(self, level: int, x: Array, y: Array, experts: tuple[Experts, ...]) -> Array:
        for home in experts:
            for pool in range(home.active.shape[-2]):
                if level_of_pool(pool, self.levels) == level:
                    y = y + read_experts(x, home, pool, self.dtype)
        return y

    def _read(
        self,
        x: Array,
        shares: Array | None,
        normed: Callable[[int, Array], Array],
        fast: tuple[FastWeights, ...],
        experts: tuple[Experts, ...],
    ) -> tuple[Array, tuple[MLPWeights, ...]]:
        inputs: dict[int, MLPWeights] = {}

        def branch(level: int, x: Array) -> Array:
            x = normed(level, x)
            before, after, is_after = fast[level]
            y, inputs[level] = swiglu(x, after, self.dtype)
            if is_after is not None:
                y = jnp.where(is_after[..., None], y, swiglu(x, before, self.dtype)[0])
            return self._with_experts(level, x, y, experts)

        y = self._connect(x, shares, branch)
        return y, tuple(inputs[level] for level in range(self.levels))

    def _learn_locally(
        self,
        x: Array,
        reset: Array | None,
        shares: Array | None,
        normed: Callable[[int, Array], Array],
        state: ContinuumState | None,
        adaptation: Adaptation,
        config: InContextConfig,
        experts: tuple[Experts, ...],
    ) -> tuple[Array, ContinuumState]:
        initial = adaptation.initial
        if state is None:
            state = init_continuum(initial, x.shape[0], config)
        open_chunk = state.open_chunk if isinstance(state.open_chunk, OpenChunk) else None
        # Resets of earlier calls are in the open chunk: what is learnt from heeds them, and the
        # weights have been started over already.
        resets = reset is not None
        flags = resets or open_chunk is not None

        def learn(carry: Any, chunk: Any, following: Any) -> tuple[Any, Array]:
            levels, chunks = carry
            x, reset = chunk
            fast, started = open_levels(levels, initial, reset if resets else None)
            counted = jnp.ones(reset.shape, bool)
            if flags:
                counted = counted_tokens(reset, following[1])
            y, inputs = self._read(x, shares, normed, fast, experts)
            learnt = []
            with jax.named_scope(INNER_LOOP):
                for level in range(self.levels):
                    weights = started[level].weights
                    gradient = self._local_gradient(
                        level, inputs[level].gate, weights, counted, adaptation, config
                    )
                    learnt.append(
                        learn_level(
                            started[level],
                            gradient,
                            initial[level],
                            adaptation.step[level],
                            adaptation.period[level],
                            adaptation.restart[level],
                            chunks,
                            config,
                        )
                    )
            return (lay_out(tuple(learnt)), chunks + 1), y

        def read(carry: Any, part: Any) -> tuple[Array, None]:
            fast, _ = open_levels(carry[0], initial, part[1] if resets else None)
            return self._read(part[0], shares, normed, fast, experts)[0], None

        items = (x, jnp.zeros(x.shape[:2], bool) if reset is None else reset)
        (levels, chunks), open_chunk, y, _ = read_in_chunks(
            (state.levels, state.chunks), open_chunk, items, config.chunks[0], learn, read, read
        )
        if resets:
            levels = drop_finished(levels, initial, open_chunk.items[1], open_chunk.filled)
        return y, ContinuumState(levels, chunks, open_chunk)

    def _local_gradient(
        self,
        level: int,
        x: Array,
        weights: MLPWeights,
        counted: Array,
        adaptation: Adaptation,
        config: InContextConfig,
    ) -> MLPWeights:
        """A chunk's G of `|MLP(x W_k) - x W_v|^2 / (2 D)`, or another loss of the two."""
        assert adaptation.keys is not None and adaptation.values is not None
        local_loss = config.local_loss
        key, value = (
            x.astype(self.dtype) @ maps[level].astype(self.dtype)
            for maps in (adaptation.keys, adaptation.values)
        )

        def loss(weights: MLPWeights) -> tuple[Array, MLPWeights]:
            predicted, inputs = swiglu(key, weights, self.dtype)
            return jnp.sum(local_loss(predicted, value) * counted), inputs

        gradient, inputs = jax.grad(loss, has_aux=True)(weights)
        return chunk_gradient(gradient, inputs, weights, counted, config)


def init_continuum(
    initial: tuple[MLPWeights, ...], batch: int, config: InContextConfig
) -> ContinuumState:
    """The state of levels that have learnt nothing, of one block."""
    # Only where each level has one chunk size in all blocks is it known now which need no sum.
    every = [
        len(config.chunks) == len(initial) and config.chunks[level] == config.chunks[0]
        for level in range(len(initial))
    ]
    levels = tuple(
        init_level(weights, batch, config, every_chunk)
        for weights, every_chunk in zip(initial, every, strict=True)
    )
    return ContinuumState(lay_out(levels), jnp.zeros((), jnp.int32), ())


def lay_out(levels: tuple[LevelState, ...]) -> tuple[LevelState, ...]:
    """Says where levels lie on a mesh: with their sequences, hidden channels as the slow weights'.

    They begin as copies of weights that lie on all devices that share a batch, and could stay so:
    every device would hold every sequence's.
    """

    def place(leaf: Array, *names: str) -> Array:
        stacked = ("layers",) * (leaf.ndim - len(names))
        return nn.with_logical_constraint(leaf, (*stacked, *names))

    def maps(tree: Any) -> Any:
        if tree == ():
            return ()
        gate, up = (place(w, "batch", "activation_embed", "mlp") for w in (tree.gate, tree.up))
        return MLPWeights(gate, up, place(tree.down, "batch", "mlp", "activation_embed"))

    return tuple(LevelState(*map(maps, level)) for level in levels)


def open_levels(
    levels: tuple[LevelState, ...],
    initial: tuple[MLPWeights, ...],
    reset: Bool[Array, "B T"] | None,
) -> tuple[tuple[FastWeights, ...], tuple[LevelState, ...]]:
    """Weights for the tokens of a chunk, and the states from which its last document goes on."""
    if reset is None:
        return tuple(FastWeights(s.weights, s.weights, None) for s in levels), levels
    rows = jnp.any(reset, axis=1)
    # Where there is no reset the two are the same, and what is learnt from are those `after`.
    is_after = (jnp.cumsum(reset, axis=1) > 0) | ~rows[:, None]
    started = tuple(start_over(*pair, rows) for pair in zip(levels, initial, strict=True))
    fast = tuple(
        FastWeights(old.weights, new.weights, is_after)
        for old, new in zip(levels, started, strict=True)
    )
    return fast, started


def counted_tokens(reset: Bool[Array, "B T"], following: Bool[Array, "B 1"]) -> Bool[Array, "B T"]:
    """Which tokens belong to the document of the token that follows: no reset comes after them."""
    later = jnp.concatenate([reset[:, 1:], following], axis=1)
    return jnp.cumsum(later[:, ::-1], axis=1)[:, ::-1] == 0


def chunk_gradient(
    gradient: MLPWeights,
    inputs: MLPWeights,
    weights: MLPWeights,
    counted: Float[Array, "B T"],
    config: InContextConfig,
) -> MLPWeights:
    """A chunk's G, DGD's decay included, from the sum of the gradients of its counted tokens.

    It is divided by the chunk's size, not by how many tokens are counted.
    """
    if config.optimizer == "dgd":
        decay = forgetting(inputs, weights, counted)
        gradient = jax.tree.map(jnp.add, gradient, decay)
    return jax.tree.map(lambda g: g / config.chunks[0], gradient)


def drop_finished(
    levels: tuple[LevelState, ...],
    initial: tuple[MLPWeights, ...],
    reset: Bool[Array, "B C"],
    count: Int[Array, ""],
) -> tuple[LevelState, ...]:
    """Levels without what documents that ended in the open chunk have left: no token reads it again."""
    rows = jnp.any(reset & (jnp.arange(reset.shape[1]) < count), axis=1)
    return tuple(start_over(*pair, rows) for pair in zip(levels, initial, strict=True))
