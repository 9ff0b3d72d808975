"""Sampling from a language model, one token at a time in constant memory."""

import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hope_jax.models.language_model import LanguageModel, ModelState


class Context(NamedTuple):
    """A model that has read some text and is about to say what follows; a pytree of arrays.

    Attributes:
      state: of the model, after everything read or sampled so far.
      logits: of the next token.
    """

    state: ModelState
    logits: Float[Array, "B V"]


def read(
    model: LanguageModel,
    params: Any,
    tokens: Int[Array, "B T"] | Int[np.ndarray, "B T"],
    context: Context | None = None,
) -> Context:
    """Reads at least one token, all of them in one parallel call.

    Args:
      model: that reads.
      params: of the model.
      tokens: ids.
      context: to continue from; None starts a new one.

    Returns:
      The context after the last token.
    """
    if tokens.shape[1] == 0:
        raise ValueError("there is nothing to read: tokens has length 0; give at least one token")
    state = None if context is None else context.state
    return _read(model, params, tokens, state)


def read_in_segments(
    model: LanguageModel,
    params: Any,
    tokens: Int[np.ndarray, "B T"],
    segment: int,
    context: Context | None = None,
) -> Context:
    """As `read`, `segment` tokens at a time, in memory that does not grow with them."""
    context = read(model, params, tokens[:, :segment], context)
    for start in range(segment, tokens.shape[1], segment):
        context = read(model, params, tokens[:, start : start + segment], context)
    return context


def score(
    model: LanguageModel,
    params: Any,
    tokens: Int[Array, "B T"],
    context: Context | None = None,
    *,
    segment: int = 512,
) -> tuple[np.ndarray, Context]:
    """Reads tokens, and tells how well each was foretold, in memory that does not grow with them.

    Args:
      model: that reads.
      params: of the model.
      tokens: ids, at least one.
      context: to continue from; None starts a new one.
      segment: tokens of a call; the result does not depend on it.

    Returns:
      Losses in nats, float32: of all tokens, (B, T), or without a context, of those after the first,
      (B, T - 1). And the context that has read all of them.
    """
    ids = np.asarray(tokens)
    losses, state = [], None
    if context is not None:
        log_probability = np.asarray(jax.nn.log_softmax(context.logits))
        losses.append(-np.take_along_axis(log_probability, ids[:, :1], axis=1))
        state = context.state
    for start in range(0, ids.shape[1] - 1, segment):
        end = min(start + segment, ids.shape[1] - 1)
        part = ids[:, start:end], ids[:, start + 1 : end + 1]
        loss, state = score_segment(model, params, *part, state)
        losses.append(np.asarray(loss))
    joined = np.concatenate(losses, axis=1) if losses else np.zeros((len(ids), 0), np.float32)
    return joined, _read(model, params, ids[:, -1:], state)


@functools.partial(jax.jit, static_argnames="model")
def score_segment(
    model: LanguageModel,
    params: Any,
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    state: ModelState | None,
) -> tuple[Float[Array, "B T"], ModelState]:
    """`LanguageModel.score`, compiled: losses of the targets, and the state after the tokens."""
    output = model.apply({"params": params}, tokens, targets, state, method="score")
    return cast(tuple[Array, ModelState], output)


def sample_token(
    key: Array,
    logits: Float[Array, "B V"],
    temperature: float = 1.0,
    top_p: float = 1.0,
    vocab_size: int | None = None,
) -> Int[Array, " B"]:
    """Draws a token from `softmax(logits / temperature)`, cut to its nucleus.

    Args:
      key: random key.
      logits: of the next token.
      temperature: 0 takes the most likely token.
      top_p: only the smallest set of most likely tokens that holds this probability is drawn from;
        1 keeps all.
      vocab_size: only ids below are drawn, where a model has more than its tokenizer; None for all.

    Returns:
      Ids.

    Raises:
      ValueError: for a negative temperature, or `top_p` outside (0, 1].
    """
    check_sampling(temperature, top_p)
    if vocab_size is not None:
        logits = logits[:, :vocab_size]
    if temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / temperature
    if top_p < 1:
        ordered = -jnp.sort(-logits, axis=-1)
        probability = jax.nn.softmax(ordered, axis=-1)
        # A token stays if those before it hold less than top_p; the first always stays.
        before = jnp.cumsum(probability, axis=-1) - probability
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return jax.random.categorical(key, logits, axis=-1)


def check_sampling(temperature: float, top_p: float) -> None:
    """Raises ValueError for settings that `sample_token` does not accept."""
    if not (0 <= temperature < float("inf")):
        raise ValueError(f"temperature must be at least 0 (0 is greedy), got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1] (1 keeps every token), got {top_p}")


@functools.partial(
    jax.jit,
    static_argnames=("model", "temperature", "top_p", "vocab_size"),
    donate_argnames="context",
)
def decode_step(
    model: LanguageModel,
    params: Any,
    context: Context,
    key: Array,
    temperature: float = 1.0,
    top_p: float = 1.0,
    vocab_size: int | None = None,
) -> tuple[Int[Array, " B"], Context]:
    """Draws the next token and reads it; the buffers of `context` are reused.

    Args:
      model: that speaks.
      params: of the model.
      context: given up by the caller.
      key: random key of this token.
      temperature: see `sample_token`.
      top_p: see `sample_token`.
      vocab_size: see `sample_token`.

    Returns:
      The token, and the context that has read it.
    """
    token = sample_token(key, context.logits, temperature, top_p, vocab_size)
    return token, _read(model, params, token[:, None], context.state)


@functools.partial(jax.jit, static_argnames="model")
def _read(model: LanguageModel, params: Any, tokens: Array, state: ModelState | None) -> Context:
    output = model.apply({"params": params}, tokens, state, method="next_logits")
    logits, state = cast(tuple[Array, ModelState], output)
    return Context(state, logits)


def generate(
    model: LanguageModel,
    params: Any,
    context: Context,
    key: Array,
    *,
    num_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    vocab_size: int | None = None,
    end_ids: Collection[int] = (),
    on_token: Callable[[np.ndarray], None] = lambda token: None,
) -> tuple[np.ndarray, Context]:
    """Samples a continuation of whatever `context` has read, a call a token.

    For text that is shown as it comes, or that ends where the model ends it. `sample` is one compiled
    call, and many times as fast where many sequences are wanted.

    Args:
      model: that speaks.
      params: of the model.
      context: from `read` or an earlier call; its buffers are reused.
      key: random key.
      num_tokens: how many to draw.
      temperature: see `sample_token`.
      top_p: see `sample_token`.
      vocab_size: see `sample_token`.
      end_ids: ids after which nothing more is drawn, once every sequence has had one; a sequence that
        had its own before the others goes on, and is to be cut there.
      on_token: called with the ids, shaped (B,), of each token as it is made.

    Returns:
      Ids, int32 shaped (B, num_tokens) or shorter, and the context that has read all of them.
    """
    check_sampling(temperature, top_p)
    made: list[np.ndarray] = []
    running: list[Array] = []
    ended = np.zeros(context.logits.shape[0], bool)

    def look() -> None:
        made.append(np.asarray(running.pop(0)))
        ended[np.isin(made[-1], list(end_ids))] = True
        on_token(made[-1])

    for index in range(num_tokens):
        step_key = jax.random.fold_in(key, index)
        token, context = decode_step(
            model, params, context, step_key, temperature, top_p, vocab_size
        )
        running.append(token)
        # Looked at only when the next step has been sent off, unless this one may be the last.
        if end_ids or len(running) > 1:
            look()
        if ended.all():
            break
    while running:
        look()
    ids = np.stack(made, axis=1) if made else np.zeros((context.logits.shape[0], 0))
    return ids.astype(np.int32), context


@functools.partial(
    jax.jit, static_argnames=("model", "num_tokens", "temperature", "top_p", "vocab_size")
)
def sample(
    model: LanguageModel,
    params: Any,
    context: Context,
    key: Array,
    *,
    num_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    vocab_size: int | None = None,
    given: Int[Array, "B N"] | None = None,
    given_length: Int[Array, " B"] | int = 0,
) -> tuple[Int[Array, "B N"], Context]:
    """Samples a continuation of whatever `context` has read, all of it in one compiled scan.

    The tokens are those of `generate` with the same key. Nothing comes back to the host before the last
    of them, so that sequences cannot be shown or ended early; it is made for whole batches, and for use
    inside functions that are compiled or mapped themselves. Under `jax.vmap`, levels that learn in
    context go through a chunk again at every token: give it a batch instead.

    Args:
      model: that speaks.
      params: of the model.
      context: from `read` or an earlier call; it stays usable.
      key: random key.
      num_tokens: N, how many to draw for each sequence; each number is compiled once.
      temperature: see `sample_token`.
      top_p: see `sample_token`.
      vocab_size: see `sample_token`.
      given: tokens that are read in the place of drawn ones, such as prefixes of different lengths.
      given_length: how many of each row of `given`, from its start.

    Returns:
      Ids, int32, and the context that has read all of them.

    Example:
      >>> from hope_jax import LanguageModel, LanguageModelConfig
      >>> sizes = dict(vocab_size=16, width=8, num_layers=1, num_heads=2, mlp_width=8)
      >>> config = LanguageModelConfig(**sizes, sequence_layer="attention")
      >>> model, prompts = LanguageModel(config), jnp.ones((32, 3), jnp.int32)
      >>> params = jax.jit(model.init)(jax.random.key(0), prompts)["params"]
      >>> context = read(model, params, prompts)
      >>> tokens, context = sample(model, params, context, jax.random.key(0), num_tokens=5)
      >>> tokens.shape
      (32, 5)
    """

    def step(context: Context, index: Array) -> tuple[Context, Array]:
        step_key = jax.random.fold_in(key, index)
        token = sample_token(step_key, context.logits, temperature, top_p, vocab_size)
        if given is not None:
            token = jnp.where(index < given_length, given[:, index], token)
        after = _read(model, params, token[:, None], context.state)
        # A prompt of another integer type leaves its own in the open chunk.
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, context)
        return after, token.astype(jnp.int32)

    context, tokens = jax.lax.scan(step, context, jnp.arange(num_tokens))
    return jnp.moveaxis(tokens, 0, 1), context
