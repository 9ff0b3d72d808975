"""How the weights of an MLP level change while a model reads (Eq. 71)."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

from hope_jax.layers.mlp import MLPWeights
from hope_jax.memory.directions import direction
from hope_jax.memory.objectives import own_loss
from hope_jax.settings import check_fields, located, setting


@dataclasses.dataclass(frozen=True)
class InContextConfig:
    """How levels learn in context. Each sequence has its own copy of what changes.

    Level l changes after every C_l tokens, by G, the sum of the gradients of those tokens' losses
    over C_l: `W <- W_0 + (1 - decay) (W - W_0) - step G`, where W_0 are the slow weights that it began
    with. Chunks are counted from the start of the context. A document that begins within one begins
    with W_0, and only its tokens are learnt from. The sum is divided by C_l then too: each token moves
    the weights by step / C_l wherever its chunk ends, and a document of one token by no more.

    Raises:
      ValueError: on construction, for values that do not fit each other.

    Example:
      >>> InContextConfig(chunks=(64, 512)).chunks
      (64, 512)
    """

    # "local" is |MLP(k) - v|^2 / (2 D) with keys and values projected from the level's input; it needs
    # no pass through the model. A loss of one's own takes the place of that square: a number for one
    # token's MLP(k) and v.
    objective: Literal["next_token", "local"] | Callable[..., Any] = setting(
        "what is descended: the model's own loss on the chunk just read, each level's regression, or "
        "that with a loss of your own",
        "next_token",
    )
    # With several here and one level in a chain, the adapting blocks share them out evenly, the first
    # blocks being the fastest: ad-hoc level stacking (section 7.3).
    chunks: tuple[int, ...] = setting(
        "C_l, tokens after which each level changes, fastest first", (64,), least=1
    )
    # "dgd" also decays each map along its inputs: G + mean of u^T u W, u = x / max(|x|, 1) (Eq. 121).
    optimizer: Literal["sgd", "momentum", "dgd"] = setting("of the levels", "sgd")
    step_size: float | tuple[float, ...] = setting(
        "of all chunks, or one for each; 0 learns nothing", 1.0, least=0
    )
    learned_step: bool = setting(
        "whether training scales each level's step, by exp of a parameter", True
    )
    momentum: float = setting(
        'of "momentum": M <- momentum M + G takes the place of G', 0.9, least=0, below=1
    )
    decay: float = setting("towards the slow weights, at each change", 0.0, least=0, most=1)
    # One chunk that is unlike the others has a long gradient; a step that fits most is too long for it.
    largest_change: float | None = setting(
        "norm of a level's change at one step, over that of its slow weights, at most; None for any",
        None,
        above=0,
    )
    blocks: int | None = setting(
        "how many of the last blocks adapt; None for a quarter, rounded up", None, least=1
    )
    # None goes through all, exactly; 0 takes inner gradients for constants, which saves the memory of
    # their derivatives.
    gradient_steps: int | None = setting(
        "inner steps after which the outer gradient is cut; None for never, 0 for each",
        None,
        least=0,
    )
    # Of everyone who reads with these parameters; a reader's own are in the state (hope_jax.sleep).
    experts: int = setting(
        "low-rank experts in the parameters for what each frequency has learned", 0, least=0
    )
    expert_width: int = setting("of those experts", 64, least=1)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.chunks:
            raise ValueError("chunks is empty; give a number of tokens for each level")
        for fast, slow in zip(self.chunks, self.chunks[1:], strict=False):
            if slow % fast:
                raise ValueError(
                    f"each of chunks must divide the next, fastest first; {fast} does not "
                    f"divide {slow} in {self.chunks}"
                )
        if len(self.step_sizes) != len(self.chunks):
            raise ValueError(
                f"step_size must be one number, or one for each of the chunks "
                f"{self.chunks}; got {self.step_size}"
            )
        with located("objective"):
            _ = self.local_loss

    @property
    def local_loss(self) -> Callable[[Array, Array], Array] | None:
        """Of what a level gives for its keys and of the values, by token; None for the model's own."""
        if self.objective == "next_token":
            return None
        wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.objective == "local":
            return lambda given, value: jnp.square(wide(given - value)).mean(-1) / 2
        loss = jnp.vectorize(own_loss(str(self.objective)), signature="(n),(n)->()")
        return lambda given, value: loss(wide(given), wide(value))

    @property
    def step_sizes(self) -> tuple[float, ...]:
        """One for each of `chunks`."""
        given = self.step_size
        return given if isinstance(given, tuple) else (given,) * len(self.chunks)

    def chunk_of_each(self, blocks: int, levels: int) -> np.ndarray:
        """Index into `chunks` for every level of every adapting block, (blocks, levels).

        Raises:
          ValueError: if there are neither as many chunks as levels, nor several for one level.
        """
        count = len(self.chunks)
        if count == levels:
            return np.tile(np.arange(levels), (blocks, 1))
        if levels == 1 and count <= blocks:
            return (np.arange(blocks) * count // blocks)[:, None]
        raise ValueError(
            f"in_context.chunks {self.chunks} must hold one number for each of the {levels} levels of "
            f"a chain (cms_levels) or, where cms_levels is 1, at most one for each of the {blocks} "
            f"blocks that adapt (in_context.blocks)"
        )

    def sender_of_each(self, blocks: int, levels: int) -> np.ndarray:
        """Whose knowledge each pool of experts takes in, (blocks, pools): an index into `chunks`.

        Knowledge of a frequency goes to the levels of the next slower one, and of the slowest to what
        lies below it, beside the same MLPs. It is -1 where a block has no use of a pool.
        """
        frequency = self.chunk_of_each(blocks, levels)
        slowest = len(self.chunks) - 1
        if len(self.chunks) == levels:
            return frequency  # a pool for each level
        to_level = frequency[:, 0] - 1
        to_base = np.where(frequency[:, 0] == slowest, slowest, -1)
        return np.stack([to_level, to_base], axis=1)


class Adaptation(NamedTuple):
    """What the levels of a block, or with a further leading axis of several, learn by.

    Attributes:
      initial: slow weights W_0 of each level, float32 or wider.
      step: step sizes.
      period: number of chunks, of the smallest size, after which each level changes.
      restart: number of them after which a nested level returns to W_0; 0 for never.
      keys: projections of the local objective, or None.
      values: likewise.
    """

    initial: tuple[MLPWeights, ...]
    step: Float[Array, "*A L"]
    period: Int[Array, "*A L"]
    restart: Int[Array, "*A L"]
    keys: Float[Array, "*A L D D"] | None
    values: Float[Array, "*A L D D"] | None


class LevelState(NamedTuple):
    """One level's fast part, every array (B, ...), or (A, B, ...) for A blocks, float32 or wider.

    Attributes:
      weights: as they are at the start of the open chunk.
      gradient: sum over the chunks since the level last changed; `()` if every chunk changes it.
      momentum: M; `()` without.
    """

    weights: MLPWeights
    gradient: MLPWeights | tuple[()]
    momentum: MLPWeights | tuple[()]


class FastWeights(NamedTuple):
    """A level's weights during one chunk.

    Attributes:
      before: of tokens before the chunk's first reset.
      after: of the others.
      is_after: which tokens those are; None if there can be no reset.
    """

    before: MLPWeights
    after: MLPWeights
    is_after: Bool[Array, "B T"] | None


def init_level(
    initial: MLPWeights, batch: int, config: InContextConfig, every_chunk: bool
) -> LevelState:
    """The state of a level that has learnt nothing.

    Args:
      initial: W_0, (D, H) and so on.
      batch: sequences.
      config: of the learning.
      every_chunk: whether the level changes after every one of the smallest chunks.
    """
    weights = jax.tree.map(lambda w: jnp.broadcast_to(w, (batch, *w.shape)), initial)
    # Of each its own buffers, so that the state can be donated.
    zero = lambda: jax.tree.map(jnp.zeros_like, weights)
    return LevelState(
        weights, () if every_chunk else zero(), zero() if config.optimizer == "momentum" else ()
    )


def start_over(
    state: LevelState, initial: MLPWeights, rows: Bool[Array, " B"] | None
) -> LevelState:
    """The state with the sequences in `rows` as if nothing had been read."""
    if rows is None:
        return state
    choose = lambda new, old: jnp.where(rows[:, None, None], new, old)
    return LevelState(
        jax.tree.map(choose, initial, state.weights),
        jax.tree.map(lambda old: choose(jnp.zeros((), old.dtype), old), state.gradient),
        jax.tree.map(lambda old: choose(jnp.zeros((), old.dtype), old), state.momentum),
    )


def forgetting(inputs: MLPWeights, weights: MLPWeights, counted: Float[Array, "B T"]) -> MLPWeights:
    """DGD's decay along what each map has read, `sum_t u_t^T u_t W`, u as in a memory's projector."""

    def one(x: Array, w: Array) -> Array:
        along = direction(x)[0].astype(w.dtype)
        read = jnp.einsum("btd,bdh->bth", along, w)
        return jnp.einsum("btd,bth->bdh", along * counted[..., None].astype(w.dtype), read)

    return jax.tree.map(one, inputs, weights)


def learn_level(
    state: LevelState,
    gradient: MLPWeights,
    initial: MLPWeights,
    step: Float[Array, ""],
    period: Int[Array, ""],
    restart: Int[Array, ""],
    chunks_before: Int[Array, ""],
    config: InContextConfig,
) -> LevelState:
    """The level after one more chunk of the smallest size.

    Args:
      state: at the start of the chunk, sequences that were reset in it started over.
      gradient: sum over the chunk's counted tokens, over its size; DGD's decay included.
      initial: W_0.
      step: step size.
      period: number of chunks after which the level changes.
      restart: number of chunks after which it returns to `initial`; 0 for never.
      chunks_before: chunks of the smallest size that came before this one.
      config: of the learning.

    Returns:
      The state at the start of the next chunk.
    """
    due = (chunks_before + 1) % period == 0
    if state.gradient != ():
        gradient = jax.tree.map(jnp.add, state.gradient, gradient)
    total = gradient
    mean = jax.tree.map(lambda g: g / period, total)
    if config.gradient_steps == 0:
        mean = stop_gradient(mean)
    momentum, direction = state.momentum, mean
    if momentum != ():
        direction = jax.tree.map(lambda m, g: config.momentum * m + g, momentum, mean)
        momentum = jax.tree.map(lambda new, old: jnp.where(due, new, old), direction, momentum)

    change = jax.tree.map(lambda g: step.astype(g.dtype) * g, direction)
    if config.largest_change is not None:
        change = _bounded(change, initial, config.largest_change)

    def moved(w: Array, change: Array, w_0: Array) -> Array:
        kept = w if config.decay == 0 else w_0 + (1 - config.decay) * (w - w_0)
        new = kept - change
        if state.gradient != ():
            new = jnp.where(due, new, w)
        return new

    weights = jax.tree.map(moved, state.weights, change, initial)
    left = () if state.gradient == () else _where(due, 0.0, total)
    restarted = (restart > 0) & ((chunks_before + 1) % jnp.maximum(restart, 1) == 0)
    weights = jax.tree.map(lambda w, w_0: jnp.where(restarted, w_0, w), weights, initial)
    momentum = _where(restarted, 0.0, momentum)
    if config.gradient_steps:
        cut = (chunks_before + 1) % config.gradient_steps == 0
        # The slow weights keep a straight way through, at no change of the value.
        through = lambda w, w_0: stop_gradient(w) + (w_0 - stop_gradient(w_0))
        weights = jax.tree.map(lambda w, w_0: jnp.where(cut, through(w, w_0), w), weights, initial)
        left, momentum = (
            jax.tree.map(lambda x: jnp.where(cut, stop_gradient(x), x), tree)
            for tree in (left, momentum)
        )
    return LevelState(weights, left, momentum)


def _bounded(change: MLPWeights, initial: MLPWeights, largest: float) -> MLPWeights:
    """A sequence's change of a level, shortened to `largest` times the norm of its slow weights."""
    squares = lambda tree: sum(jnp.sum(jnp.square(x), axis=(-2, -1)) for x in tree)
    limit, length = largest**2 * squares(initial), squares(change)
    long = length > limit
    scale = jnp.where(long, jnp.sqrt(limit / jnp.where(long, length, 1)), 1)
    return jax.tree.map(lambda x: scale[:, None, None] * x, change)


def _where(condition, value, tree):
    return jax.tree.map(lambda x: jnp.where(condition, jnp.asarray(value, x.dtype), x), tree)
