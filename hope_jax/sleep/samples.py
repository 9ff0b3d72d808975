"""What a reader says by itself, and what it is given to begin with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from hope_jax.inference.sampling import Context, read, sample
from hope_jax.models.language_model import LanguageModel


class Openings(NamedTuple):
    """Openings of any lengths, of which each sample takes one at random.

    As many tokens as the shortest has are read at once, those behind them one by one.

    Attributes:
      first: these tokens of each.
      rest: what is left of each, filled up at its end.
      length: how many of each row of the rest.
    """

    first: Int[Array, "N F"]
    rest: Int[Array, "N R"]
    length: Int[Array, " N"]


class Samples(NamedTuple):
    """Sequences, in each of which a part has been drawn.

    Attributes:
      tokens: ids.
      start: where that part begins, behind what was given.
      end: behind its last token. What lies there fills the row up.
    """

    tokens: Int[Array, "*n T"]
    start: Int[Array, "*n"]
    end: Int[Array, "*n"]

    @property
    def spoken(self) -> Bool[Array, "*n T"]:
        """Which tokens were drawn."""
        place = jnp.arange(self.tokens.shape[-1])
        return (place >= self.start[..., None]) & (place < self.end[..., None])


def in_rows(
    sequences: Sequence[Sequence[int] | Int[np.ndarray, " T"]],
) -> tuple[Int[np.ndarray, "N P"], Int[np.ndarray, " N"]]:
    """Ids of any lengths in rows that are filled up at their ends, and how many of each row count.

    Args:
      sequences: of ids; at least one.

    Example:
      >>> rows, lengths = in_rows([[7, 8, 9], [5]])
      >>> rows.tolist(), lengths.tolist()
      ([[7, 8, 9], [5, 0, 0]], [3, 1])
    """
    lengths = np.array([len(ids) for ids in sequences])
    rows = np.zeros((len(sequences), lengths.max()), np.int32)
    for row, ids in zip(rows, sequences, strict=True):
        row[: len(ids)] = ids
    return rows, lengths


def openings_of(
    prompts: Int[Array, "N P"] | Int[np.ndarray, "N P"],
    lengths: Int[np.ndarray, " N"] | None = None,
) -> Openings:
    """Openings of rows of ids.

    Args:
      prompts: the rows.
      lengths: how many tokens of each count, from its start; None for all.

    Raises:
      ValueError: if there are no rows, or a length lies outside 1 to P.

    Example:
      >>> openings = openings_of(jnp.array([[7, 8, 9], [5, 0, 0]]), np.array([3, 1]))
      >>> openings.first.tolist(), openings.rest.tolist(), openings.length.tolist()
      ([[7], [5]], [[8, 9], [0, 0]], [2, 0])
    """
    count, longest = prompts.shape
    lengths = np.full(count, longest) if lengths is None else np.asarray(lengths)
    if (
        lengths.shape != (count,)
        or not count
        or not (1 <= lengths.min() <= lengths.max() <= longest)
    ):
        raise ValueError(
            f"prompt_lengths={lengths.tolist()} must hold a number from 1 to {longest} for each of the "
            f"{count} prompts, of which there must be one"
        )
    least = int(lengths.min())
    prompts, length = jnp.asarray(prompts, jnp.int32), jnp.asarray(lengths - least, jnp.int32)
    return Openings(prompts[:, :least], prompts[:, least : lengths.max()], length)


def say(
    model: LanguageModel,
    params: Any,
    context: Context,
    key: Array,
    openings: Openings | None,
    *,
    num_tokens: int,
    temperature: float,
    top_p: float,
    vocab_size: int | None,
) -> Samples:
    """What a batch says behind openings drawn at random, or from where it was.

    Args:
      model: that speaks.
      params: of the model.
      context: of the batch.
      key: random key.
      openings: None to go on from the context itself.
      num_tokens: that each sequence draws.
      temperature: see `hope_jax.inference.sampling.sample_token`.
      top_p: likewise.
      vocab_size: likewise.
    """
    for_prompts, for_tokens = jax.random.split(key)
    size = context.logits.shape[0]
    opening, given = jnp.zeros((size, 0), jnp.int32), None
    length, most = jnp.zeros(size, jnp.int32), num_tokens
    if openings is not None:
        drawn = jax.random.randint(for_prompts, (size,), 0, openings.first.shape[0])
        opening, rest, length = (leaf[drawn] for leaf in openings)
        context = read(model, params, opening, context)
        if rest.shape[1]:
            given = jnp.pad(rest, ((0, 0), (0, num_tokens)))
            most = given.shape[1]
    tokens, _ = sample(
        model,
        params,
        context,
        for_tokens,
        num_tokens=most,
        temperature=temperature,
        top_p=top_p,
        vocab_size=vocab_size,
        given=given,
        given_length=0 if given is None else length,
    )
    start = opening.shape[1] + length
    return Samples(jnp.concatenate([opening, tokens], 1), start, start + num_tokens)


def without_openings(samples: Samples, num_tokens: int) -> Samples:
    """What was said behind openings, as if nothing had stood before.

    Args:
      samples: of which each has drawn `num_tokens`.
      num_tokens: of each.

    Example:
      >>> said = Samples(jnp.array([[7, 8, 1, 2], [7, 3, 4, 0]]), jnp.array([2, 1]), jnp.array([4, 3]))
      >>> without_openings(said, 2).tokens.tolist()
      [[1, 2], [3, 4]]
    """
    place = samples.start[..., None] + jnp.arange(num_tokens)
    tokens = jnp.take_along_axis(samples.tokens, place, axis=-1)
    return Samples(tokens, jnp.zeros_like(samples.start), samples.end - samples.start)


def mean_of(values: Float[Array, "*n"], counted: Bool[Array, "*n"]) -> Float[Array, ""]:
    """The mean of those that are counted; 0 where none is."""
    return jnp.sum(values * counted) / jnp.maximum(jnp.sum(counted), 1)
