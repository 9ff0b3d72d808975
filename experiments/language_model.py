"""Language models from 0.4M to 1.3B parameters, of every layer type, all of a size alike in parameters.

    hope train --config=experiments/language_model.py:hope-tiny --workdir=runs/tiny
    hope train --config=experiments/language_model.py:hope-760m --workdir=runs/760m \
        --config.data.tokens=DIR --config.data.tokenizer=tokenizer.model --config.mesh.fsdp=16

Variants are `layer-size`. Sizes: `tiny` (bytes of the Python library, for trying things out), `15m`,
`60m`, `170m`, `340m`, `760m`, `1.3b`. Layers: `transformer`, `hope`, `hope_attention`, `hybrid` (two of
Titans to one of attention), `memory_as_context`, `memory_as_gate`, `memory_as_layer`, and the names in
`hope_jax.layers.family`. Widths of MLPs bring every model within 2% of its size.

`760m` and `1.3b` are the paper's: 30B and 100B tokens of FineWeb-Edu and long documents, in a
vocabulary of 32,000, with AdamW. Depth, width, heads and rates are this file's; the smaller sizes have
20 tokens a parameter. The text is made into tokens once, beforehand:

    hope tokenize --files='fineweb-edu/*.parquet' --files='books/**/*.txt' \
        --tokenizer=tokenizer.model --output=DIR

For FineWeb-Edu with long documents, list both: sequences are drawn from all of it alike.
"""

import pathlib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from hope_jax.layers.family import FAMILY
from hope_jax.models import LanguageModelConfig
from hope_jax.models.parameter_count import match_parameter_count
from hope_jax.runs.config_file import load_config_file
from hope_jax.settings import as_values


class Size(NamedTuple):
    """One row of sizes: numbers of the model, and of its training."""

    parameters: int
    num_layers: int
    width: int
    num_heads: int
    tokens: int  # in all
    learning_rate: float
    batch_size: int = 128
    sequence_length: int = 4096
    vocab_size: int = 32_000


SIZES = {
    "tiny": Size(400_000, 3, 64, 2, 4_000_000, 4e-3, 8, 512, 256),
    "15m": Size(15_000_000, 6, 256, 4, 300_000_000, 3e-3, 64, 2048),
    "60m": Size(60_000_000, 12, 512, 8, 1_200_000_000, 2e-3, 64, 2048),
    "170m": Size(170_000_000, 15, 768, 12, 3_400_000_000, 1.5e-3),
    "340m": Size(340_000_000, 24, 1024, 16, 6_800_000_000, 1.2e-3),
    "760m": Size(760_000_000, 24, 1536, 16, 30_000_000_000, 1e-3),
    "1.3b": Size(1_300_000_000, 24, 2048, 16, 100_000_000_000, 7e-4),
}
# As published, those with an MLP for a memory overflow when trained on repetitive text.
STABLE = {name: {**titans, "bounded_step": True} for name, titans in FAMILY.items()}
TITANS = STABLE["titans_lmm"]
LAYERS: dict[str, dict[str, Any]] = {
    "transformer": {"sequence_layer": "attention"},
    "hope": {"cms_levels": 2, "titans": {"memory_chunk": 64, "generator_chunk": 64}},
    "hope_attention": {"sequence_layer": "attention", "cms_levels": 2},
    "hybrid": {"pattern": ("titans", "titans", "attention"), "titans": TITANS},
    **{
        f"memory_as_{place}": {
            "sequence_layer": f"memory_as_{place}",
            "persistent_tokens": 16,
            "titans": TITANS,
        }
        for place in ("context", "gate", "layer")
    },
    **{name: {"titans": titans} for name, titans in STABLE.items() if name != "hope"},
}


def model_config(layer: str, size: str) -> LanguageModelConfig:
    """The model of a layer type and size.

    Raises:
      ValueError: for a layer or size that is not known.
    """
    for kind, name, known in (("layer", layer, LAYERS), ("size", size, SIZES)):
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}; known are {', '.join(known)}")
    numbers = SIZES[size]
    settings: dict[str, Any] = dict(
        vocab_size=numbers.vocab_size,
        width=numbers.width,
        num_layers=numbers.num_layers,
        num_heads=numbers.num_heads,
        mlp_width=1,
        attention_window=numbers.sequence_length,
        dtype="float32" if size == "tiny" else "bfloat16",
        remat="none" if size == "tiny" else "block",
    )
    if layer.startswith("memory_as") or layer == "hybrid":
        settings["attention_window"] = min(512, numbers.sequence_length // 2)
    model = LanguageModelConfig.from_config_dict({**settings, **LAYERS[layer]})
    return match_parameter_count(model, numbers.parameters)


def get_config(variant: str = "hope-tiny") -> ConfigDict:
    """Returns the config of a variant, `layer-size`."""
    layer, _, size = variant.partition("-")
    model, numbers = model_config(layer, size), SIZES[size]
    here = pathlib.Path(__file__)
    config = load_config_file(here.with_name("quickstart.py")).get_config("hope")
    config.model = ConfigDict(as_values(model))

    config.steps = numbers.tokens // (numbers.batch_size * numbers.sequence_length)
    config.data.sequence_length = numbers.sequence_length
    config.data.batch_size = numbers.batch_size
    if size != "tiny":
        config.data.tokens = "tokens"  # a folder that `hope tokenize` has written
        config.data.tokenizer = "tokenizer.model"  # with which it has

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = numbers.learning_rate
    config.optimizer.warmup_steps = max(20, config.steps // 50)
    config.optimizer.final_fraction = 0.1
    config.optimizer.weight_decay = 0.1
    config.evaluate.ngram_orders = ()
    config.evaluate.sample_tokens = 200
    if size != "tiny":
        config.checkpoint.every = 1000
        config.evaluate.every = 1000
    return config
