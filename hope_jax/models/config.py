"""Configuration of the language models."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import jax.numpy as jnp
from flax.core import FrozenDict

from hope_jax.counts import count
from hope_jax.layers.attention import Kernel
from hope_jax.layers.continuum import Connection
from hope_jax.layers.level_learning import InContextConfig
from hope_jax.layers.memory_as_context import check_segment
from hope_jax.layers.rotary import RotaryScaling
from hope_jax.layers.titans import TitansConfig
from hope_jax.models.own_layer import check_own_layer, is_own, own_class, own_settings
from hope_jax.settings import check_fields, located, read_settings, setting

SequenceLayer = (
    Literal["titans", "attention", "memory_as_context", "memory_as_gate", "memory_as_layer"]
    | Callable[..., Any]
)
LevelOrder = Literal["fast_to_slow", "slow_to_fast"]
DtypeName = Literal["float32", "bfloat16", "float64"]  # the last with jax_enable_x64
RematPolicy = Literal["none", "block", "dots"]


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """A language model: embedding, blocks of a sequence layer and a chain of MLPs, logits.

    `sequence_layer="titans"` is Hope, `"attention"` with several levels is Hope-Attention, and
    `"attention"` with one level is a Transformer++. The others are Titans' ways of joining the two: with
    `"memory_as_context"` attention sees segments of `attention_window` tokens, beside what the memory
    recalls for them; with `"memory_as_gate"` memory gates attention; with `"memory_as_layer"` it lies
    below. A dotted name is a layer of one's own (`hope_jax.models.own_layer`).
    """

    vocab_size: int = setting("number of token ids", least=1)
    width: int = setting("of the residual stream", least=1)
    num_layers: int = setting("number of blocks", least=1)
    num_heads: int = setting("heads of the sequence layer", least=1)
    mlp_width: int = setting("hidden width of every MLP level", least=1)
    sequence_layer: SequenceLayer = setting("what mixes the tokens of a block", "titans")
    # Such as ("titans", "titans", "attention").
    pattern: tuple[SequenceLayer, ...] = setting(
        "sequence layers of successive blocks, repeated through the depth; if not empty, in place of "
        "sequence_layer",
        (),
    )
    titans: Mapping[str, Any] = setting(
        "of the memories", FrozenDict(), section=TitansConfig, derived=("width", "num_heads")
    )
    layer: Mapping[str, Any] = setting("of sequence layers of your own", FrozenDict())
    cms_levels: int = setting("MLPs in each block's chain", 1, least=1)
    cms_order: LevelOrder = setting("which level reads first", "fast_to_slow")
    cms_connection: Connection = setting("how the MLPs of a block are joined", "sequential")
    in_context: Mapping[str, Any] | None = setting(
        "how MLPs of the last blocks learn while the model reads; None if they do not",
        None,
        section=InContextConfig,
    )
    num_kv_heads: int | None = setting(
        "heads of attention's keys and values; None for num_heads", None, least=1
    )
    attention_window: int = setting("tokens an attention layer sees and keeps", 1024, least=1)
    attention_sinks: int = setting(
        "first tokens of its document that attention goes on to see behind its window; a model that "
        "was trained to see all of a text needs one",
        0,
        least=0,
    )
    attention_kernel: Kernel | None = setting(
        "of jax.nn.dot_product_attention: xla or, on GPUs at 16 bits, cudnn; None for its choice",
        None,
    )
    persistent_tokens: int = setting(
        "learned tokens that every query of attention sees (Titans)", 0, least=0
    )
    rope_base: float = setting("of the rotary frequencies", 10_000.0, above=1)
    rope_scaling: Mapping[str, Any] | None = setting(
        "how the frequencies are lowered for longer contexts; None if they are not",
        None,
        section=RotaryScaling,
    )
    norm_epsilon: float = setting("of the normalisations", 1e-6, above=0)
    tie_embeddings: bool = setting("logits read the embedding table", True)
    # The table's rows are of about unit length then, as suits logits; Llama takes them as they are.
    scaled_embedding: bool = setting(
        "whether the residual stream starts with sqrt(width) times the table's rows", True
    )
    dtype: DtypeName = setting("of activations", "float32")
    param_dtype: DtypeName = setting("of parameters", "float32")
    remat: RematPolicy = setting(
        "recompute in the backward pass: nothing, whole blocks, or all but matrix products", "none"
    )
    loss_chunk: int = setting(
        "tokens of each sequence whose logits exist at one time in the loss", 256, least=1
    )

    def __post_init__(self) -> None:
        check_fields(self)
        used = tuple(map(str, self.pattern or (self.sequence_layer,)))
        own = tuple(name for name in dict.fromkeys(used) if is_own(name))
        with located("sequence_layer"):
            for layer in own:
                own_class(layer)
        with located("layer"):
            object.__setattr__(self, "layer", own_settings(own, self.layer))
        # Hashable, since configs are static arguments of compiled functions.
        for name in ("titans", "in_context", "rope_scaling"):
            section = getattr(self, name)
            object.__setattr__(self, name, None if section is None else FrozenDict(section))
        if self.pattern and self.num_layers % len(self.pattern):
            raise ValueError(
                f"num_layers {self.num_layers} must be a multiple of the {len(self.pattern)} blocks "
                f"of pattern {self.pattern}"
            )
        if self.pattern and self.in_context is not None:
            raise ValueError(
                "in_context needs blocks that are all alike; leave out pattern, or in_context"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} does not split into {self.num_heads} heads; make width a "
                f"multiple of num_heads"
            )
        if set(used) - {"titans", *own} and (self.width // self.num_heads) % 2:
            raise ValueError(
                f"rotary embedding turns pairs of channels, so width / num_heads must be even; "
                f"got {self.width} / {self.num_heads} = {self.width // self.num_heads}"
            )
        kv_heads = self.num_kv_heads
        if kv_heads is not None and self.num_heads % kv_heads:
            raise ValueError(
                f"num_kv_heads must be None or divide num_heads; got {kv_heads} and {self.num_heads}"
            )
        with located("rope_scaling"):
            _ = self.rotary_scaling
        with located("titans"):
            _ = self.titans_config
        for layer in own:
            with located("sequence_layer"):
                check_own_layer(layer, FrozenDict(self.layer), FrozenDict(self.own_sizes))
        if self.attention_sinks and (self.persistent_tokens or "memory_as_context" in used):
            raise ValueError(
                f"attention_sinks={self.attention_sinks} is for attention that has a window, which "
                f"memory_as_context has not, and no persistent_tokens; leave it out, or those"
            )
        if "memory_as_context" in used:
            check_segment(self.titans_config, self.attention_window)
            if self.num_kv_heads not in (None, self.num_heads) or self.rope_scaling is not None:
                raise ValueError(
                    "memory_as_context attends with the memory's heads within a segment: leave out "
                    "num_kv_heads and rope_scaling"
                )
        if self.in_context is not None:
            with located("in_context"):
                settings = InContextConfig(**self.in_context)
            if settings.blocks is not None and settings.blocks > self.num_layers:
                raise ValueError(
                    f"in_context.blocks={settings.blocks}, but the model has "
                    f"{count(self.num_layers, 'block')}"
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

    def unwritten(self, length: int) -> dict[str, int]:
        """Chunks that no sequence of `length` tokens goes beyond, by the setting that says so.

        What is learnt in a chunk is read after it. So memories and levels with such chunks are never
        seen to have learnt anything, and training cannot teach them what to learn: the first write that
        anything reads is one of longer texts, for which the model was not trained.

        Args:
          length: T, of a sequence.

        Example:
          >>> sizes = dict(vocab_size=256, width=64, num_layers=2, num_heads=2, mlp_width=128)
          >>> model = LanguageModelConfig(**sizes, titans={"memory_chunk": 16, "generator_chunk": 64})
          >>> model.unwritten(50), model.unwritten(65)
          ({'titans.generator_chunk': 64}, {})
        """
        chunks = dict(self._memory_chunks)
        if (levels := self.in_context_config) is not None:
            chunks["in_context.chunks"] = max(levels.chunks)
        return {name: chunk for name, chunk in chunks.items() if chunk >= length}

    @property
    def part_edges(self) -> dict[str, int]:
        """Chunks at whose edges a text can be cut into parts for several devices, by their setting.

        Example:
          >>> sizes = dict(vocab_size=256, width=64, num_layers=2, num_heads=2, mlp_width=128)
          >>> LanguageModelConfig(**sizes, titans={"memory_chunk": 16}).part_edges
          {'titans.memory_chunk': 16, 'titans.generator_chunk': 64}
        """
        chunks = dict(self._memory_chunks)
        if "memory_as_context" in self._used:
            chunks["attention_window"] = self.attention_window
        if (levels := self.in_context_config) is not None:
            chunks["in_context.chunks"] = levels.chunks[0]
        return chunks

    @property
    def _used(self) -> set[str]:
        return set(map(str, self.pattern or (self.sequence_layer,)))

    @property
    def _memory_chunks(self) -> dict[str, int]:
        if not any(name != "attention" and not is_own(name) for name in self._used):
            return {}
        titans = self.titans_config
        generators = {"titans.generator_chunk": titans.generator_chunk} if titans.adaptive else {}
        return {"titans.memory_chunk": titans.memory_chunk, **generators}

    @property
    def own_sizes(self) -> dict[str, Any]:
        """What the model fills in of a sequence layer of one's own."""
        dtypes = {name: jnp.dtype(getattr(self, name)) for name in ("dtype", "param_dtype")}
        return {"width": self.width, "num_heads": self.num_heads, **dtypes}

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
          SettingError: for a key that is no field (with the nearest field names), for a required
            field that is missing, and for values that do not fit.

        Example:
          >>> sizes = dict(vocab_size=256, width=64, num_layers=2, num_heads=2, mlp_width=128)
          >>> LanguageModelConfig.from_config_dict(sizes).width
          64
        """
        with located("model"):
            return read_settings(cls, values)
