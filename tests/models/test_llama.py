"""Llama checkpoints, against the implementation that they come from and against plain NumPy."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load, load_file, save_file

from hope_jax.models import LanguageModel
from hope_jax.models.llama import read_llama, read_llama_config, write_llama

SIZES = {
    "vocab_size": 19,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
KINDS = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False, "num_key_value_heads": 4},
    "llama3": {"tie_word_embeddings": False, "rope": LLAMA3},
    "linear": {"tie_word_embeddings": True, "rope": {"rope_type": "linear", "factor": 4.0}},
}
TOKENS = np.random.default_rng(0).integers(19, size=(2, 50))


def hf_config(kind):
    settings = dict(KINDS[kind])
    rope = settings.pop("rope", {"rope_type": "default"})
    return {
        **SIZES,
        **settings,
        "model_type": "llama",
        "rope_theta": 500.0,
        "rope_scaling": rope,
    }


def write_random(folder, kind, seed=0):
    """A checkpoint of random weights, written by hand."""
    config, random = hf_config(kind), np.random.default_rng(seed)
    width, hidden = config["hidden_size"], config["intermediate_size"]
    narrow = width * config["num_key_value_heads"] // config["num_attention_heads"]
    draw = lambda *shape: (random.normal(size=shape) / shape[-1] ** 0.5).astype(np.float32)
    tensors = {
        "model.embed_tokens.weight": 5 * draw(config["vocab_size"], width),
        "model.norm.weight": 1 + draw(width),
    }
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = 5 * draw(config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        parts = {
            "input_layernorm": 1 + draw(width),
            "self_attn.q_proj": 3 * draw(width, width),
            "self_attn.k_proj": 3 * draw(narrow, width),
            "self_attn.v_proj": draw(narrow, width),
            "self_attn.o_proj": draw(width, width),
            "post_attention_layernorm": 1 + draw(width),
            "mlp.gate_proj": draw(hidden, width),
            "mlp.up_proj": draw(hidden, width),
            "mlp.down_proj": draw(width, hidden),
        }
        tensors |= {f"model.layers.{layer}.{n}.weight": t for n, t in parts.items()}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def logits_by_numpy(folder, tokens):
    """Llama written out for one sequence, in float64."""
    config = json.loads((folder / "config.json").read_text())
    weights = {n: t.astype(np.float64) for n, t in load_file(folder / "model.safetensors").items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    rope, base = config["rope_scaling"], config["rope_theta"]
    frequency = [base ** (-2 * i / size) for i in range(size // 2)]
    for i, f in enumerate(frequency):
        if rope["rope_type"] == "linear":
            frequency[i] = f / rope["factor"]
        if rope["rope_type"] == "llama3":
            old, low, high = 16, 1.0, 4.0
            wave = 2 * np.pi / f
            if wave > old / low:
                frequency[i] = f / rope["factor"]
            elif wave >= old / high:
                smooth = (old / wave - low) / (high - low)
                frequency[i] = (1 - smooth) * f / rope["factor"] + smooth * f

    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight

    def turned(x):  # (T, heads, size)
        angle = np.arange(len(x))[:, None, None] * np.array(frequency)
        a, b = x[..., : size // 2], x[..., size // 2 :]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = weights["model.embed_tokens.weight"][tokens]
    count = len(tokens)
    for layer in range(config["num_hidden_layers"]):
        w = lambda name, layer=layer: weights[f"model.layers.{layer}.{name}.weight"]
        n = norm(x, w("input_layernorm"))
        q = turned((n @ w("self_attn.q_proj").T).reshape(count, heads, size))
        k = turned((n @ w("self_attn.k_proj").T).reshape(count, kv_heads, size))
        v = (n @ w("self_attn.v_proj").T).reshape(count, kv_heads, size)
        mixed = []
        for head in range(heads):
            group = head * kv_heads // heads
            score = q[:, head] @ k[:, group].T / np.sqrt(size)
            score = np.where(np.tri(count, dtype=bool), score, -np.inf)
            share = np.exp(score - score.max(-1, keepdims=True))
            mixed.append(share / share.sum(-1, keepdims=True) @ v[:, group])
        x = x + np.concatenate(mixed, -1) @ w("self_attn.o_proj").T
        n = norm(x, w("post_attention_layernorm"))
        gate = n @ w("mlp.gate_proj").T
        x = x + (gate / (1 + np.exp(-gate)) * (n @ w("mlp.up_proj").T)) @ w("mlp.down_proj").T
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return norm(x, weights["model.norm.weight"]) @ weights[f"{head}.weight"].T


def logits_of(folder, **changes):
    config = read_llama_config(folder, **changes)
    params = jax.tree.map(jnp.asarray, read_llama(folder, config))
    if config.in_context is not None:
        params["log_step"] = jnp.zeros((config.adapting_blocks, config.cms_levels))
    return np.asarray(jax.jit(LanguageModel(config).apply)({"params": params}, TOKENS)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_equals_llama_written_out_in_numpy(kind, tmp_path):
    write_random(tmp_path, kind)
    expected = np.stack([logits_by_numpy(tmp_path, row) for row in TOKENS])
    np.testing.assert_allclose(logits_of(tmp_path), expected, atol=1e-4)
    assert np.abs(expected).max() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers_both_ways(kind, tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch, which Transformers runs on")
    transformers = pytest.importorskip("transformers")
    settings = hf_config(kind)
    del settings["model_type"]
    rope = {**settings.pop("rope_scaling"), "rope_theta": settings.pop("rope_theta")}
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**settings, rope_parameters=rope, initializer_range=0.2)
    )
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS)).logits.numpy()
    np.testing.assert_allclose(logits_of(tmp_path / "theirs"), expected, atol=1e-4)
    assert np.abs(expected).max() > 0.1

    config = read_llama_config(tmp_path / "theirs")
    write_llama(tmp_path / "ours", config, read_llama(tmp_path / "theirs", config))
    back = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        returned = back(torch.tensor(TOKENS)).logits.numpy()
    np.testing.assert_allclose(returned, expected, atol=1e-5)


def test_stacked_levels_at_step_size_0_are_the_plain_model_exactly(tmp_path):
    write_random(tmp_path, "llama3")
    plain = logits_of(tmp_path)
    stacked = {"chunks": (4, 8), "blocks": 3}
    still = logits_of(tmp_path, in_context={**stacked, "step_size": 0.0})
    np.testing.assert_array_equal(still, plain)
    learning = logits_of(tmp_path, in_context={**stacked, "step_size": 0.5})
    np.testing.assert_allclose(learning[:, :4], plain[:, :4], atol=1e-4)
    assert np.abs(learning[:, 8:] - plain[:, 8:]).max() > 1e-3
    # Two levels in a chain, each with half a share of the same MLP.
    chain = {"cms_levels": 2, "cms_connection": "independent"}
    np.testing.assert_array_equal(
        logits_of(tmp_path, **chain, in_context={"chunks": (4, 8), "step_size": 0.0}), plain
    )


def test_a_checkpoint_in_parts_and_in_bfloat16_is_read(tmp_path):
    write_random(tmp_path / "whole", "tied")
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    halves = [dict(list(tensors.items())[i::2]) for i in range(2)]
    files = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    for file, half in zip(files, halves, strict=True):
        low = {name: np.asarray(tensor.astype(jnp.bfloat16)) for name, tensor in half.items()}
        save_file(low, parts / file)
    index = {n: f for f, half in zip(files, halves, strict=True) for n in half}
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = read_llama_config(parts)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2)
    jax.tree.map(close, read_llama(parts, config), read_llama(tmp_path / "whole", config))


def test_what_is_no_llama_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint in Hugging Face's format"):
        read_llama_config(tmp_path)
    write_random(tmp_path, "tied")
    whole = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"head_dim": 8}, "head_dim is 8"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "RoPE scaling of type 'yarn'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**whole, **change}))
        with pytest.raises(ValueError, match=message):
            read_llama_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**whole, "intermediate_size": 21}))
    with pytest.raises(ValueError, match=r"gate_proj.weight has shape \(20, 24\), expected \(21"):
        read_llama(tmp_path, read_llama_config(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({**whole, "num_hidden_layers": 4}))
    with pytest.raises(ValueError, match="no tensor model.layers.3"):
        read_llama(tmp_path, read_llama_config(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({**whole, "num_hidden_layers": 2}))
    with pytest.raises(ValueError, match="not known here: model.layers.2"):
        read_llama(tmp_path, read_llama_config(tmp_path))
    config = read_llama_config(tmp_path)
    with pytest.raises(ValueError, match="cms_levels=2"):
        write_llama(tmp_path, dataclasses.replace(config, cms_levels=2), {})


def test_broken_checkpoints_are_named_in_one_line(tmp_path):
    write_random(tmp_path, "tied")
    config_file, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    whole, content = json.loads(config_file.read_text()), weights.read_bytes()
    config = read_llama_config(tmp_path)

    def refused(message, reader):
        with pytest.raises(ValueError, match=message) as raised:
            reader()
        assert "\n" not in str(raised.value)

    for name in ("hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings"):
        config_file.write_text(json.dumps({k: v for k, v in whole.items() if k != name}))
        refused(f"config.json lacks {name}", lambda: read_llama_config(tmp_path))
    for change, message in (
        ({"num_attention_heads": 0}, "num_attention_heads must be a positive integer, got 0"),
        ({"hidden_size": "24"}, "hidden_size must be a positive integer, got '24'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "RoPE scaling of type 'linear' lacks factor"),
        ({"quantization_config": {"bits": 4}}, "without biases or quantised weights"),
    ):
        config_file.write_text(json.dumps({**whole, **change}))
        refused(message, lambda: read_llama_config(tmp_path))
    config_file.write_text(json.dumps(whole)[:30])
    refused("config.json cannot be read", lambda: read_llama_config(tmp_path))
    config_file.write_text(json.dumps(whole))

    read = lambda: read_llama(tmp_path, config)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused("is a pointer of git-lfs, not the weights; run git lfs pull", read)
    for cut in (content[:-9], content[:5], b""):
        weights.write_bytes(cut)
        refused("model.safetensors is damaged, or cut off", read)
    tensors = load(content)
    name = "model.layers.1.mlp.up_proj.weight"
    for value in (np.nan, np.inf):
        spoilt = tensors[name].copy()
        spoilt[2, 3] = value
        save_file({**tensors, name: spoilt}, weights)
        refused(f"{name} holds 1 entries that are no numbers", read)
    save_file({**tensors, name: tensors[name].astype(np.int8)}, weights)
    refused("is int8; quantised weights are not read", read)
    weights.unlink()
    refused("has neither model.safetensors nor", read)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: "a.safetensors", "x": "b.safetensors"}}))
    refused("lacks 2 of 2 files of weights: a.safetensors, b.safetensors", read)
    index.write_text("{}")
    refused("has no weight_map", read)


def test_the_embedding_goes_through_bfloat16_to_the_bit(tmp_path):
    for kind in ("tied", "untied"):
        write_random(tmp_path / kind, kind)
        tensors = load_file(tmp_path / kind / "model.safetensors")
        low = {name: np.asarray(tensor.astype(jnp.bfloat16)) for name, tensor in tensors.items()}
        save_file(low, tmp_path / kind / "model.safetensors")
        config = read_llama_config(tmp_path / kind, param_dtype="bfloat16")
        params = read_llama(tmp_path / kind, config)
        np.testing.assert_array_equal(
            params["embedding"], low["model.embed_tokens.weight"], strict=True
        )
        write_llama(tmp_path / "back", config, params)
        back = load_file(tmp_path / "back" / "model.safetensors")
        assert back.keys() == low.keys()
        for name in low:
            np.testing.assert_array_equal(back[name], low[name], strict=True)
