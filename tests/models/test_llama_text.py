"""Tiny Llama checkpoints with tokenizers, from token ids to text and back, as Transformers has them."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import tokenizers
from safetensors.numpy import load_file, save_file

from hope_jax.commands.convert import export_llama, import_llama
from hope_jax.commands.generate import read_prompt, stream_text
from hope_jax.commands.trained_model import load_model
from hope_jax.data.tokenizers import load_tokenizer
from tests.models.test_llama import SIZES, write_random
from tests.training.runs import tiny_config

LINES = [
    "the cat sat on the mat.",
    "a dog and a cat sat in a naïve café, 5 € each <b>",
    "Hello world, this is text and more of it",
]
PROMPTS = ["the cat", "a dog sat in the café", "Hello 🙂 world"]
GREEDY = {"temperature": 0.0, "top_p": 1.0, "seed": 0}
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]


def write_json(path, content):
    path.write_text(json.dumps(content))


def llama2(folder, json_too):
    """SentencePiece with fallback to bytes; `<s>` in front."""
    (folder / "text").write_text("\n".join(LINES * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "text").unlink()
    (folder / "tokenizer.vocab").unlink()
    about = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    about |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "tokenizer_config.json", about)
    if json_too:
        transformers = pytest.importorskip("transformers")
        transformers.LlamaTokenizer.from_pretrained(folder).save_pretrained(folder)
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    write_json(folder / "generation_config.json", ends)
    return ends


def llama3(folder):
    """Byte-level pairs with special tokens and two ends."""
    pairs = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=True))
    pairs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=letters, special_tokens=SPECIAL, show_progress=False
    )
    pairs.train_from_iterator(LINES * 20, trainer)
    first = pairs.token_to_id(SPECIAL[0])
    pairs.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], first)]
    )
    pairs.enable_truncation(5)  # for another job
    pairs.enable_padding(length=9)
    pairs.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0]}
    write_json(folder / "tokenizer_config.json", {**about, "eos_token": SPECIAL[1]})
    ends = {"bos_token_id": first, "eos_token_id": [pairs.token_to_id(s) for s in SPECIAL[1:]]}
    write_json(folder / "generation_config.json", ends)
    return ends


KINDS = {
    "llama2_model": functools.partial(llama2, json_too=False),
    "llama2_json": functools.partial(llama2, json_too=True),
    "llama3": llama3,
}


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, tmp_path_factory):
    """Random weights in bfloat16 behind a tokenizer, its table padded, and a run made of it."""
    home = tmp_path_factory.mktemp(request.param)
    folder = home / "theirs"
    folder.mkdir()
    ends = KINDS[request.param](folder)
    name = "tokenizer.model" if request.param == "llama2_model" else "tokenizer.json"
    size = load_tokenizer(str(folder / name)).vocab_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "vocab_size", -(-size // 128) * 128)
        patch.setitem(SIZES, "num_hidden_layers", 1)
        write_random(folder, "untied")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor.astype(jnp.bfloat16) for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {
        **ends,
        "torch_dtype": "bfloat16",
        "pad_token_id": None,
        "max_position_embeddings": 64,
    }
    write_json(folder / "config.json", config)
    settings = tiny_config(home)
    settings.model.attention_window = 48
    settings.model.param_dtype = "bfloat16"
    import_llama(str(folder), str(home / "run"), settings)
    return home


def test_token_ids_and_greedy_text_are_those_of_transformers(checkpoint):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint / "theirs")
    # Float32, as the run: which of two tokens is likelier must not hang on rounding.
    reader = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint / "theirs", dtype=torch.float32
    )
    model, params, tokenizer = load_model(str(checkpoint / "run"))
    assert model.config.vocab_size > tokenizer.vocab_size
    ended = 0
    for prompt in PROMPTS:
        ids = theirs(prompt, truncation=False, padding=False).input_ids
        assert [*tokenizer.before, *tokenizer.encode(prompt)] == ids
        assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        with torch.no_grad():
            made = reader.generate(
                torch.tensor([ids]),
                max_new_tokens=20,
                do_sample=False,
                suppress_tokens=list(range(tokenizer.vocab_size, model.config.vocab_size)),
            )[0].tolist()
        ended += made[-1] in tokenizer.end_ids
        pieces: list[str] = []
        stream_text(
            model,
            params,
            tokenizer,
            *read_prompt(model, params, tokenizer, prompt),
            write=pieces.append,
            num_tokens=20,
            **GREEDY,
        )
        whole = theirs.decode(made, skip_special_tokens=True)
        assert prompt + "".join(pieces) == whole


def test_generation_ends_at_each_end_and_says_nothing_of_it(checkpoint):
    model, params, tokenizer = load_model(str(checkpoint / "run"))
    for end in tokenizer.end_ids:
        # All logits of the last token are the bias of one: that of the end is the largest.
        certain = {**params, "unembedding": params["unembedding"] * 0}
        first = {**certain, "unembedding": certain["unembedding"].at[end].set(1.0)}
        read = read_prompt(model, first, tokenizer, "the cat")
        if float(read[0].logits[0, end]) < 0:
            first = {**certain, "unembedding": certain["unembedding"].at[end].set(-1.0)}
            read = read_prompt(model, first, tokenizer, "the cat")
        pieces: list[str] = []
        stream_text(model, first, tokenizer, *read, write=pieces.append, num_tokens=30, **GREEDY)
        assert "".join(pieces) == ""


def test_what_came_in_goes_out(checkpoint):
    export_llama(str(checkpoint / "run"), str(checkpoint / "back"))
    before, after = (checkpoint / name for name in ("theirs", "back"))
    assert {path.name for path in after.iterdir()} == {path.name for path in before.iterdir()}
    for path in before.iterdir():
        if path.suffix == ".safetensors":
            ours, theirs = load_file(after / path.name), load_file(path)
            assert ours.keys() == theirs.keys()
            for name, tensor in theirs.items():
                np.testing.assert_array_equal(ours[name], tensor, strict=True)
        elif path.suffix == ".json":
            assert json.loads((after / path.name).read_text()) == json.loads(path.read_text())
        else:
            assert (after / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match="--to_llama=.*holds files already"):
        export_llama(str(checkpoint / "run"), str(checkpoint / "back"))


def test_a_run_needs_the_tokenizer_that_belongs_to_it(checkpoint, tmp_path):
    config = json.loads((checkpoint / "theirs" / "config.json").read_text())
    write_json(tmp_path / "config.json", config)
    settings = tiny_config(tmp_path)
    with pytest.raises(ValueError, match=r"neither tokenizer.json nor tokenizer.model; put one"):
        import_llama(str(tmp_path), str(tmp_path / "run"), settings)
    path = next(p for p in (checkpoint / "theirs").iterdir() if p.name.startswith("tokenizer."))
    (tmp_path / path.name).write_bytes(path.read_bytes())
    write_json(tmp_path / "config.json", {**config, "vocab_size": 200})
    with pytest.raises(ValueError, match=r"has \d+ tokens, but model.vocab_size=200"):
        import_llama(str(tmp_path), str(tmp_path / "run"), settings)
    assert not (tmp_path / "run").exists()
