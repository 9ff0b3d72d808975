"""Edit distance of token sequences, for a batch at a time, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def levenshtein(
    first: Int[Array, "B N"],
    second: Int[Array, "B M"],
    first_length: Int[Array, " B"] | int | None = None,
    second_length: Int[Array, " B"] | int | None = None,
) -> Int[Array, " B"]:
    """The fewest tokens put in, taken out or exchanged that make one sequence of the other.

    A row of the table of distances is made of the one before it at once: with what ends in taking out or
    exchanging known, the least number of insertions is a running minimum,
    `d_ij = j + min_{h <= j} (c_ih - h)`. So there are N steps over rows of M + 1 numbers.

    Args:
      first: ids.
      second: ids.
      first_length: how many of each row count; None for all.
      second_length: likewise.

    Returns:
      Distances, int32.

    Example:
      >>> kitten, sitting = (jnp.array([list(word)]) for word in (b"kitten", b"sitting"))
      >>> levenshtein(kitten, sitting).tolist(), levenshtein(kitten, sitting, 4, 4).tolist()
      ([3], [1])
    """
    batch, width = second.shape
    lengths = (
        jnp.broadcast_to(jnp.asarray(ids.shape[1] if given is None else given), (batch,))
        for ids, given in ((first, first_length), (second, second_length))
    )
    rows, columns = lengths
    place = jnp.arange(width + 1, dtype=jnp.int32)

    def step(above: Array, inputs: tuple[Array, Array]) -> tuple[Array, None]:
        index, token = inputs
        exchanged = above[:, :-1] + (second != token[:, None])
        ended = jnp.concatenate([above[:, :1] + 1, jnp.minimum(above[:, 1:] + 1, exchanged)], 1)
        row = place + jax.lax.cummin(ended - place, axis=1)
        # Rows of sequences that have ended stay.
        return jnp.where(index < rows[:, None], row, above), None

    start = jnp.broadcast_to(place, (batch, width + 1))
    along = jnp.arange(first.shape[1], dtype=jnp.int32), jnp.moveaxis(first, 1, 0)
    last, _ = jax.lax.scan(step, start, along)
    return jnp.take_along_axis(last, columns[:, None], axis=1)[:, 0]
