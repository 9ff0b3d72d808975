"""Memory networks, several side by side: those that share a key share their first products.

A memory network is a matrix, `M(x) = x W`, or a residual MLP, `M(x) = x + sigma(x W_2) W_1`
(Eq. 89, 91). A bank is a number of them that are written with the same key: the columns of their
first maps stand side by side in one array, so that one matrix product, and one triangular solve,
serves them all. Memories whose output is a value of the key's width keep the residual; memories
whose output is one number, a gate, have none.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hope_jax.memory.linear_map import dot


class Weights(NamedTuple):
    """Weights of a bank of M value memories and G gate memories, or anything of their structure.

    Attributes:
      first: columns of the first maps, value memories before gate memories. Shape (N, M E + G E) for
        residual MLPs of hidden width E, (N, M N + G) for matrices.
      values: second maps of the value memories, shape (M, E, N); `None` for matrices or M = 0.
      gates: second maps of the gate memories, shape (G, E, 1); `None` for matrices or G = 0.
    """

    first: Float[Array, "N S"]
    values: Float[Array, "M E N"] | None
    gates: Float[Array, "G E 1"] | None


class Outputs(NamedTuple):
    """Outputs of a bank, or local errors at its outputs.

    Attributes:
      values: shape (M, C, N).
      gates: shape (G, C, 1).
    """

    values: Float[Array, "M C N"]
    gates: Float[Array, "G C 1"]


class Hidden(NamedTuple):
    """What a forward pass leaves for the local errors of the first maps.

    Attributes:
      activations: inputs of the second maps, value memories before gate memories, shape (M + G, C, E).
      slope: derivative of the activation, shape (C, M E + G E).
    """

    activations: Float[Array, "m C E"]
    slope: Float[Array, "C S"]


class Anchor(NamedTuple):
    """The weights at which a chunk's tokens are evaluated: those of the chunk's start.

    Attributes:
      weights: at the chunk's start.
      initial: those that a reset returns to; `None` without resets.
      restarted: rows evaluated at `initial`, because a reset lies between the chunk's start and
        them. Shape (C,); `None` without resets.
    """

    weights: Weights
    initial: Weights | None = None
    restarted: Bool[Array, " C"] | None = None


@dataclasses.dataclass(frozen=True)
class Bank:
    """How many memories stand side by side, and of what kind.

    Attributes:
      num_values: M, memories from keys to values.
      num_gates: G, memories from keys to one number.
      activation: sigma of the residual MLP, elementwise and smooth; `None` for matrix memories.
    """

    num_values: int = 1
    num_gates: int = 0
    activation: Callable[[Array], Array] | None = jax.nn.gelu

    def init(
        self, key: jax.Array, width: int, hidden: int | None = None, dtype=jnp.float32
    ) -> Weights:
        """Draws initial weights: normal with variance 1 / (input width) for every map.

        Args:
          key: a PRNG key.
          width: N, of keys and values.
          hidden: E, of the residual MLP; the same as `width` if not given.
          dtype: of the weights.

        Returns:
          Weights for one head.

        Example:
          >>> import jax
          >>> weights = Bank(num_values=2, num_gates=1).init(jax.random.key(0), width=4)
          >>> weights.first.shape, weights.values.shape, weights.gates.shape
          ((4, 12), (2, 4, 4), (1, 4, 1))
        """
        keys = jax.random.split(key, 3)

        def normal(key, *shape):
            return jax.random.normal(key, shape, dtype) / jnp.sqrt(shape[-2]).astype(dtype)

        if self.activation is None:
            columns = self.num_values * width + self.num_gates
            return Weights(normal(keys[0], width, columns), None, None)
        hidden = width if hidden is None else hidden
        count = self.num_values + self.num_gates
        return Weights(
            first=normal(keys[0], width, count * hidden),
            values=normal(keys[1], self.num_values, hidden, width) if self.num_values else None,
            gates=normal(keys[2], self.num_gates, hidden, 1) if self.num_gates else None,
        )

    def forward(
        self, anchor: Anchor, rows: Float[Array, "C *m N"], dtype: jnp.dtype
    ) -> tuple[Outputs, Hidden | None]:
        """Applies every memory of the bank to the same rows, or each to its own.

        Args:
          anchor: the weights to evaluate at.
          rows: inputs, shape (C, N), or (C, M + G, N), value memories before gate memories.
          dtype: of the operands of matrix products.

        Returns:
          The outputs, and what `errors` needs (`None` for matrices).
        """
        if rows.ndim == 3:
            product = self._own_products(anchor, rows, dtype)
            rows = rows.swapaxes(0, 1)[: self.num_values]
        else:
            product = anchored_dot(anchor, "first", rows, dtype)
        if self.activation is None:
            return self.split(product, rows.shape[-1]), None
        activations, slope = activate(self.activation, product)
        hidden = Hidden(self.split_hidden(activations), slope)
        values = jnp.zeros((0, *rows.shape[-2:]), product.dtype)
        gates = jnp.zeros((0, product.shape[0], 1), product.dtype)
        if self.num_values:
            inputs = hidden.activations[: self.num_values]
            values = rows + anchored_dot(anchor, "values", inputs, dtype)
        if self.num_gates:
            gates = anchored_dot(anchor, "gates", hidden.activations[self.num_values :], dtype)
        return Outputs(values, gates), hidden

    def _own_products(self, anchor, rows, dtype):
        """The first maps' products where each memory has rows of its own, side by side as ever."""
        width = rows.shape[-1]
        count = self.num_values + self.num_gates
        widths = [width] * self.num_values + [1] * self.num_gates
        if self.activation is not None:
            widths = [anchor.weights.first.shape[1] // count] * count
        own, products = rows.swapaxes(0, 1), []
        for part in (slice(0, self.num_values), slice(self.num_values, count)):
            start, stop = sum(widths[: part.start]), sum(widths[: part.stop])
            if start == stop:
                continue

            def columns(weights, start=start, stop=stop, part=part):
                maps = weights.first[:, start:stop].reshape(width, part.stop - part.start, -1)
                return Weights(maps.swapaxes(0, 1), None, None)

            initial = None if anchor.initial is None else columns(anchor.initial)
            own_anchor = Anchor(columns(anchor.weights), initial, anchor.restarted)
            products.append(anchored_dot(own_anchor, "first", own[part], dtype))
        return self.join(*products)

    def forward_pair(
        self,
        anchor: Anchor,
        keys: Float[Array, "C N"],
        values: Float[Array, "C N"],
        dtype: jnp.dtype,
    ) -> tuple[tuple[Outputs, Hidden | None], tuple[Outputs, Hidden | None]]:
        """Applies every memory to keys and to values, in one pass over both.

        Args:
          anchor: the weights to evaluate at.
          keys: k, shape (C, N).
          values: v, shape (C, N).
          dtype: of the operands of matrix products.

        Returns:
          What `forward` gives for the keys, and for the values.
        """
        count = keys.shape[0]
        if anchor.restarted is not None:
            anchor = anchor._replace(restarted=jnp.concatenate([anchor.restarted] * 2))
        outputs, hidden = self.forward(anchor, jnp.concatenate([keys, values]), dtype)

        def take(rows):
            part = Outputs(*(output[:, rows] for output in outputs))
            if hidden is None:
                return part, None
            return part, Hidden(hidden.activations[:, rows], hidden.slope[rows])

        return take(slice(count)), take(slice(count, None))

    def carry_back(self, anchor: Anchor, errors: Outputs, dtype: jnp.dtype) -> Float[Array, "C S"]:
        """Carries errors at the outputs back to the activations, or to the columns of matrices.

        Args:
          anchor: the weights to evaluate at.
          errors: d at the outputs, or any multiple of it.
          dtype: of the operands of matrix products.

        Returns:
          d at the inputs of the second maps, shape (C, S); times the activation's slope it is d at the
          outputs of the first. Matrix memories have one map, and d at its outputs.
        """
        if self.activation is None:
            return self.join(errors.values, errors.gates)
        back = [
            anchored_dot(anchor, name, error, dtype, transpose=True)
            for name, error in (("values", errors.values), ("gates", errors.gates))
            if error.shape[0]
        ]
        return self.join(*back)

    def split(self, product: Float[Array, "C S"], width: int) -> Outputs:
        """Cuts the side-by-side columns of matrix memories into their outputs."""
        count = product.shape[0]
        values = product[:, : self.num_values * width]
        gates = product[:, self.num_values * width :]
        return Outputs(
            values.reshape(count, self.num_values, width).swapaxes(0, 1),
            gates.reshape(count, self.num_gates, 1).swapaxes(0, 1),
        )

    def split_hidden(self, columns: Float[Array, "C S"]) -> Float[Array, "m C E"]:
        """Cuts the side-by-side hidden columns into memories, M + G of them."""
        count = self.num_values + self.num_gates
        hidden = columns.shape[1] // count
        return columns.reshape(columns.shape[0], count, hidden).swapaxes(0, 1)

    @staticmethod
    def join(*groups: Float[Array, "M C E"]) -> Float[Array, "C S"]:
        """Sets the columns of several memories side by side, the opposite of the two above."""
        flat = [group.swapaxes(0, 1).reshape(group.shape[1], -1) for group in groups]
        return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=-1)


def anchored_dot(
    anchor: Anchor,
    name: str,
    rows: Float[Array, "*m C I"],
    dtype: jnp.dtype,
    transpose: bool = False,
) -> Float[Array, "*m C O"]:
    """Multiplies rows by one group of maps, each row by the weights that it is evaluated at.

    Args:
      anchor: the weights.
      name: field of `Weights`.
      rows: shape (C, I), or (M, C, I) for second maps.
      dtype: of the operands.
      transpose: multiply by the maps' transposes.

    Returns:
      Products, at least float32.
    """

    def product(weights):
        weight = getattr(weights, name)
        return dot(rows, weight.swapaxes(-1, -2) if transpose else weight, dtype)

    out = product(anchor.weights)
    if anchor.restarted is None:
        return out
    return jnp.where(anchor.restarted[:, None], product(anchor.initial), out)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def activate(
    activation: Callable[[Array], Array], rows: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Applies an elementwise function and its derivative.

    The derivative of both is two factors, slope and curvature, formed in one pass with them. What
    automatic differentiation keeps instead is every intermediate of the activation, which compilers
    then compute again for each use.

    Args:
      activation: sigma, elementwise and twice differentiable.
      rows: any shape.

    Returns:
      sigma and its slope at every entry.

    Example:
      >>> import jax.numpy as jnp
      >>> [x.tolist() for x in activate(jnp.square, jnp.array([3.0]))]
      [[9.0], [6.0]]
    """
    return jax.jvp(activation, (rows,), (jnp.ones_like(rows),))


@activate.defjvp
def _activate_jvp(activation, primals, tangents):
    (rows,), (rows_dot,) = primals, tangents
    ones = jnp.ones_like(rows)
    value, slope = activate(activation, rows)
    curvature = jax.jvp(lambda x: jax.jvp(activation, (x,), (ones,))[1], (rows,), (ones,))[1]
    return (value, slope), (slope * rows_dot, curvature * rows_dot)
