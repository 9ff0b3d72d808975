"""How a bank of memories is written and read: one token, or one chunk in parallel."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hope_jax.memory.bank import Anchor, Bank, Hidden, Outputs, Weights
from hope_jax.memory.gates import ChunkDecay, Decay, Gates
from hope_jax.memory.linear_map import (
    ChunkUpdate,
    LinearMapState,
    Projection,
    Reading,
    dot,
    end_chunk,
    prepare_projections,
    prepare_reading,
    read_chunk,
    read_chunk_of_transpose,
    write_chunk,
    write_token,
)
from hope_jax.memory.objectives import GradientOf, dot_error, l2_error


@dataclasses.dataclass(frozen=True)
class MemoryRule:
    """How a bank of memories learns. Hashable, so that it can be a static argument of `jax.jit`.

    Attributes:
      bank: the memories' number and network.
      error: local error of the inner objective, `error(output, target)`; see `objectives.py`.
      projector: which maps have the projector `I - beta u^T u` of Delta Gradient Descent. `per_map`:
        all, each along its own input; `first_map`: the first map of an MLP only; `second_map`: the
        second, so that what is erased is the answer along the hidden activations; `values`: that of a
        matrix, along the value in place of the key and on the other side, `W (I - beta v^T v)`, which
        with the dot-product objective is Oja's rule (Eq. 66-67); `none`: plain gradient descent.
      momentum: whether the writes pass through a momentum (Titans), whose decay is `Gates.log_theta`.
      decay_to: where retention leads: `zero`, or the `initial` weights (the same recurrence on
        `W - W_init`).
      read: which state a token reads. `before`: the one just before its own write (Eq. 83, 94);
        `after`: just after it; `chunk`: the one at its chunk's start (Eq. 90).
      generated_target: whether the target is the memory's own output for the value, `M(v)` (Eq. 91),
        instead of the value.
      bounded_step: whether writes are scaled down where a chunk of equal ones would change the answer
        to their own key by more than their error (`changed_by_chunk`), as those to an MLP do once its
        maps have grown. Those to a matrix with the dot product are left alone: their errors do not
        depend on what they have written.
      flips: whether bounded steps may go on to where the error is as large as before with its sign
        changed (an eigenvalue of -1, which state tracking needs), instead of ending where it is gone.
      chunk_size: C; local errors are taken at the state of the chunk's start.
      window: tokens whose errors, weighed by `Gates.gamma`, each token writes: its own and those
        before it (the Omega rule, Eq. 68).
      states_every: keep the state of every n-th chunk for the backward pass and recompute between.
      form: what runs the chunks. `xla`: a scan. `kernel`: one kernel for TPUs, with the states in VMEM
        from the first chunk to the last; elsewhere it is interpreted, to test it. `auto`: the kernel on
        TPUs where it covers the rule (`kernels/choice.py`), else `xla`, which is what GPUs run too.
    """

    bank: Bank = Bank()
    error: Callable[[Array, Array], Array] = l2_error
    projector: Literal["per_map", "first_map", "second_map", "values", "none"] = "per_map"
    momentum: bool = True
    decay_to: Literal["zero", "initial"] = "zero"
    read: Literal["before", "after", "chunk"] = "before"
    generated_target: bool = False
    bounded_step: bool = False
    flips: bool = False
    chunk_size: int = 64
    window: int = 1
    states_every: int = 1
    form: Literal["auto", "kernel", "xla"] = "auto"

    def __post_init__(self):
        for name, allowed in (
            ("form", ("auto", "kernel", "xla")),
            ("projector", ("per_map", "first_map", "second_map", "values", "none")),
            ("decay_to", ("zero", "initial")),
            ("read", ("before", "after", "chunk")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not known; choose one of {allowed}."
                )
        for name in ("chunk_size", "states_every", "window"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
        if self.window > 1 and self.projector != "none":
            raise ValueError(
                f"window={self.window} writes errors of several tokens, of which a projector would "
                f"erase the last one's alone; set projector='none'."
            )
        if self.projector == "values" and (
            self.bank.activation is not None or self.error is not dot_error or self.generated_target
        ):
            raise ValueError(
                "projector='values' is Oja's rule, which needs a matrix memory, Bank(activation=None), "
                "error=dot_error and generated_target=False."
            )
        if self.projector == "second_map" and self.bank.activation is None:
            raise ValueError(
                "projector='second_map' needs an MLP; a matrix memory has one map, set 'per_map'."
            )

    @property
    def projects_first(self) -> bool:
        """Whether the first map, or the only one, has a projector."""
        return self.projector in ("per_map", "first_map", "values")

    @property
    def projects_second(self) -> bool:
        """Whether the second map has a projector."""
        return self.projector in ("per_map", "second_map")


class Recent(NamedTuple):
    """The W - 1 tokens before the next one, oldest first, whose errors it is to write once more.

    Attributes:
      keys: k, shape (W - 1, N).
      values: v, shape (W - 1, N).
      gamma: weights of their errors, shape (W - 1,). Places of tokens that are not there, or belong to
        an earlier document, hold zeros.
    """

    keys: Float[Array, "W N"]
    values: Float[Array, "W N"]
    gamma: Float[Array, " W"]


class BankState(NamedTuple):
    """What a bank has learned so far.

    Attributes:
      weights: W of every map.
      momentum: S of every map; `None` when the rule has no momentum.
      recent: tokens that later ones still write; `None` when the rule's window is 1.
    """

    weights: Weights
    momentum: Weights | None
    recent: Recent | None = None


class BankUpdate(NamedTuple):
    """One chunk's writes to every map of a bank.

    Attributes:
      first: of the first maps.
      values: of the value memories' second maps, leading axis M; `None` if there are none.
      gates: of the gate memories' second maps, leading axis G; `None` if there are none.
    """

    first: ChunkUpdate
    values: ChunkUpdate | None
    gates: ChunkUpdate | None


def initial_state(rule: MemoryRule, initial: Weights) -> BankState:
    """Makes the state of a memory that has read nothing: its initial weights, no momentum yet."""
    momentum = jax.tree.map(jnp.zeros_like, initial) if rule.momentum else None
    recent = None
    if rule.window > 1:
        rows = jnp.zeros((rule.window - 1, initial.first.shape[0]), initial.first.dtype)
        recent = Recent(rows, rows, rows[:, 0])
    return BankState(initial, momentum, recent)


class Evaluation(NamedTuple):
    """A bank applied to a chunk's keys, and what it should have given.

    Attributes:
      keys: k, shape (C, N); their dtype is that of the operands.
      values: v, shape (C, N).
      outputs: M(k).
      hidden: of M(k), for the errors of the first maps; `None` for matrices.
      targets: what M(k) should have been.
      of_values: `Hidden` of M(v), where memories generate their targets; `None` for matrices.
    """

    keys: Float[Array, "C N"]
    values: Float[Array, "C N"]
    outputs: Outputs
    hidden: Hidden | None
    targets: Outputs
    of_values: Hidden | None


def evaluate(
    rule: MemoryRule,
    anchor: Anchor,
    keys: Float[Array, "C N"],
    values: Float[Array, "C N"],
) -> Evaluation:
    """Applies a bank to keys, and forms what it should have given.

    That is the value, or with `generated_target` each memory's own output for it. A value is no target
    for a memory of one number: the gate memories generate theirs in either case.

    Args:
      rule: how the bank learns.
      anchor: the weights at the chunk's start.
      keys: k, shape (C, N); their dtype is that of the operands.
      values: v, shape (C, N).

    Returns:
      An `Evaluation`.
    """
    of_values = None
    if rule.generated_target or rule.bank.num_gates:
        (outputs, hidden), (targets, of_values) = rule.bank.forward_pair(
            anchor, keys, values, keys.dtype
        )
    else:
        outputs, hidden = rule.bank.forward(anchor, keys, keys.dtype)
        targets = outputs
    if not rule.generated_target:
        targets = Outputs(jnp.broadcast_to(values, outputs.values.shape), targets.gates)
    return Evaluation(keys, values, outputs, hidden, targets, of_values)


def write_rows(
    rule: MemoryRule, anchor: Anchor, given: Evaluation, step: Float[Array, " C"], gates: Gates
) -> Weights:
    """Forms the write rows `U = -step d` of every map from the errors at the anchor.

    Args:
      rule: how the bank learns.
      anchor: the weights at the chunk's start.
      given: the bank's answers at the anchor, for C keys.
      step: step sizes, shape (C,).
      gates: of the tokens that write, shape (C,), or (1,) where one token writes all rows.

    Returns:
      Rows in the structure of `Weights`: shapes (C, S), (M, C, N), (G, C, 1).
    """
    errors, back, first = _errors(rule, anchor, given, -step)
    if bounds_steps(rule):
        changes = _changes(rule, given, errors, back, first)
        limit = allowed_change(rule, changes, gates)
        scale = limit / jnp.maximum(limit, step * changed_by_chunk(rule, changes, gates))
        scale = scale[..., None]
        cut = rule.bank.num_values
        errors = Outputs(errors.values * scale[:cut], errors.gates * scale[cut:])
        if given.hidden is None:
            first = rule.bank.join(*errors)
        else:
            first = rule.bank.join(rule.bank.split_hidden(first) * scale)
    return _rows(rule, errors, first)


def window_rows(
    rule: MemoryRule, anchor: Anchor, given: Evaluation, steps: Float[Array, "C P"], gates: Gates
) -> tuple[Weights, Float[Array, "C P"]]:
    """As `write_rows`, where each of C tokens writes any of the P rows at a step of its own.

    Args:
      rule: how a single memory learns.
      anchor: the weights at the chunk's start.
      given: the memory's answers at the anchor, for P keys.
      steps: step sizes, shape (C, P).
      gates: of the tokens that write, shape (C,).

    Returns:
      Rows `U = -d` of every map, and the steps, smaller where they are to be bounded.
    """
    ones = jnp.ones(len(given.keys), steps.dtype)
    errors, back, first = _errors(rule, anchor, given, -ones)
    if bounds_steps(rule):
        changes = _changes(rule, given, errors, back, first)
        gates = jax.tree.map(lambda gate: gate[:, None], gates)
        limit = allowed_change(rule, changes, gates)
        steps *= limit / jnp.maximum(limit, steps * changed_by_chunk(rule, changes, gates))
    return _rows(rule, errors, first), steps


def bounds_steps(rule: MemoryRule) -> bool:
    """Whether steps are scaled down: where asked for, unless no write changes a later error.

    The error of the dot product does not depend on what a memory gives, and a matrix hands it on as it
    is: what such a memory holds is a sum of its values.
    """
    return rule.bounded_step and (rule.bank.activation is not None or rule.error is not dot_error)


class Change(NamedTuple):
    """How writes to one map change the errors of M + G memories at their own keys.

    Attributes:
      length: |x|^2 of the map's inputs, shape (C,), or (M + G, C) where each memory has its own.
      answer: n, how far a write of step 1 moves the answer along its error, shape (M + G, C), and its
        target the other way, where the memory generates that and it moves so.
      projected: whether the map has the projector.
    """

    length: Float[Array, "*m C"]
    answer: Float[Array, "m C"]
    projected: bool


def changed_by_chunk(
    rule: MemoryRule, changes: list[Change], gates: Gates
) -> Float[Array, "m *C P"]:
    r"""How far a chunk of equal tokens moves the answer to their key, in units of its error and step.

    A write along x changes the answer by n times its error. In a chunk of C such writes each counts
    once, and `1 / (1 - theta)` times once the momentum has run out, W times with a window; retention and
    projector take what was written away again, a share of `l = 1 - alpha + beta |u|^2` at each token. So
    their sum, over the maps, is at most

    .. math:: \frac{W}{1 - \theta} \sum \frac{n}{\min(1, \max(1 / C,\; l))}

    Args:
      rule: how the bank learns.
      changes: for each map of the network.
      gates: of the tokens that write; shapes that broadcast with (C,), the tokens that are written.

    Returns:
      The sum for each memory and token, to be multiplied by the step.
    """
    total = jnp.zeros(())
    for change in changes:
        total += change.answer / jnp.clip(_lost(change, gates), 1 / rule.chunk_size, 1)
    if gates.log_theta is not None:
        total /= jnp.maximum(-jnp.expm1(gates.log_theta), 1e-6)
    return rule.window * total


def allowed_change(rule: MemoryRule, changes: list[Change], gates: Gates) -> Float[Array, "*shape"]:
    r"""How far a chunk of equal tokens may move the answer to their key, in units of its error.

    Retention and projector leave `r = 1 - l` of an answer at a token (`changed_by_chunk`), and `r^C` of
    it after a chunk. With writes of G in all the eigenvalue of the chunk is `r^C - G`. By `1 + r^C` it is
    at least -1: the answer may flip. By 1 the writes undo their error and no more. Where r is negative a
    projector alone overshoots, and a single token is what must not overshoot twice: both are `1 + r`.

    Args:
      rule: how the bank learns.
      changes: for each map of the network.
      gates: of the tokens that write.

    Returns:
      The largest sum, for each memory and token.
    """
    kept = jnp.ones(())
    for change in changes:
        once = 1 - _lost(change, gates)
        kept = jnp.minimum(kept, jnp.where(once < 0, once, once**rule.chunk_size))
    # A projector of strength 2 leaves no room at all; what is divided by this must not be zero.
    return jnp.maximum(1 + (kept if rule.flips else jnp.minimum(kept, 0)), 1e-6)


def _lost(change, gates):
    """The share of an answer that retention and projector of one map take away at a token."""
    lost = -jnp.expm1(gates.log_alpha)
    if change.projected and gates.beta is not None:
        lost += gates.beta * jnp.minimum(1, change.length)
    return lost


def _errors(rule, anchor, given, step):
    """Errors at the outputs of the memories, carried back to their activations, and of their first
    maps, all times the step."""
    step = step[:, None]
    pairs = zip(given.outputs, given.targets, strict=True)
    errors = Outputs(*(step * rule.error(*pair) for pair in pairs))
    back = rule.bank.carry_back(anchor, errors, given.keys.dtype)
    return errors, back, back if given.hidden is None else back * given.hidden.slope


def _rows(rule, errors, first):
    if rule.bank.activation is None:
        return Weights(first, None, None)
    return Weights(
        first,
        errors.values if rule.bank.num_values else None,
        errors.gates if rule.bank.num_gates else None,
    )


def _changes(rule, given, errors, back, first):
    """The `Change` of each map, from errors and rows of any step.

    A matrix: `n = |k|^2`. An MLP, with h the input of its second map and z that of the activation:
    `|h|^2` by the second, `|k|^2 |dL/dz|^2 / |d|^2` by the first. What a write does to a target that the
    memory generates is the same with one factor of each pair taken at the value in place of the key; it
    counts where that is negative, for there the target goes away from the answer.
    """
    squared = lambda rows: jnp.sum(jnp.square(rows), axis=-1)
    away = lambda at_key, at_value: jnp.maximum(0, -jnp.sum(at_key * at_value, axis=-1))
    steepness = jnp.concatenate(
        [_steepness(rule.error, *pair) for pair in zip(given.outputs, given.targets, strict=True)]
    )
    wide = steepness.dtype
    keys, values = given.keys.astype(wide), given.values.astype(wide)
    length = squared(keys)
    bank = rule.bank
    count = bank.num_values + bank.num_gates
    generates = (jnp.arange(count) >= (0 if rule.generated_target else bank.num_values))[:, None]
    if given.hidden is None:
        moved = jnp.where(generates, away(keys, values), 0)
        return [Change(length, steepness * (length + moved), rule.projects_first)]
    size = jnp.concatenate([squared(part) for part in errors])
    # Smaller steps than 1e-6 do no harm, and the derivative of their ratio would overflow.
    some = size > 1e-12
    per_error = lambda product: jnp.where(some, product / jnp.where(some, size, 1), 0)
    rows = bank.split_hidden(first)
    inner = squared(given.hidden.activations)
    by_first, by_second = length * squared(rows), inner
    if given.of_values is not None:
        at_value = bank.split_hidden(back * given.of_values.slope)
        alike = jnp.sum(keys * values, axis=-1)
        moved = jnp.maximum(0, -alike * jnp.sum(rows * at_value, axis=-1))
        by_first += jnp.where(generates, moved, 0)
        moved = away(given.hidden.activations, given.of_values.activations)
        by_second += jnp.where(generates, moved, 0)
    return [
        Change(length, steepness * per_error(by_first), rule.projects_first),
        Change(inner, steepness * by_second, rule.projects_second),
    ]


def _steepness(error, output, target):
    """How much faster than its output the error of a memory grows at most, at least 1; shape (M, C).

    That of L_3, `e |e|`, is 2 |e|: a write that undoes a small error overshoots a large one.
    """
    if isinstance(error, GradientOf):
        return error.growth(output, target)
    of_output = lambda output: error(output, target)
    slope = jax.jvp(of_output, (output,), (jnp.ones_like(output),))[1]
    return jnp.maximum(1, jnp.max(slope, axis=-1, initial=0))


def write_bank_token(
    rule: MemoryRule,
    state: BankState,
    keys: Float[Array, "P N"],
    hidden: Hidden | None,
    writes: Weights,
    alpha: Float[Array, ""],
    beta: Float[Array, ""] | None,
    theta: Float[Array, ""] | None,
    initial: Weights,
) -> BankState:
    """Writes one token to every map: the sequential form, and the step of streaming decode.

    Rows are those whose errors the token writes: its own, or with a window that of each of its tokens.
    """
    if rule.projector == "values":
        state, initial = _transposed((state, initial))
    offset = initial if rule.decay_to == "initial" else None
    inputs = _map_inputs(rule.bank, keys, hidden)

    def write(name, beta):
        weight = getattr(state.weights, name)
        if weight is None:
            return LinearMapState(None, None)
        origin = 0.0 if offset is None else getattr(offset, name)
        momentum = None if theta is None else getattr(state.momentum, name)
        function = lambda *args: write_token(*args, alpha, beta, theta)
        if name != "first":
            function = jax.vmap(function)
        new = function(
            LinearMapState(weight - origin, momentum), getattr(inputs, name), getattr(writes, name)
        )
        return LinearMapState(new.weight + origin, new.momentum)

    first_beta, second_beta = _betas(rule, beta)
    groups = (
        write("first", first_beta),
        write("values", second_beta),
        write("gates", second_beta),
    )
    new = _gather(rule, groups)
    return _transposed(new) if rule.projector == "values" else new


def write_bank_chunk(
    rule: MemoryRule,
    state: BankState,
    keys: Float[Array, "C N"],
    hidden: Hidden | None,
    writes: Weights,
    beta: Float[Array, " C"] | None,
    decay: ChunkDecay,
    projection: Projection | None,
    initial: Weights,
) -> BankUpdate:
    """Writes one chunk to every map in parallel; equal to `write_bank_token` over its tokens.

    Args:
      rule: how the bank learns.
      state: before the chunk.
      keys: k, shape (C, N), or with `projector="values"` the values, along which that rule writes;
        their dtype is that of the large products' operands.
      hidden: of the forward pass of the keys at the anchor.
      writes: from `write_rows`.
      beta: projector strength, shape (C,), or `None`.
      decay: the chunk's coefficients.
      projection: of the keys, which every first map shares, if it was prepared for all chunks at
        once; `None` to prepare it here, together with those of the second maps.
      initial: the initial weights.

    Returns:
      The update, for `read_bank_chunk` and `end_bank_chunk`.
    """
    dtype = keys.dtype
    if rule.projector == "values":
        state, initial = _transposed((state, initial))
    shifted = rule.decay_to == "initial"
    # After a reset the state is W_init: nothing of it is left when W - W_init is what decays.
    restart = None if shifted or decay.restarted is None else initial
    # The first maps share the projection of the keys; each second map has inputs of its own.
    shared = [keys] if rule.projects_first and projection is None else []
    own = [hidden.activations] if rule.projects_second and hidden is not None else []
    prepared = prepare_projections([*shared, *own], beta, decay, dtype) if shared or own else []
    projection = prepared[0] if shared else projection
    second_projection = prepared[-1] if own else None

    def write(name, inputs, projection):
        weight = getattr(state.weights, name)
        if weight is None:
            return None
        start = LinearMapState(
            weight - getattr(initial, name) if shifted else weight,
            None if state.momentum is None else getattr(state.momentum, name),
        )
        args = (
            start,
            inputs,
            getattr(writes, name),
            projection,
            None if restart is None else getattr(restart, name),
        )
        function = lambda start, inputs, rows, projection, restart: write_chunk(
            start, inputs, rows, decay, projection, restart, dtype
        )
        return function(*args) if name == "first" else jax.vmap(function)(*args)

    cut = rule.bank.num_values
    inputs = _map_inputs(rule.bank, keys, hidden)
    return BankUpdate(
        write("first", inputs.first, projection),
        write("values", inputs.values, jax.tree.map(lambda p: p[:cut], second_projection)),
        write("gates", inputs.gates, jax.tree.map(lambda p: p[cut:], second_projection)),
    )


def read_bank_chunk(
    rule: MemoryRule,
    update: BankUpdate,
    queries: Float[Array, "C N"],
    reading: Reading | None,
    decay: Decay,
    initial: Weights,
) -> Float[Array, "M C N"]:
    """Reads the value memories at every query's own intermediate state, map after map, exactly.

    Args:
      rule: how the bank learns.
      update: the chunk's writes.
      queries: q, shape (C, N).
      reading: of the queries on the keys, which every first map shares; not used with
        `projector="values"`.
      decay: the one it was prepared with, `ChunkDecay.before` or `ChunkDecay.after`.
      initial: the initial weights.

    Returns:
      Outputs of the value memories, shape (M, C, N).
    """
    dtype, bank = queries.dtype, rule.bank
    if rule.projector == "values":
        product = read_chunk_of_transpose(update.first, queries, decay, dtype)
    else:
        product = read_chunk(update.first, queries, reading, decay, dtype)
    if rule.decay_to == "initial":
        product += dot(queries, initial.first, dtype)
    if bank.activation is None:
        return bank.split(product, queries.shape[-1]).values
    rows = bank.split_hidden(bank.activation(product))[: bank.num_values]

    def read_second(update, rows):
        reading = prepare_reading(rows.astype(dtype), update.inputs, update.projection, decay)
        return read_chunk(update, rows, reading, decay, dtype)

    out = jax.vmap(read_second)(update.values, rows)
    if rule.decay_to == "initial":
        out += dot(rows, initial.values, dtype)
    return queries + out


def end_bank_chunk(
    rule: MemoryRule, update: BankUpdate, decay: ChunkDecay, initial: Weights, dtype: jnp.dtype
) -> BankState:
    """Forms the state of every map after the chunk."""
    if rule.projector == "values":
        initial = _transposed(initial)

    def end(name):
        part = getattr(update, name)
        if part is None:
            return LinearMapState(None, None)
        function = lambda part: end_chunk(part, decay, dtype)
        state = function(part) if name == "first" else jax.vmap(function)(part)
        if rule.decay_to == "initial":
            state = state._replace(weight=state.weight + getattr(initial, name))
        return state

    state = _gather(rule, (end("first"), end("values"), end("gates")))
    return _transposed(state) if rule.projector == "values" else state


def _transposed(tree):
    return jax.tree.map(lambda weight: weight.swapaxes(-1, -2), tree)


def _map_inputs(bank, keys, hidden):
    if hidden is None:
        return Weights(keys, None, None)
    cut = bank.num_values
    return Weights(keys, hidden.activations[:cut], hidden.activations[cut:])


def _betas(rule, beta):
    return beta if rule.projects_first else None, beta if rule.projects_second else None


def _gather(rule, groups):
    weights = Weights(*(group.weight for group in groups))
    momentum = Weights(*(group.momentum for group in groups)) if rule.momentum else None
    return BankState(weights, momentum)
