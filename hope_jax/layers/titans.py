"""Self-modifying Titans as a Flax layer: convolution, projections, heads, memories."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from hope_jax.layers.convolution import CausalConvolution
from hope_jax.layers.inner_loop import INNER_LOOP
from hope_jax.layers.normalization import RMSNorm
from hope_jax.layers.projection import Projection
from hope_jax.layers.self_modifying import (
    GATES,
    VALUES,
    Initial,
    Inputs,
    SelfModifyingRule,
    SelfModifyingState,
    gate,
    read_sequence,
    read_token,
)
from hope_jax.memory.bank import Bank, Weights
from hope_jax.memory.objectives import (
    GradientOf,
    HuberError,
    LpError,
    dot_error,
    l2_error,
    own_loss,
)
from hope_jax.memory.rule import MemoryRule
from hope_jax.settings import check_fields, located, setting

_NETWORKS = {"mlp": jax.nn.gelu, "matrix": None}
Adaptive = Literal["k", "v", "q", "eta", "alpha"]
_HEAD_AXES: Any = (0, 0, 0, None)  # of the fields of Inputs


@dataclasses.dataclass(frozen=True)
class TitansConfig:
    """Settings of a self-modifying Titans layer. Every alternative of the paper is a value here.

    Raises:
      ValueError: on construction, for values that do not fit each other.

    Example:
      >>> TitansConfig(width=128, num_heads=2).head_width
      64
    """

    width: int = setting("D, of the residual stream", least=1)
    num_heads: int = setting("H; 1 is the paper's literal form", least=1)
    adaptive: tuple[Adaptive, ...] = setting("what memories generate", ("k", "v", "eta", "alpha"))
    network: Literal["mlp", "matrix"] = setting(
        "a memory's: residual MLP (Eq. 89) or one matrix", "mlp"
    )
    expansion: float = setting(
        "hidden width of the MLP memories over the head's width", 1.0, above=0
    )
    memory_chunk: int = setting("chunk size of the memory that is read", 16, least=1)
    generator_chunk: int = setting(
        "chunk size of the generators, the memories for k, v, q, eta and alpha", 64, least=1
    )
    objective: Literal["l2", "dot", "lp", "huber"] | Callable[..., Any] = setting(
        "what a memory descends: Eq. 93, Eq. 92, those of Miras, or a loss of your own", "l2"
    )
    objective_power: float = setting('p of "lp", sum |e|^p / p', 3.0, least=2)
    huber_delta: float = setting('of "huber": errors beyond it count linearly', 1.0, above=0)
    # With bounded_step off, a fresh layer overflowed within 1,000 tokens without DGD (random inputs
    # too) and with it on the first map alone (constant and alternating inputs): start eta far lower
    # there. "values" is for a matrix and the dot-product objective.
    projector: Literal["per_map", "first_map", "second_map", "values", "none"] = setting(
        "DGD on every map, on one of an MLP's, along the value (Oja's rule), or plain descent",
        "per_map",
    )
    strength: Literal["step", "gate"] = setting(
        "the projector's: the step size eta (Eq. 88), or a gate of its own by token", "step"
    )
    strength_max: float = setting("largest strength, as a gate", 1.0, above=0, most=2)
    initial_strength: float = setting("where it starts, as a gate", 0.5, above=0, below=2)
    momentum: Literal["gate", "learned", "none"] = setting(
        "its decay: per token, one number a head, or no momentum", "gate"
    )
    # Without, and with bounded_step off, repeated keys overflow the state.
    dampening: bool = setting("weight momentum's writes by 1 - theta", True)
    projector_decays: bool = setting("alpha times that strength in its place", False)
    retention: Literal["gate", "fixed", "none"] = setting(
        "alpha by token, by head as RetNet, or 1", "gate"
    )
    step: Literal["gate", "one"] = setting("eta by token, or 1", "gate")
    learned_initial: bool = setting("if not, a matrix memory begins at zero", True)
    # With "initial" the weights keep their initial size, at which the L2 objective overshoots: a fresh
    # layer overflowed within 60,000 random tokens, so use it for contexts far shorter than that.
    decay_to: Literal["zero", "initial"] = setting("where retention leads", "zero")
    read: Literal["before", "after", "chunk"] = setting("the state that a token reads", "before")
    # Without, the value is the target of all but those of eta and alpha, whose output is one number.
    generated_target: bool = setting("memories generate their own target values (Eq. 91)", True)
    # An MLP's maps grow with training, and then eta overshoots on repetitive text, more with every
    # chunk, until the state overflows (docs/equations.md).
    bounded_step: bool = setting("writes of a chunk undo at most their own error", True)
    flips: bool = setting(
        "bounded writes may also reverse an error (eigenvalue -1), as state tracking needs", False
    )
    unit_keys: bool = setting("keys and queries at unit length", True)
    unit_values: bool = setting("values at unit length; without, the state can overflow", True)
    eta_max: float | None = setting(
        "largest step size; None for the largest at which no write overshoots, at most 1",
        None,
        above=0,
        most=2,
    )
    initial_eta: float = setting("where eta starts", 0.1, above=0, below=2)
    initial_alpha: float = setting(
        "where alpha starts; a context fades over 1 / (1 - alpha) tokens", 0.9999, above=0, below=1
    )
    gate_margin: float = setting(
        "how far beyond 0 and 1 the sigmoids of eta and strength reach, where they are cut; above 0 a "
        "state can be kept, or turned, exactly",
        0.0,
        least=0,
        below=1,
    )
    initial_theta: float = setting("where the momentum's decay starts", 0.5, above=0, below=1)
    output_norm: bool = setting(
        "normalise what each head reads, before the output projection", True
    )
    own_projections: bool = setting(
        "each memory that generates reads a projection of its own, not one for all", False
    )
    convolution: int = setting("tokens that the causal convolution sees; 1 is none", 4, least=1)
    window: int = setting(
        "tokens whose errors each token writes (the Omega rule, Eq. 68)", 1, least=1
    )
    states_every: int = setting("keep every n-th chunk's state for the backward pass", 1, least=1)
    memory_form: Literal["auto", "kernel", "xla"] = setting(
        "what runs the memory that is read: a scan, or a kernel for TPUs, by itself where it can",
        "auto",
    )

    def __post_init__(self):
        check_fields(self)
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} does not split into {self.num_heads} heads; make width a "
                f"multiple of num_heads"
            )
        small, large = sorted((self.memory_chunk, self.generator_chunk))
        if large % small:
            raise ValueError(
                f"memory_chunk {self.memory_chunk} and generator_chunk {self.generator_chunk}: one must "
                f"divide the other; try {large // small * small} for the larger"
            )
        if self.largest_eta > self.eta_bound:
            raise ValueError(
                f"eta_max {self.eta_max} is above {self.eta_bound:.4g}: with objective="
                f"{self.objective!r}, projector={self.projector!r} and generated_target="
                f"{self.generated_target} the eigenvalue of a write can then be below -1, and repeated "
                f"keys overflow; leave eta_max out, or make it at most that"
                + (", or strength_max smaller" if self.strength == "gate" else "")
                + ("" if self.objective == "dot" else ", or set bounded_step=True")
            )
        if self.eta_bound <= 0:
            raise ValueError(
                f"strength_max {self.strength_max} leaves no room for a step: with objective="
                f"{self.objective!r}, generated_target={self.generated_target} and adaptive="
                f"{self.adaptive} the eigenvalue of any write could be below -1; make strength_max "
                f"smaller, or set objective='dot', generated_target=False and leave eta and alpha out of "
                f"adaptive"
            )
        if not self.initial_eta < self.largest_eta:
            raise ValueError(
                f"initial_eta {self.initial_eta} must be below eta_max {self.largest_eta:.4g}"
            )
        if self.flips and not self.bounded_step:
            raise ValueError(
                "flips=True is of bounded steps, but bounded_step=False; leave out one"
            )
        if self.strength == "gate":
            if self.projector == "none":
                raise ValueError(
                    "strength='gate' is of a projector, and projector='none'; leave out one of them"
                )
            if not self.initial_strength < self.strength_max:
                raise ValueError(
                    f"initial_strength {self.initial_strength} must be below strength_max "
                    f"{self.strength_max}"
                )
        if not self.unit_values and (self.adaptive or self.generated_target):
            raise ValueError(
                "unit_values=False overflows within some hundred tokens where memories generate keys, "
                "values, gates or targets: what reads its own long output feeds itself; keep "
                "unit_values=True, or set adaptive=() and generated_target=False"
            )
        for name, part in (("step", "eta"), ("retention", "alpha")):
            if part in self.adaptive and getattr(self, name) != "gate":
                raise ValueError(
                    f"{name}={getattr(self, name)!r} leaves nothing for the memory of {part} to "
                    f"generate; take {part!r} out of adaptive, or set {name}='gate'"
                )
        if not self.unit_keys and (self.projector != "none" or self.adaptive):
            raise ValueError(
                "unit_keys=False needs projector='none' and adaptive=(): a projector along long keys, "
                "or a memory that reads its own, overflows"
            )
        if not self.learned_initial and (self.network != "matrix" or self.adaptive):
            raise ValueError(
                "learned_initial=False needs network='matrix' and adaptive=(): an MLP of zeros, or a "
                "memory that generates zeros, learns nothing"
            )
        if self.window > 1 and (self.adaptive or self.projector != "none"):
            raise ValueError(
                f"window={self.window} needs projector='none' and adaptive=(): a projector would erase "
                f"along the last of the window's keys alone, and memories that generate keys write "
                f"theirs once"
            )
        if self.projector == "values" and (
            (self.network, self.objective) != ("matrix", "dot")
            or self.adaptive
            or self.generated_target
            or not self.unit_values
        ):
            raise ValueError(
                "projector='values' is Oja's rule and needs network='matrix', objective='dot', "
                "adaptive=(), generated_target=False and unit_values=True"
            )
        if (
            self.objective == "dot"
            and self.generates_targets
            and (self.projector == "none" or self.strength == "gate")
        ):
            raise ValueError(
                "objective='dot' writes a multiple of what the memory gives where that generates its "
                "target, and grows without end unless the projector takes as much away; set "
                "projector='per_map' and strength='step', or generated_target=False and neither eta nor "
                "alpha in adaptive"
            )
        if self.own_projections and not self.adaptive:
            raise ValueError(
                "own_projections=True is of memories that generate, but adaptive=(); leave out one"
            )
        with located("objective"):
            _ = self.error
        _ = self.rule

    @property
    def error(self) -> Callable[[Array, Array], Array]:
        """Local error of the inner objective."""
        if self.objective == "lp":
            return LpError(self.objective_power)
        if self.objective == "huber":
            return HuberError(self.huber_delta)
        if self.objective in ("l2", "dot"):
            return l2_error if self.objective == "l2" else dot_error
        return GradientOf(own_loss(str(self.objective)))

    @property
    def generates_targets(self) -> bool:
        """Whether any memory generates its own: those of gates do, for a value is no target of theirs."""
        return self.generated_target or bool(self.adaptive_gates)

    @property
    def feedback(self) -> int:
        """How much faster than by its step a write moves the error at its own key at most.

        The dot product's error is that of the value and stays; L2's shrinks as the answer comes near,
        and a target that the memory generates can go as far the other way. It is 0 where bounded steps
        measure that, or where nothing does: an MLP moves its answers by how far its maps have grown.
        """
        measured = self.bounded_step and self.objective != "dot"
        if self.network == "mlp" or measured:
            return 0
        return (self.objective != "dot") + self.generates_targets

    @property
    def eta_bound(self) -> float:
        """The largest step size at which no write of a matrix overshoots, at most 2.

        A write along a key k of unit length multiplies what is stored there by
        `alpha - beta - eta (l - g k.v)` with beta the projector's strength, l = 1 for L2 and 0 for the
        dot product, g = 1 where the memory generates its target. That is to be at least -1 for every
        k.v and alpha = 1, unless `bounded_step` sees to it at every write.
        """
        room, by_step = 2.0, float(self.feedback)
        if self.projector != "none":
            if self.strength == "gate":
                room -= self.strength_max
            else:
                by_step += 1
        return min(2.0, room / by_step) if by_step else 2.0

    @property
    def largest_eta(self) -> float:
        """The largest step size: `eta_max`, or where that is not given `eta_bound`, at most 1."""
        return min(1.0, self.eta_bound) if self.eta_max is None else self.eta_max

    @property
    def head_width(self) -> int:
        """N, the width of one head."""
        return self.width // self.num_heads

    @property
    def hidden(self) -> int:
        """E, the hidden width of the MLP memories."""
        return max(1, round(self.expansion * self.head_width))

    @property
    def adaptive_values(self) -> tuple[str, ...]:
        """Those of k, v, q that memories generate, in the order in which they are stacked."""
        return tuple(name for name in VALUES if name in self.adaptive)

    @property
    def adaptive_gates(self) -> tuple[str, ...]:
        """Those of eta, alpha that memories generate, in the order in which they are stacked."""
        return tuple(name for name in GATES if name in self.adaptive)

    @property
    def rule(self) -> SelfModifyingRule:
        """The same settings in the primitive's terms."""
        memory = MemoryRule(
            bank=Bank(1, 0, _NETWORKS[self.network]),
            error=self.error,
            projector=self.projector,
            momentum=self.momentum != "none",
            decay_to=self.decay_to,
            read=self.read,
            generated_target=self.generated_target,
            bounded_step=self.bounded_step,
            flips=self.flips,
            chunk_size=self.memory_chunk,
            window=self.window,
            states_every=self.states_every,
            form=self.memory_form,
        )
        return SelfModifyingRule(
            adaptive=frozenset(self.adaptive),
            generators=dataclasses.replace(
                memory,
                bank=Bank(
                    len(self.adaptive_values), len(self.adaptive_gates), _NETWORKS[self.network]
                ),
                chunk_size=self.generator_chunk,
            ),
            memory=memory,
            eta_max=self.largest_eta,
            strength_max=self.strength_max if self.strength == "gate" else self.largest_eta,
            feedback=self.feedback,
            step=self.step,
            retention=self.retention,
            projector_decays=self.projector_decays,
            unit_keys=self.unit_keys,
            unit_values=self.unit_values,
            dampening=self.dampening,
            gate_margin=self.gate_margin,
        )


class TitansState(NamedTuple):
    """All that the layer carries from one call to the next.

    Attributes:
      heads: memories, leading axes (B, H).
      tail: the convolution's last inputs, shape (B, window - 1, D).
    """

    heads: SelfModifyingState
    tail: Float[Array, "B W D"]


class SelfModifyingTitans(nn.Module):
    """A sequence layer whose memories learn, per sequence and head, from what they read.

    Attributes:
      config: settings.
      dtype: of activations and of the operands of large products; gates and states stay float32.
      param_dtype: of parameters.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = SelfModifyingTitans(TitansConfig(width=8, num_heads=2))
      >>> x = jax.random.normal(jax.random.key(0), (1, 20, 8))
      >>> params = jax.jit(layer.init)(jax.random.key(1), x)
      >>> y, state = jax.jit(layer.apply)(params, x)
      >>> more, state = jax.jit(layer.apply)(params, x[:, :1], state)
      >>> y.shape, more.shape
      ((1, 20, 8), (1, 1, 8))
    """

    config: TitansConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: TitansState | None = None,
        reset: Bool[Array, "B T"] | None = None,
        at_edge: bool = False,
    ) -> tuple[Float[Array, "B T D"], TitansState]:
        """Reads T tokens of each sequence, learning from them.

        Args:
          x: inputs, shape (B, T, D).
          state: to continue from; `None` begins a context.
          reset: True where a token begins a new document, shape (B, T).
          at_edge: whether the state is known to have no open chunk, as where whole chunks are read
            at a time; such calls are faster.

        Returns:
          Outputs, shape (B, T, D), and the state after the last token.

        Raises:
          ValueError: if x does not have the configured width.
        """
        config, rule = self.config, self.config.rule
        if x.ndim != 3 or x.shape[-1] != config.width:
            raise ValueError(
                f"x has shape {x.shape}, expected (batch, tokens, {config.width}); make the input "
                f"and TitansConfig.width agree"
            )
        x, tail = CausalConvolution(
            config.convolution, self.dtype, self.param_dtype, name="convolution"
        )(x, None if state is None else state.tail, reset)
        inputs = self._inputs(x, reset)
        initial = self._initial()
        function: Callable[..., Any] = functools.partial(read_sequence, at_edge=at_edge)
        if state is not None and x.shape[1] == 1 and not at_edge:
            function = _read_one
        call = jax.vmap(  # over heads, then over sequences, which share only the initial weights
            jax.vmap(
                lambda initial, inputs, state: function(rule, initial, inputs, state),
                # A reset belongs to the sequence, all else to the head.
                in_axes=(0, Inputs(*_HEAD_AXES), 0),
            ),
            in_axes=(None, 0, 0),
        )
        old = None if state is None else state.heads
        with jax.named_scope(INNER_LOOP):
            out, heads = _on_each_device(call, initial, inputs, old)
        if config.output_norm:
            out = RMSNorm(
                dtype=self.dtype, param_dtype=self.param_dtype, axis="head_dim", name="output_norm"
            )(out)
        out = out.astype(self.dtype).swapaxes(1, 2)
        out = Projection(
            (config.width,),
            ("heads", "head_dim", "embed"),
            axes=2,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="out",
        )(out)
        return nn.with_logical_constraint(
            out, ("batch", "length", "activation_embed")
        ), TitansState(heads, tail)

    def _inputs(self, x, reset):
        """Projects the residual stream to what each head is given."""
        config = self.config

        def vectors(name):
            projected = Projection(
                (config.num_heads, config.head_width),
                ("embed", "heads", "head_dim"),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )(x)
            projected = nn.with_logical_constraint(
                projected, ("batch", "length", "heads", "head_dim")
            )
            return projected.swapaxes(1, 2)

        def numbers(name):
            projected = Projection(
                (config.num_heads,),
                ("embed", "heads"),
                dtype=jnp.promote_types(self.dtype, jnp.float32),
                param_dtype=self.param_dtype,
                name=name,
            )(x)
            return projected.swapaxes(1, 2)

        static = {name: vectors(name) for name in VALUES if name not in config.adaptive}
        gates = {"eta": config.step == "gate", "alpha": config.retention == "gate"}
        static |= {
            name: numbers(name) for name in GATES if name not in config.adaptive and gates[name]
        }
        if config.window > 1:
            # At first each write descends the mean error of its window.
            bias = self._bias("gamma_bias", 1 / config.window)[:, None]
            static["gamma"] = jax.nn.sigmoid(numbers("gamma") + bias)
        log_theta = None
        if config.momentum != "none":
            bias = self._bias("theta_bias", config.initial_theta)[:, None]
            raw = numbers("theta") if config.momentum == "gate" else jnp.zeros((1, 1, x.shape[1]))
            log_theta = jax.nn.log_sigmoid(raw + bias)
            log_theta = jnp.broadcast_to(log_theta, (x.shape[0], *log_theta.shape[1:]))
        if config.strength == "gate":
            bias = self._gate_bias("strength_bias", config.initial_strength / config.strength_max)
            raw = numbers("strength") + bias[:, None]
            static["beta"] = config.strength_max * gate(raw, config.gate_margin)
        # Without adaptive memories nothing reads x itself; it still says the dtype.
        heads = static["k"] if not config.adaptive else None
        if config.own_projections:
            names = (*config.adaptive_values, *config.adaptive_gates)
            heads = jnp.stack([vectors(f"{name}_in") for name in names], axis=-2)
        elif config.adaptive:
            heads = vectors("in")
        return Inputs(heads, static, log_theta, reset)

    def _initial(self):
        """The meta-learned initial states, a parameter for each map of each memory."""
        config = self.config
        names = (*config.adaptive_values, *config.adaptive_gates)
        generators = self._weights(names, len(config.adaptive_values)) if names else None
        return Initial(
            generators,
            self._weights(("memory",), 1),
            self._eta_bias(),
            self._alpha_bias(),
        )

    def _eta_bias(self):
        config = self.config
        if config.step == "one":
            return self._wide(jnp.zeros(config.num_heads))
        return self._gate_bias("eta_bias", config.initial_eta / config.largest_eta)

    def _alpha_bias(self):
        config = self.config
        if config.retention == "gate":
            return self._bias("alpha_bias", config.initial_alpha)
        # RetNet's decays, from 1 - 2^-5 on; the sigmoid of log((1 - d) / d) is 1 - d.
        lost = 2.0 ** -(5.0 + jnp.arange(config.num_heads))
        return self._wide(jnp.log1p(-lost) - jnp.log(lost))

    def _wide(self, x):
        return x.astype(jnp.promote_types(self.param_dtype, jnp.float32))

    def _weights(self, names, num_values):
        """Stacks the maps of several memories as `Bank` wants them, leading axis H."""
        config = self.config
        heads, width, hidden = config.num_heads, config.head_width, config.hidden
        dtype = jnp.promote_types(self.param_dtype, jnp.float32)
        if not config.learned_initial:
            return Weights(jnp.zeros((heads, width, width), dtype), None, None)

        def param(name, *shape):
            init = nn.with_logical_partitioning(
                nn.initializers.normal(shape[-2] ** -0.5), ("heads", "memory_in", "memory_out")
            )
            return self.param(name, init, (heads, *shape), self.param_dtype).astype(dtype)

        outputs = [width if i < num_values else 1 for i in range(len(names))]
        if config.network == "matrix":
            maps = [
                param(f"{name}_first", width, out) for name, out in zip(names, outputs, strict=True)
            ]
            return Weights(jnp.concatenate(maps, axis=-1), None, None)
        first = [param(f"{name}_first", width, hidden) for name in names]
        second = [
            param(f"{name}_second", hidden, out) for name, out in zip(names, outputs, strict=True)
        ]
        return Weights(
            jnp.concatenate(first, axis=-1),
            jnp.stack(second[:num_values], axis=1) if num_values else None,
            jnp.stack(second[num_values:], axis=1) if len(names) > num_values else None,
        )

    def _gate_bias(self, name, value):
        """The bias with which `gate` has this value."""
        margin = self.config.gate_margin
        return self._bias(name, (value + margin) / (1 + 2 * margin))

    def _bias(self, name, value):
        logit = jnp.log(value) - jnp.log1p(-value)
        init = nn.with_logical_partitioning(nn.initializers.constant(logit), ("heads",))
        bias = self.param(name, init, (self.config.num_heads,), self.param_dtype)
        return self._wide(bias)


def _read_one(rule, initial, inputs, state):
    out, state = read_token(rule, initial, jax.tree.map(lambda leaf: leaf[0], inputs), state)
    return out[None], state


def _on_each_device(call, initial, inputs, state):
    """Calls with each device's sequences and heads.

    No compiler splits kernels; and what it would split, it may gather within the loop over chunks, as
    arrays of a chosen layout. What cannot be dealt out evenly lies whole on each.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.auto_axes or mesh.size == 1:
        return call(initial, inputs, state)
    sizes = (inputs.static["k"] if inputs.x is None else inputs.x).shape[:2]
    names = nn.logical_to_mesh_axes(("batch", "heads"))
    parts = [
        math.prod(mesh.shape[name] for name in ((axes,) if isinstance(axes, str) else axes or ()))
        for axes in names
    ]
    # Beside axes that are split already, those of one device are the compiler's, too.
    if math.prod(parts) == 1 and not mesh.manual_axes:
        return call(initial, inputs, state)
    batch, heads = (
        None if size % n else axes for axes, n, size in zip(names, parts, sizes, strict=True)
    )
    rows = PartitionSpec(batch, heads)
    specs = PartitionSpec(heads), Inputs(rows, rows, rows, PartitionSpec(batch)), rows
    # The check of what varies over the mesh does not know kernels.
    mapped = jax.shard_map(call, in_specs=specs, out_specs=rows, check_vma=False)
    return mapped(initial, inputs, state)
