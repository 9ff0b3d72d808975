"""Which parameters are weight matrices, and along which axes.

An orthogonalising optimiser treats a weight as a linear map. `MuonDimensionNumbers`, Optax's own
type, says which axes of an array are summed over (reduction), which are produced (output), and by
omission which merely stack independent matrices (batch): the scan axis of a stack of layers, the
heads that should be treated one by one. The functions here turn what a user writes into one entry
a leaf, show the outcome, and refuse a leaf that nothing covers.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from optax import Params
from optax.contrib import MuonDimensionNumbers

ADAMW: Literal["adamw"] = "adamw"
"""What `resolve_dimension_numbers` puts in place of a leaf that is not a weight matrix."""

WeightDimensionNumbers: TypeAlias = MuonDimensionNumbers | Mapping | Sequence | Callable[[Any], Any]
"""Dimension numbers, a tree or prefix of one of them and None, or a function from parameters."""

# What is no map between two spaces, by parts of names (in lower case, digits left out). Anywhere in
# a path: what has a row for each token, class or position, to be read (embeddings) or written to.
_TABLE = re.compile(
    r"embed|logit|vocab|classif|readout|pos_?emb|pos_?enc|position(?!_?wise)"
    r"|(^|_)(wte|wpe|emb)(_|$)"
    r"|(?<!attention_)(?<!attn_)(?<!multi_)(?<![a-z])(lm|mlm)?head(_(w|weight|kernel|proj|dense))?$"
)
# In the name of the array itself, or at the end of the name of the module that holds it.
_VECTOR = re.compile(r"norm|bias|offset|gain|(^|_|layer)scale|(^|_)ln(?![a-z])")
_MODULE_OF_VECTORS = re.compile(rf"({_VECTOR.pattern})(es|s|_[a-z]+)?$")
# Of the array itself: haiku's b, a norm's g, a vision model's class token, Mamba's A_log.
_OWN_VECTOR = re.compile(
    r"(?<!lora_)(?<![a-z])(b|gamma|beta|log|dt|tokens?|registers?|temperature)(?![a-z])|^(g|d|pos)$"
)


def _words(part: str) -> str:
    """One part of a path, `LayerNorm_0` or `layerNorm`, as `layer_norm`."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", part)
    return re.sub(r"[^a-z]+", "_", apart.lower()).strip("_")


def _is_no_map(name: str, shape: tuple[int, ...]) -> bool:
    """Whether its name, or an axis of one, says that an array is neither a map nor a stack of maps."""
    *modules, own = [part for part in map(_words, name.split("/")) if part] or [""]
    if modules and own == "value":  # flax.nnx: the attribute of the variable that holds the array
        own = modules.pop()
    module = modules[-1] if modules else ""
    if len(shape) == 2 and 1 in shape:
        return True
    if any(_TABLE.search(part) for part in (*modules, own)):
        return True
    if _VECTOR.search(own) or _OWN_VECTOR.search(own) or _MODULE_OF_VECTORS.search(module):
        return True
    if "conv" in own or "conv" in module:
        # Depthwise: one channel in, the channels at the end (..., 1, out) or in front (out, 1, ...).
        return len(shape) == 2 or (shape[0] != 1 and 1 in (shape[1], shape[-2]))
    return False


def _is_entry(x: Any) -> bool:
    return x is None or isinstance(x, MuonDimensionNumbers)


def leaf_name(path: tuple) -> str:
    """A path's parts joined by slashes, as rules and errors have them."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def default_dimension_numbers(params: Params) -> Params:
    """The rule that holds when a user gives none.

    To AdamW go scalars and vectors, two-dimensional arrays with an axis of one, and arrays whose
    path says by a part of a name that they are no maps: embeddings and positions (`wte`,
    `pos_emb`), output heads (`lm_head`, `logits_dense`, `classifier`), norms, scales and biases,
    stacked over layers or not (`ln1/g`, `wi_1_bias`, haiku's `linear/b`), depthwise convolutions,
    logarithms (`A_log`). Every other two-dimensional array is an (in, out) matrix. An array of
    three or more axes could be a stack of layers, a multi-head weight or a convolution, which no
    rule can tell from its shape, so it is an error. `describe_weight_rules` prints the outcome:
    read it once for a new model.

    Args:
      params: Parameters, or anything of the same structure whose leaves have a shape.

    Returns:
      The same structure with `MuonDimensionNumbers` or None in the leaves' places.

    Raises:
      ValueError: A leaf of three or more axes whose name does not settle it.
    """

    def rule(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
        if leaf.ndim < 2 or _is_no_map(leaf_name(path), leaf.shape):
            return None
        if leaf.ndim == 2:
            return MuonDimensionNumbers()
        raise ValueError(
            f"no rule covers {leaf_name(path)}: shape {leaf.shape}. Its axes could be stacked layers, "
            "heads or a convolution window: pass weight_dimension_numbers with "
            "MuonDimensionNumbers(reduction_axis, output_axis) for it (all other axes are batch), "
            "or None to give it to AdamW; dimension_numbers_by_path builds them from patterns."
        )

    return jax.tree_util.tree_map_with_path(rule, params)


def dimension_numbers_by_path(
    rules: Sequence[tuple[str, MuonDimensionNumbers | None]],
) -> Callable[[Params], Params]:
    """Builds dimension numbers from (pattern, dimension numbers) rules; the first match counts.

    A pattern is a regular expression searched for in the leaf's path, whose parts are joined by
    slashes (`blocks/0/attention/query/kernel`).

    Args:
      rules: Pairs of a pattern and what holds for it; None means AdamW.

    Returns:
      A function from parameters to a tree of dimension numbers, to be passed to `m3` as
      `weight_dimension_numbers`. It raises a ValueError that names the first leaf no rule matches.

    Examples:
      >>> import jax.numpy as jnp
      >>> from hope_jax.optim import describe_weight_rules, dimension_numbers_by_path
      >>> from optax.contrib import MuonDimensionNumbers
      >>> params = {"layers": {"query": jnp.ones((6, 8, 2, 4)), "norm": jnp.ones((6, 8))}}
      >>> rules = dimension_numbers_by_path([
      ...     ("query", MuonDimensionNumbers(reduction_axis=1, output_axis=(2, 3))),
      ...     ("norm", None),
      ... ])
      >>> print(describe_weight_rules(params, rules))
      layers/norm   (6, 8)        adamw
      layers/query  (6, 8, 2, 4)  6 matrices of 8 x 8
    """

    def dimension_numbers(params: Params) -> Params:
        def rule(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
            name = leaf_name(path)
            for pattern, numbers in rules:
                if re.search(pattern, name):
                    return numbers
            raise ValueError(
                f"no rule covers {name}: shape {leaf.shape}. Patterns given: "
                f"{[pattern for pattern, _ in rules]}; add one that matches it, or a last "
                "('', None) to give every other leaf to AdamW."
            )

        return jax.tree_util.tree_map_with_path(rule, params)

    return dimension_numbers


class MatrixAxes(NamedTuple):
    """The axes of one array, sorted by role, all non-negative.

    Attributes:
      batch: Axes that stack independent matrices.
      reduction: Axes that a product with the weight sums over.
      output: Axes that a product with the weight produces.
    """

    batch: tuple[int, ...]
    reduction: tuple[int, ...]
    output: tuple[int, ...]

    def to_matrices(self, x: jax.Array) -> jax.Array:
        """Arranges `x` as (batch, reduction, output), each a product of its axes' sizes."""
        sizes = [math.prod(x.shape[axis] for axis in axes) for axes in self]
        return x.transpose(self.batch + self.reduction + self.output).reshape(sizes)

    def from_matrices(self, matrices: jax.Array, like: jax.Array) -> jax.Array:
        """Inverts `to_matrices` for an array of the shape of `like`."""
        order = self.batch + self.reduction + self.output
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return matrices.reshape([like.shape[axis] for axis in order]).transpose(inverse)


def matrix_axes(path: tuple, leaf: jax.Array, numbers: MuonDimensionNumbers) -> MatrixAxes:
    """Checks dimension numbers against a leaf and sorts its axes by role.

    Args:
      path: The leaf's path in its tree, for the error.
      leaf: Anything with a shape.
      numbers: Its dimension numbers; negative axes count from the end.

    Returns:
      The axes by role.

    Raises:
      ValueError: An axis out of range, used twice, or a role without an axis.
    """

    def as_tuple(axes: int | Sequence[int]) -> tuple[int, ...]:
        return (axes,) if isinstance(axes, int) else tuple(axes)

    reduction, output = as_tuple(numbers.reduction_axis), as_tuple(numbers.output_axis)
    given = reduction + output
    used = {axis % leaf.ndim for axis in given} if leaf.ndim else set()
    if (
        not reduction
        or not output
        or any(not -leaf.ndim <= axis < leaf.ndim for axis in given)
        or len(used) != len(given)
    ):
        raise ValueError(
            f"{leaf_name(path)}: shape {leaf.shape} does not fit reduction_axis {reduction} and "
            f"output_axis {output}: each needs at least one axis between {-leaf.ndim} and "
            f"{leaf.ndim - 1}, and no axis may be named twice."
        )
    batch = tuple(axis for axis in range(leaf.ndim) if axis not in used)
    return MatrixAxes(
        batch,
        tuple(axis % leaf.ndim for axis in reduction),
        tuple(axis % leaf.ndim for axis in output),
    )


def resolve_axes(spec: WeightDimensionNumbers | None, params: Params) -> Params:
    """Turns what a user wrote into one checked entry a leaf.

    Args:
      spec: See `WeightDimensionNumbers`; None stands for `default_dimension_numbers`.
      params: Parameters (or updates; only shapes are read).

    Returns:
      A tree of the structure of `params` with `MatrixAxes` in the place of each weight matrix and
      `ADAMW` in the place of every other leaf.
    """
    if not jax.tree.leaves(params):
        return params
    if spec is None:
        spec = default_dimension_numbers
    entries = spec(params) if callable(spec) else spec
    # A prefix tree's entry holds for everything below it. Wrapping keeps None visible as a leaf.
    filled = jax.tree.map(
        lambda entry, below: jax.tree.map(lambda _: (entry,), below),
        entries,
        params,
        is_leaf=_is_entry,
    )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, entry: ADAMW if entry[0] is None else matrix_axes(path, leaf, entry[0]),
        params,
        filled,
    )


def is_axes(x: Any) -> bool:
    """Whether `x` is an entry of a tree that `resolve_axes` made."""
    return isinstance(x, MatrixAxes) or (isinstance(x, str) and x == ADAMW)


def describe_weight_rules(params: Params, spec: WeightDimensionNumbers | None = None) -> str:
    """Says for every parameter whether it is optimised as matrices, and as which.

    Args:
      params: Parameters, or shapes of them.
      spec: What is passed to `m3` as `weight_dimension_numbers`.

    Returns:
      A table, one line a leaf: path, shape, rule. A leaf that no rule covers, or whose rule does
      not fit it, is marked "NO RULE", and a last line says what `m3` would.

    Examples:
      >>> import jax.numpy as jnp
      >>> from hope_jax.optim import describe_weight_rules
      >>> params = {"embed": jnp.ones((9, 4)), "dense": {"kernel": jnp.ones((4, 8))}}
      >>> print(describe_weight_rules(params))
      dense/kernel  (4, 8)  1 matrix of 4 x 8
      embed         (9, 4)  adamw
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)

    def alone(index: int) -> MatrixAxes | str | Exception:
        # With the other leaves out of the way, a rule that refuses one says nothing of the others.
        tree = jax.tree.unflatten(
            treedef, [x if i == index else None for i, (_, x) in enumerate(leaves)]
        )
        try:
            return jax.tree.leaves(resolve_axes(spec, tree), is_leaf=is_axes)[0]
        except Exception as error:  # whatever a user's own rule raises
            return error

    try:
        rules = jax.tree.leaves(resolve_axes(spec, params), is_leaf=is_axes)
    except Exception:
        rules = [alone(index) for index in range(len(leaves))]
    rows = []
    for (path, leaf), axes in zip(leaves, rules, strict=True):
        rule = "NO RULE" if isinstance(axes, Exception) else axes
        if isinstance(axes, MatrixAxes):
            n, i, o = (math.prod(leaf.shape[axis] for axis in role) for role in axes)
            rule = f"{n} {'matrix' if n == 1 else 'matrices'} of {i} x {o}"
        rows.append((leaf_name(path), str(tuple(leaf.shape)), rule))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    lines = [f"{name:{widths[0]}}  {shape:{widths[1]}}  {rule}" for name, shape, rule in rows]
    refusals = [error for error in rules if isinstance(error, Exception)]
    if refusals:
        lines.append(f"{len(refusals)} without a rule, which m3 refuses: {refusals[0]}")
    return "\n".join(lines)


def row_or_matrix(x: jax.Array) -> jax.Array:
    """Views an array as (..., in, out): a vector or scalar is one row, leading axes are a batch."""
    return jnp.reshape(x, (1, -1)) if x.ndim < 2 else x
