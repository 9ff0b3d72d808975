"""`experiments/smollm2.py`: a GGUF file, written here byte by byte, as a Llama's folder."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file

from hope_jax.data.tokenizers import load_tokenizer
from hope_jax.models.llama import read_llama, read_llama_config
from hope_jax.runs.config_file import load_config_file
from tests.training.runs import QUICKSTART

SMOLLM2 = load_config_file(QUICKSTART.with_name("smollm2.py"))
WIDTH, HIDDEN, HEADS, KV_HEADS, LAYERS = 64, 32, 4, 2, 2
PIECES = ["<|end|>", "<|start|>", "a", "b", "Ġ", "1", "2", "ab", "Ġab", "12"]
RANDOM = np.random.default_rng(0)


def string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def field(name, kind, content):
    return string(name) + struct.pack("<I", kind) + content


def array(kind, items):
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def packed(shape, kind):
    """Bytes of random weights of a kind, and the weights, one at a time."""
    count = int(np.prod(shape))
    if kind == 0:
        weights = RANDOM.normal(size=shape).astype(np.float32)
        return weights.tobytes(), weights
    content, weights = b"", []
    for _ in range(count // 32):
        scale = np.float16(RANDOM.uniform(0.1, 1))
        if kind == 8:
            steps = RANDOM.integers(-127, 128, size=32)
            content += scale.tobytes() + struct.pack("32b", *steps)
            weights += [np.float32(scale) * step for step in steps]
        else:
            least, steps = np.float16(RANDOM.normal()), RANDOM.integers(16, size=32)
            both = (int(steps[i]) + 16 * int(steps[i + 16]) for i in range(16))
            content += scale.tobytes() + least.tobytes() + bytes(both)
            weights += [np.float32(scale) * step + np.float32(least) for step in steps]
    return content, np.float32(weights).reshape(shape)


def write_gguf(path, kind=3):
    """A tiny model; returns its tensors by llama.cpp's names."""
    small = WIDTH * KV_HEADS // HEADS
    shapes = {"token_embd": (len(PIECES), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        of_layer = {
            "attn_norm": (WIDTH,),
            "ffn_norm": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (small, WIDTH),
            "attn_v": (small, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_gate": (HIDDEN, WIDTH),
            "ffn_up": (HIDDEN, WIDTH),
            "ffn_down": (WIDTH, HIDDEN),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in of_layer.items()}
    number = lambda value: struct.pack("<I", value)
    about = [
        field("general.architecture", 8, string("llama")),
        field("llama.block_count", 4, number(LAYERS)),
        field("llama.context_length", 4, number(128)),
        field("llama.embedding_length", 4, number(WIDTH)),
        field("llama.feed_forward_length", 4, number(HIDDEN)),
        field("llama.attention.head_count", 4, number(HEADS)),
        field("llama.attention.head_count_kv", 4, number(KV_HEADS)),
        field("llama.rope.freq_base", 6, struct.pack("<f", 1e5)),
        field("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
        field("tokenizer.ggml.add_bos_token", 7, b"\0"),
        field("tokenizer.ggml.pre", 8, string("smollm")),
        field("tokenizer.ggml.tokens", 9, array(8, list(map(string, PIECES)))),
        field("tokenizer.ggml.token_type", 9, array(5, [number(3)] * 2 + [number(1)] * 8)),
        field("tokenizer.ggml.merges", 9, array(8, [string("a b"), string("Ġ ab"), string("1 2")])),
        field("tokenizer.ggml.bos_token_id", 4, number(1)),
        field("tokenizer.ggml.eos_token_id", 4, number(0)),
    ]
    infos, data, tensors = b"", b"", {}
    for name, shape in shapes.items():
        of = 0 if len(shape) == 1 else 8 if name == "token_embd" else kind
        content, tensors[name] = packed(shape, of)
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        infos += string(f"{name}.weight") + axes + struct.pack("<IQ", of, len(data))
        data += content + bytes(-len(content) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(about)) + b"".join(about) + infos
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return tensors


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    tensors = write_gguf(folder / "model.gguf")
    SMOLLM2.write_folder(folder / "hf", folder / "model.gguf")
    return folder, tensors


def test_the_folder_is_a_llama_with_every_weight_of_the_file(made):
    folder, tensors = made
    config = read_llama_config(folder / "hf")
    assert (config.width, config.num_layers, config.mlp_width) == (WIDTH, LAYERS, HIDDEN)
    assert (config.num_heads, config.num_kv_heads, config.tie_embeddings) == (HEADS, KV_HEADS, True)
    assert (config.rope_base, config.norm_epsilon, config.attention_window) == (1e5, 1e-5, 128)
    read_llama(folder / "hf", config)  # no tensor is missing, or left over
    found = load_file(folder / "hf" / "model.safetensors")
    same = {
        "token_embd": "embed_tokens",
        "blk.1.attn_v": "layers.1.self_attn.v_proj",
        "blk.0.ffn_gate": "layers.0.mlp.gate_proj",
        "blk.1.ffn_down": "layers.1.mlp.down_proj",
        "blk.0.ffn_norm": "layers.0.post_attention_layernorm",
    }
    for theirs, name in same.items():
        np.testing.assert_allclose(found[f"model.{name}.weight"], tensors[theirs], rtol=1e-6)


def test_channels_that_are_turned_together_lie_half_a_head_apart(made):
    folder, tensors = made
    found = load_file(folder / "hf" / "model.safetensors")
    half = WIDTH // HEADS // 2
    for part, heads in (("q", HEADS), ("k", KV_HEADS)):
        ours = found[f"model.layers.1.self_attn.{part}_proj.weight"]
        theirs = tensors[f"blk.1.attn_{part}"]
        for head in range(heads):
            for pair in range(half):
                for side in range(2):
                    row = 2 * half * head
                    np.testing.assert_allclose(
                        ours[row + side * half + pair], theirs[row + 2 * pair + side], rtol=1e-6
                    )


def test_the_tokenizer_merges_letters_and_leaves_digits_alone(made):
    tokenizer = load_tokenizer(str(made[0] / "hf" / "tokenizer.json"))
    pieces = [PIECES[i] for i in tokenizer.encode("ab ab12<|start|>b")]
    assert pieces == ["ab", "Ġab", "1", "2", "<|start|>", "b"]
    assert tokenizer.decode(tokenizer.encode("ab ab12")) == "ab ab12"
    assert (tokenizer.before, tokenizer.end_ids) == ((), (0,))
    config = json.loads((made[0] / "hf" / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<|start|>", "<|end|>")


def test_other_files_are_refused(made, tmp_path):
    folder, _ = made
    content = (folder / "model.gguf").read_bytes()
    changes = {
        "no GGUF file": content.replace(b"GGUF", b"GGML", 1),
        r"holds \('gemma', 'smollm'\)": content.replace(string("llama"), string("gemma"), 1),
    }
    for message, changed in changes.items():
        (tmp_path / "changed").write_bytes(changed)
        with pytest.raises(ValueError, match=message):
            SMOLLM2.write_folder(tmp_path / "hf", tmp_path / "changed")
    place = content.index(b"blk.0.attn_q.weight") + 19 + 4 + 16
    changed = content[:place] + struct.pack("<I", 14) + content[place + 4 :]
    (tmp_path / "changed").write_bytes(changed)
    with pytest.raises(ValueError, match="blk.0.attn_q.weight is of kind 14"):
        SMOLLM2.write_folder(tmp_path / "hf", tmp_path / "changed")
