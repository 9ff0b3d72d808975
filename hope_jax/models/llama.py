"""Llama checkpoints in Hugging Face's format, read into language models and written from them.

A Llama block is a `Block` with attention and one MLP. In a model with `in_context` settings the
pre-trained MLPs become levels that go on learning (ad-hoc level stacking, section 7.3).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hope_jax.models.config import LanguageModelConfig

_WEIGHTS, _INDEX, _CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
_NEEDED = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
_POINTER = b"version https://git-lfs"
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
    theirs = _read_json(path)
    missing = [name for name in _NEEDED if theirs.get(name) is None]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}, without which it is no Llama's")
    for name in _NEEDED[1:]:
        if not isinstance(theirs[name], int) or theirs[name] < 1:
            raise ValueError(f"{path}: {name} must be a positive integer, got {theirs[name]!r}")
    heads, width = theirs["num_attention_heads"], theirs["hidden_size"]
    refused = {
        "model_type": theirs.get("model_type") != "llama",
        "hidden_act": theirs.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(theirs.get("attention_bias")),
        "mlp_bias": bool(theirs.get("mlp_bias")),
        "quantization_config": bool(theirs.get("quantization_config")),
        "head_dim": (theirs.get("head_dim") or width // heads) != width // heads,
    }
    for name, found in refused.items():
        if found:
            raise ValueError(
                f"{path}: {name} is {theirs.get(name)!r}; what can be read is model_type 'llama' with "
                f"hidden_act 'silu', without biases or quantised weights, and heads that share the width "
                f"equally"
            )
    return LanguageModelConfig.from_config_dict({**_fields(path, theirs), **changes})


def _fields(path: Path, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What their config says of a model of ours."""
    # Transformers 5 keeps the base and the scaling together.
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    heads = theirs["num_attention_heads"]
    return {
        "vocab_size": theirs["vocab_size"],
        "width": theirs["hidden_size"],
        "num_layers": theirs["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": theirs.get("num_key_value_heads") or heads,
        "mlp_width": theirs["intermediate_size"],
        "sequence_layer": "attention",
        "attention_window": theirs["max_position_embeddings"],
        "rope_base": float(rope.get("rope_theta") or theirs.get("rope_theta", 10_000.0)),
        "rope_scaling": _read_scaling(path, rope),
        "norm_epsilon": theirs.get("rms_norm_eps", 1e-6),
        "tie_embeddings": theirs.get("tie_word_embeddings", False),
        "scaled_embedding": False,
    }


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
      ValueError: if tensors are missing, left over, of other shapes, or hold what is no number.
    """
    tensors = dict(read_tensors(Path(folder)))
    if config.tie_embeddings:
        tensors.pop("lm_head.weight", None)  # some write the table twice
    dtype, root = jnp.dtype(config.param_dtype), _root(config)

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise ValueError(f"{folder} has no tensor {name}")
        tensor = tensors.pop(name)
        if tensor.shape != shape:
            raise ValueError(f"{folder}: {name} has shape {tensor.shape}, expected {shape}")
        if not jnp.issubdtype(tensor.dtype, jnp.floating) or tensor.dtype.itemsize < 2:
            raise ValueError(f"{folder}: {name} is {tensor.dtype}; quantised weights are not read")
        wide = tensor.astype(np.float32)
        if not np.isfinite(wide).all():
            raise ValueError(
                f"{folder}: {name} holds {np.sum(~np.isfinite(wide)):,} entries that are no numbers "
                f"(NaN or infinite); the file is damaged, or training diverged"
            )
        return wide

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
    # With scaled_embedding the residual stream begins with sqrt(D) times our rows.
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


def check_llama(config: LanguageModelConfig) -> None:
    """Raises ValueError if a model is not of Llama's architecture."""
    if config.sequence_layer != "attention" or config.cms_levels != 1 or config.pattern:
        raise ValueError(
            f"Llama has attention and one MLP a block; this model has "
            f"sequence_layer={config.sequence_layer!r} and cms_levels={config.cms_levels}"
        )
    if config.cms_connection == "independent":
        raise ValueError("Llama has no shares of levels, which cms_connection='independent' learns")
    if config.persistent_tokens:
        raise ValueError(
            f"Llama has no persistent tokens; this model has {config.persistent_tokens}"
        )


def write_llama(
    folder: str | Path,
    config: LanguageModelConfig,
    params: Any,
    *,
    bos_id: int | None = None,
    end_ids: Sequence[int] = (),
    like: str | Path | None = None,
) -> None:
    """Writes a checkpoint that Hugging Face's Llama reads: config.json and model.safetensors.

    Args:
      folder: to write; it is made.
      config: of the model.
      params: of the model; those that only in-context learning has are left out.
      bos_id: id in front of every text, if there is one.
      end_ids: ids that end a text.
      like: folder of the checkpoint that the model was made of, whose config.json is kept as far as it
        still says the truth, special tokens and the longest context of pre-training among it.

    Raises:
      ValueError: if the model is not of Llama's architecture.
    """
    check_llama(config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    params, root = nn.unbox(params), _root(config)
    wide = lambda x: np.asarray(x, np.float32)
    dtype = "bfloat16" if config.param_dtype == "bfloat16" else "float32"
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
    tensors = {name: tensor.astype(jnp.dtype(dtype)) for name, tensor in tensors.items()}
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    theirs = _config(config) | {"bos_token_id": bos_id, "eos_token_id": _one_or_all(end_ids)}
    if like is not None:
        before = _read_json(Path(like) / _CONFIG)
        ours, then = (
            {**_fields(Path(like), c), "attention_window": None} for c in (theirs, before)
        )
        # Where it is the same architecture still, what came in goes out.
        theirs = before if ours == then else before | theirs
    names = [name for name in ("dtype", "torch_dtype") if name in theirs] or ["torch_dtype"]
    theirs |= dict.fromkeys(names, dtype)
    (folder / _CONFIG).write_text(json.dumps(theirs, indent=2) + "\n")


def _root(config: LanguageModelConfig) -> float:
    """How much smaller our rows of the embedding are than theirs."""
    return config.width**0.5 if config.scaled_embedding else 1.0


def _one_or_all(ids: Sequence[int]) -> int | list[int] | None:
    return (list(ids) if len(ids) > 1 else ids[0]) if ids else None


def _config(config: LanguageModelConfig) -> dict[str, Any]:
    """What their config says of a model, but for special tokens and dtypes."""
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
    }
    if config.rotary_scaling is not None:
        theirs["rope_scaling"] = rope  # where readers before version 5 look
    return theirs


def _read_scaling(path: Path, rope: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    try:
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
    except KeyError as error:
        raise ValueError(f"{path}: RoPE scaling of type {kind!r} lacks {error.args[0]}") from error
    raise ValueError(f"{path}: RoPE scaling of type {kind!r}; what can be read is linear or llama3")


def read_tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The names and tensors of a folder of safetensors, in one file or several with an index.

    Raises:
      ValueError: if a file is missing, damaged, or only a pointer to it.
    """
    index = folder / _INDEX
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(
                f"{index} has no weight_map, which says in which file each tensor lies"
            )
        files = sorted(set(weight_map.values()))
    elif (folder / _WEIGHTS).is_file():
        files = [_WEIGHTS]
    else:
        raise ValueError(f"{folder} has neither {_WEIGHTS} nor {_INDEX}")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(files)} files of weights: {', '.join(missing[:3])}"
        )
    for name in files:
        with (folder / name).open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise ValueError(
                    f"{folder / name} is a pointer of git-lfs, not the weights; run git lfs pull there"
                )
        try:
            # This reader knows bfloat16, which NumPy's does not.
            with safe_open(folder / name, framework="flax") as file:
                for key in file.keys():  # noqa: SIM118 (it is no mapping)
                    yield key, np.asarray(file.get_tensor(key))
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is damaged, or cut off ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


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
