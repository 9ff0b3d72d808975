"""Configuration of the language models."""

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, Self, get_args

from flax.core import FrozenDict

from hope_jax.layers.attention import Kernel
from hope_jax.layers.continuum import Connection
from hope_jax.layers.level_learning import InContextConfig
from hope_jax.layers.memory_as_context import check_segment
from hope_jax.layers.rotary import RotaryScaling
from hope_jax.layers.titans import TitansConfig

SequenceLayer = Literal[
    "titans", "attention", "memory_as_context", "memory_as_gate", "memory_as_layer"
]
LevelOrder = Literal["fast_to_slow", "slow_to_fast"]
DtypeName = Literal["float32", "bfloat16", "float64"]  # the last with jax_enable_x64
RematPolicy = Literal["none", "block", "dots"]

# Width and heads are the model's own.
_TITANS_SETTINGS = [
    field.name
    for field in dataclasses.fields(TitansConfig)
    if field.default is not dataclasses.MISSING
]


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """A language model: embedding, blocks of a sequence layer and a chain of MLPs, logits.

    `sequence_layer="titans"` is Hope, `"attention"` with several levels is Hope-Attention, and
    `"attention"` with one level is a Transformer++. The others are Titans' ways of joining the two: with
    `"memory_as_context"` attention sees segments of `attention_window` tokens, beside what the memory
    recalls for them; with `"memory_as_gate"` memory gates attention; with `"memory_as_layer"` it lies
    below.
    """

    vocab_size: int  # number of token ids
    width: int  # of the residual stream
    num_layers: int  # number of blocks
    num_heads: int  # heads of the sequence layer
    mlp_width: int  # hidden width of every MLP level
    sequence_layer: SequenceLayer = "titans"
    # Sequence layers of successive blocks, repeated through the depth, such as ("titans", "titans",
    # "attention"); in place of sequence_layer.
    pattern: tuple[SequenceLayer, ...] = ()
    titans: Mapping[str, Any] = FrozenDict()  # settings of TitansConfig that are not its defaults
    cms_levels: int = 1  # MLPs in each block's chain
    cms_order: LevelOrder = "fast_to_slow"  # which level reads first
    cms_connection: Connection = "sequential"  # how the MLPs of a block are joined
    # Settings of InContextConfig, if MLPs of the last blocks are to learn while the model reads.
    in_context: Mapping[str, Any] | None = None
    num_kv_heads: int | None = None  # heads of attention's keys and values; None for num_heads
    attention_window: int = 1024  # tokens an attention layer sees and keeps
    # Implementation of jax.nn.dot_product_attention: "xla", or on GPUs, at 16 bits, "cudnn".
    attention_kernel: Kernel | None = None
    # Learned tokens that every query of attention sees (the persistent memory of Titans).
    persistent_tokens: int = 0
    rope_base: float = 10_000.0  # of the rotary frequencies
    # Settings of RotaryScaling, if the frequencies are lowered for longer contexts.
    rope_scaling: Mapping[str, Any] | None = None
    norm_epsilon: float = 1e-6  # of the normalisations
    tie_embeddings: bool = True  # logits read the embedding table
    # Whether the residual stream starts with sqrt(width) times the table's rows, which are of about unit
    # length then, as suits logits; Llama takes them as they are.
    scaled_embedding: bool = True
    dtype: DtypeName = "float32"  # of activations
    param_dtype: DtypeName = "float32"  # of parameters
    remat: RematPolicy = "none"  # recompute in the backward pass: whole blocks, or all but matmuls
    loss_chunk: int = 256  # tokens of each sequence whose logits exist at one time in the loss

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "width",
            "num_layers",
            "num_heads",
            "mlp_width",
            "cms_levels",
            "attention_window",
            "loss_chunk",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        for name, choices in (
            ("sequence_layer", get_args(SequenceLayer)),
            ("cms_order", get_args(LevelOrder)),
            ("cms_connection", get_args(Connection)),
            ("dtype", get_args(DtypeName)),
            ("param_dtype", get_args(DtypeName)),
            ("remat", get_args(RematPolicy)),
            ("attention_kernel", (None, *get_args(Kernel))),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, choices))}; "
                    f"got {getattr(self, name)!r}"
                )
        object.__setattr__(self, "pattern", tuple(self.pattern))
        layers = get_args(SequenceLayer)
        if any(layer not in layers for layer in self.pattern):
            raise ValueError(f"pattern holds {', '.join(layers)}; got {self.pattern}")
        if self.pattern and self.num_layers % len(self.pattern):
            raise ValueError(
                f"num_layers {self.num_layers} must be a multiple of the {len(self.pattern)} blocks "
                f"of pattern {self.pattern}"
            )
        if self.pattern and self.in_context is not None:
            raise ValueError(
                "in_context needs blocks that are all alike; leave out pattern, or in_context"
            )
        if self.rope_base <= 1:
            raise ValueError(f"rope_base must be greater than 1, got {self.rope_base}")
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} does not split into {self.num_heads} heads; make width a "
                f"multiple of num_heads"
            )
        used = self.pattern or (self.sequence_layer,)
        if set(used) != {"titans"} and (self.width // self.num_heads) % 2:
            raise ValueError(
                f"rotary embedding turns pairs of channels, so width / num_heads must be even; "
                f"got {self.width} / {self.num_heads} = {self.width // self.num_heads}"
            )
        kv_heads = self.num_kv_heads
        if kv_heads is not None and (kv_heads < 1 or self.num_heads % kv_heads):
            raise ValueError(
                f"num_kv_heads must be None or divide num_heads; got {kv_heads} and {self.num_heads}"
            )
        if self.persistent_tokens < 0:
            raise ValueError(
                f"persistent_tokens must not be negative, got {self.persistent_tokens}"
            )
        if not self.norm_epsilon > 0:
            raise ValueError(f"norm_epsilon must be positive, got {self.norm_epsilon}")
        if self.rope_scaling is not None:
            object.__setattr__(self, "rope_scaling", _frozen(self.rope_scaling))
            _refuse_unknown(
                "rope_scaling",
                self.rope_scaling,
                [f.name for f in dataclasses.fields(RotaryScaling)],
            )
            _ = self.rotary_scaling
        object.__setattr__(self, "titans", _frozen(self.titans))
        _refuse_unknown("titans", self.titans, _TITANS_SETTINGS)
        _ = self.titans_config
        if "memory_as_context" in used:
            check_segment(self.titans_config, self.attention_window)
            if self.num_kv_heads not in (None, self.num_heads) or self.rope_scaling is not None:
                raise ValueError(
                    "memory_as_context attends with the memory's heads within a segment: leave out "
                    "num_kv_heads and rope_scaling"
                )
        if self.in_context is not None:
            object.__setattr__(self, "in_context", _frozen(self.in_context))
            _refuse_unknown(
                "in_context", self.in_context, [f.name for f in dataclasses.fields(InContextConfig)]
            )
            settings = InContextConfig(**self.in_context)
            if settings.blocks is not None and settings.blocks > self.num_layers:
                raise ValueError(
                    f"in_context.blocks={settings.blocks}, but the model has {self.num_layers} blocks"
                )
            settings.chunk_of_each(self._blocks_of(settings), self.cms_levels)

    @property
    def in_context_config(self) -> InContextConfig | None:
        """How levels learn while the model reads; None if none does, as at step size 0."""
        if self.in_context is None:
            return None
        settings = InContextConfig(**self.in_context)
        return settings if any(settings.step_sizes) else None

    @property
    def adapting_blocks(self) -> int:
        """How many of the last blocks have levels that learn while the model reads."""
        settings = self.in_context_config
        return 0 if settings is None else self._blocks_of(settings)

    def _blocks_of(self, settings: InContextConfig) -> int:
        return -(-self.num_layers // 4) if settings.blocks is None else settings.blocks

    @property
    def rotary_scaling(self) -> RotaryScaling | None:
        """How attention's frequencies are lowered."""
        return None if self.rope_scaling is None else RotaryScaling(**self.rope_scaling)

    @property
    def titans_config(self) -> TitansConfig:
        """Settings of the Titans layers."""
        return TitansConfig(width=self.width, num_heads=self.num_heads, **self.titans)

    @classmethod
    def from_config_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds the config from a mapping such as an `ml_collections.ConfigDict`.

        Args:
          values: fields by name; those left out take their defaults.

        Raises:
          ValueError: for a key that is no field (with the nearest field names), for a required
            field that is missing, and for values that do not fit.

        Example:
          >>> sizes = dict(vocab_size=256, width=64, num_layers=2, num_heads=2, mlp_width=128)
          >>> LanguageModelConfig.from_config_dict(sizes).width
          64
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        _refuse_unknown("model", values, fields)
        missing = [
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and name not in values
        ]
        if missing:
            raise ValueError(f"model settings without a default are missing: {', '.join(missing)}")
        return cls(**{key: values[key] for key in values})


def _refuse_unknown(where: str, given: Iterable[str], known: Collection[str]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known)
            hint = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(known)}"
            raise ValueError(f"unknown {where} setting {key!r}; {hint}")


def _frozen(values: Mapping[str, Any]) -> FrozenDict[str, Any]:
    """A hashable copy, since configs are static arguments of compiled functions."""

    def freeze(value: Any) -> Any:
        if isinstance(value, set | frozenset):
            return tuple(sorted(value))
        if isinstance(value, list | tuple):
            return tuple(freeze(item) for item in value)
        return _frozen(value) if isinstance(value, Mapping) else value

    return FrozenDict({key: freeze(values[key]) for key in values})
