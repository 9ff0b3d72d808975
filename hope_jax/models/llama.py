"""Llama checkpoints in Hugging Face's format, read into language models and written from them.

A Llama block is a `Block` with attention and one MLP. In a model with `in_context` settings the
pre-trained MLPs become levels that go on learning (ad-hoc level stacking, section 7.3).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from safetensors import safe_open
from safetensors.numpy import save_file

from hope_jax.models.config import LanguageModelConfig

_WEIGHTS, _INDEX, _CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
# Path in our parameters, and in theirs after `model.layers.N.`
_BLOCK_PARTS = {
    ("norm", "scale"): "input_layernorm",
    ("attention", "query", "kernel"): "self_attn.q_proj",
    ("attention", "key", "kernel"): "self_attn.k_proj",
    ("attention", "value", "kernel"): "self_attn.v_proj",
    ("attention", "out", "kernel"): "self_attn.o_proj",
    ("continuum", "level_0_norm", "scale"): "post_attention_layernorm",
    ("continuum", "level_0", "gate", "kernel"): "mlp.gate_proj",
    ("continuum", "level_0", "up", "kernel"): "mlp.up_proj",
    ("continuum", "level_0", "down", "kernel"): "mlp.down_proj",
}


def read_llama_config(folder: str | Path, **changes: Any) -> LanguageModelConfig:
    """The model that a Llama checkpoint holds.

    Args:
      folder: of the checkpoint, with its config.json.
      changes: fields of `LanguageModelConfig` that are not to be as there, such as `in_context`,
        or `attention_window`, which is the longest context of pre-training otherwise.

    Returns:
      The config.

    Raises:
      ValueError: if there is no such checkpoint, or it is no Llama, or one with parts that are not
        known here.
    """
    path = Path(folder) / _CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} holds no checkpoint in Hugging Face's format: no {path}")
    theirs = json.loads(path.read_text())
    heads, width = theirs.get("num_attention_heads"), theirs.get("hidden_size")
    refused = {
        "model_type": theirs.get("model_type") != "llama",
        "hidden_act": theirs.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(theirs.get("attention_bias")),
        "mlp_bias": bool(theirs.get("mlp_bias")),
        "head_dim": (theirs.get("head_dim") or width // heads) != width // heads,
    }
    for name, found in refused.items():
        if found:
            raise ValueError(
                f"{path}: {name} is {theirs.get(name)!r}; what can be read is model_type 'llama' with "
                f"hidden_act 'silu', without biases, and heads that share the width equally"
            )
    # Transformers 5 keeps the base and the scaling together.
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    fields = {
        "vocab_size": theirs["vocab_size"],
        "width": width,
        "num_layers": theirs["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": theirs.get("num_key_value_heads") or heads,
        "mlp_width": theirs["intermediate_size"],
        "sequence_layer": "attention",
        "attention_window": theirs["max_position_embeddings"],
        "rope_base": float(rope.get("rope_theta") or theirs.get("rope_theta", 10_000.0)),
        "rope_scaling": _read_scaling(path, rope),
        "norm_epsilon": theirs["rms_norm_eps"],
        "tie_embeddings": theirs.get("tie_word_embeddings", False),
    }
    return LanguageModelConfig.from_config_dict({**fields, **changes})


def read_llama(folder: str | Path, config: LanguageModelConfig) -> Any:
    """The parameters that a Llama checkpoint holds.

    Where there are several levels in a chain, all of them begin as the one MLP of their block;
    `cms_connection="independent"`, whose shares add up to 1, makes of them what that MLP was.

    Args:
      folder: of the checkpoint.
      config: from `read_llama_config`.

    Returns:
      Parameters of `LanguageModel(config)`, NumPy arrays; those that only in-context learning has
      are not among them.

    Raises:
      ValueError: if tensors are missing, left over, or of other shapes.
    """
    tensors = dict(_tensors(Path(folder)))
    if config.tie_embeddings:
        tensors.pop("lm_head.weight", None)  # some write the table twice
    dtype, root = jnp.dtype(config.param_dtype), config.width**0.5

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise ValueError(f"{folder} has no tensor {name}")
        tensor = tensors.pop(name)
        if tensor.shape != shape:
            raise ValueError(f"{folder}: {name} has shape {tensor.shape}, expected {shape}")
        return tensor.astype(np.float32)

    shapes = _shapes(config)

    def of_layer(layer: int, part: tuple[str, ...], name: str) -> np.ndarray:
        shape = shapes[part]
        name = f"model.layers.{layer}.{name}.weight"
        if len(shape) == 1:
            return take(name, shape)
        columns, rows = _matrix(part, shape)
        return np.reshape(take(name, (rows, columns)).T, shape)

    blocks: dict[str, Any] = {}
    for part, name in _BLOCK_PARTS.items():
        layers = [of_layer(layer, part, name) for layer in range(config.num_layers)]
        _put(blocks, part, np.stack(layers).astype(dtype))
    for level in range(1, config.cms_levels):
        for kind in ("level_{}", "level_{}_norm"):
            blocks["continuum"][kind.format(level)] = blocks["continuum"][kind.format(0)]
    if config.cms_connection == "independent":
        shape = (config.num_layers, config.cms_levels)
        blocks["continuum"]["level_shares"] = np.full(shape, 1 / config.cms_levels, dtype)
    table = (config.vocab_size, config.width)
    # Our table holds rows of about unit length; the residual stream begins with sqrt(D) times them.
    embedding = take("model.embed_tokens.weight", table) / root
    norm = take("model.norm.weight", (config.width,))
    params: dict[str, Any] = {"blocks": blocks}
    if config.tie_embeddings:
        norm = norm * root
    else:
        params["unembedding"] = take("lm_head.weight", table).astype(dtype)
    params["embedding"] = embedding.astype(dtype)
    params["norm"] = {"scale": norm.astype(dtype)}
    left = [name for name in tensors if not name.endswith("rotary_emb.inv_freq")]
    if left:
        raise ValueError(f"{folder} holds tensors that are not known here: {', '.join(left[:5])}")
    return params


def write_llama(folder: str | Path, config: LanguageModelConfig, params: Any) -> None:
    """Writes a checkpoint that Hugging Face's Llama reads: config.json and model.safetensors.

    Args:
      folder: to write; it is made.
      config: of the model.
      params: of the model; those that only in-context learning has are left out.

    Raises:
      ValueError: if the model is not of Llama's architecture.
    """
    if config.sequence_layer != "attention" or config.cms_levels != 1:
        raise ValueError(
            f"Llama has attention and one MLP a block; this model has "
            f"sequence_layer={config.sequence_layer!r} and cms_levels={config.cms_levels}"
        )
    if config.cms_connection == "independent":
        raise ValueError("Llama has no shares of levels, which cms_connection='independent' learns")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    params, root = nn.unbox(params), config.width**0.5
    wide = lambda x: np.asarray(x, np.float32)
    norm = wide(params["norm"]["scale"])
    tensors = {"model.embed_tokens.weight": wide(params["embedding"]) * np.float32(root)}
    if config.tie_embeddings:
        norm = norm / np.float32(root)
    else:
        tensors["lm_head.weight"] = wide(params["unembedding"])
    tensors["model.norm.weight"] = norm
    for part, name in _BLOCK_PARTS.items():
        stacked = params["blocks"]
        for key in part:
            stacked = stacked[key]
        for layer, tensor in enumerate(wide(stacked)):
            if tensor.ndim > 1:
                tensor = tensor.reshape(_matrix(part, tensor.shape)).T
            tensors[f"model.layers.{layer}.{name}.weight"] = np.ascontiguousarray(tensor)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rotary_scaling is not None:
        scaling = config.rotary_scaling
        rope = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_frequency,
                "high_freq_factor": scaling.high_frequency,
                "original_max_position_embeddings": scaling.original_context,
            }
    theirs = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads or config.num_heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.attention_window,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_base,
        "rope_parameters": {**rope, "rope_theta": config.rope_base},
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    if config.rotary_scaling is not None:
        theirs["rope_scaling"] = rope  # where readers before version 5 look
    (folder / _CONFIG).write_text(json.dumps(theirs, indent=2) + "\n")


def _read_scaling(path: Path, rope: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return {"kind": "linear", "factor": float(rope["factor"])}
    if kind == "llama3":
        return {
            "kind": "llama3",
            "factor": float(rope["factor"]),
            "low_frequency": float(rope["low_freq_factor"]),
            "high_frequency": float(rope["high_freq_factor"]),
            "original_context": int(rope["original_max_position_embeddings"]),
        }
    raise ValueError(f"{path}: RoPE scaling of type {kind!r}; what can be read is linear or llama3")


def _tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    index = folder / _INDEX
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif (folder / _WEIGHTS).is_file():
        files = [_WEIGHTS]
    else:
        raise ValueError(f"{folder} has neither {_WEIGHTS} nor {_INDEX}")
    for name in files:
        # This reader knows bfloat16, which NumPy's does not.
        with safe_open(folder / name, framework="flax") as file:
            for key in file.keys():  # noqa: SIM118 (it is no mapping)
                yield key, np.asarray(file.get_tensor(key))


def _shapes(config: LanguageModelConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shape of each part of a block."""
    width, heads, hidden = config.width, config.num_heads, config.mlp_width
    head_dim, kv_heads = width // heads, config.num_kv_heads or heads
    shapes: list[tuple[int, ...]] = [
        (width,),
        (width, heads, head_dim),
        (width, kv_heads, head_dim),
        (width, kv_heads, head_dim),
        (heads, head_dim, width),
        (width,),
        (width, hidden),
        (width, hidden),
        (hidden, width),
    ]
    return dict(zip(_BLOCK_PARTS, shapes, strict=True))


def _matrix(part: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs of a map whose heads have an axis of their own."""
    if "out" in part:
        return shape[0] * shape[1], shape[2]
    return shape[0], int(np.prod(shape[1:]))


def _put(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
