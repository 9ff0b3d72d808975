"""The lm-evaluation-harness: answers are those of its own Transformers, on a tiny checkpoint."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hope_jax.commands.convert import import_llama
from hope_jax.commands.trained_model import load_model
from hope_jax.data.tokenizers import ByteTokenizer, load_tokenizer
from hope_jax.inference.sampling import generate, read
from tests.commands.in_process import hope
from tests.models.test_llama import SIZES, write_random
from tests.models.test_llama_text import llama3, write_json
from tests.training.runs import tiny_config

lm_eval = pytest.importorskip("lm_eval")
harness = pytest.importorskip("hope_jax.evaluation.harness")

PAIRS = [
    ("the cat", " sat on the mat."),
    ("the cat sat ", "on"),  # white space at the seam
    ("a dog and", " a cat sat in a naïve café"),
    ("Hello", ""),
    ("", "Hello world"),
    ("Hello world, this is text and", " more"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights behind a tokenizer with a first token, and a run made of it."""
    home = tmp_path_factory.mktemp("harness")
    folder = home / "theirs"
    folder.mkdir()
    ends = llama3(folder)
    size = load_tokenizer(str(folder / "tokenizer.json")).vocab_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "vocab_size", size)
        patch.setitem(SIZES, "num_hidden_layers", 1)
        write_random(folder, "untied")
    tensors = load_file(folder / "model.safetensors")
    for end in ends[
        "eos_token_id"
    ]:  # which Transformers and this package cut alike, but not the harness
        tensors["lm_head.weight"][end] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | ends | {"max_position_embeddings": 64})
    settings = tiny_config(home)
    settings.model.attention_window = 64
    import_llama(str(folder), str(home / "run"), settings)
    return home


def requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, place) for place, given in enumerate(arguments)]


def test_likelihoods_and_text_are_those_of_the_harness_s_own_model(checkpoint):
    pytest.importorskip("accelerate")
    from lm_eval.models.huggingface import HFLM

    make = lambda first: HFLM(
        str(checkpoint / "theirs"),
        device="cpu",
        dtype="float32",
        batch_size=2,
        add_bos_token=first,
        max_length=64,
    )
    theirs = make(True)
    ours = harness.HarnessModel(*load_model(str(checkpoint / "run")), texts_at_once=4, segment=8)
    asked = requests("loglikelihood", [pair for pair in PAIRS if pair[1]])
    wanted = theirs.loglikelihood(asked, disable_tqdm=True)
    given = ours.loglikelihood(asked)
    np.testing.assert_allclose(
        [told for told, _ in given], [told for told, _ in wanted], rtol=1e-4, atol=1e-4
    )
    assert [first for _, first in given] == [first for _, first in wanted]
    # A continuation that greedy decoding would say, and one that differs at its end.
    context, _ = ours.encode_pair("the cat", "")
    made, _ = generate(
        ours.model,
        ours.params,
        read(ours.model, ours.params, np.array([context])),
        jax.random.key(0),
        num_tokens=10,
        temperature=0,
    )
    best = made[0].tolist()
    told = list(ours._log_likelihoods([(context, best), (context, [*best[:-1], best[-1] + 1])]))
    assert [first for _, first in told] == [True, False]

    whole = requests("loglikelihood_rolling", [("".join(pair),) for pair in PAIRS])
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(whole),
        # With its first token in the text it would count that one, too.
        make(False).loglikelihood_rolling(whole, disable_tqdm=True),
        rtol=1e-4,
    )

    said = theirs.generate_until(
        requests("generate_until", [("the cat", {"until": [], "max_gen_toks": 12})]),
        disable_tqdm=True,
    )[0]
    stop = said[5:7]
    settings = [
        {"until": [], "max_gen_toks": 12},
        {"until": ["never said", stop], "max_gen_toks": 12},
    ]
    asked = requests("generate_until", [("the cat", one) for one in settings])
    assert ours.generate_until(asked) == [said, said.split(stop)[0]]
    assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)


def test_a_text_that_nothing_can_stand_before_loses_its_first_token(checkpoint):
    model, params, _ = load_model(str(checkpoint / "run"))
    asked = harness.HarnessModel(model, params, ByteTokenizer())
    assert asked.encode_pair("", "ab") == ([], [97, 98])
    (told,) = asked.loglikelihood_rolling(requests("loglikelihood_rolling", [("ab",)]))
    losses = model.apply(
        {"params": params}, jnp.array([[97]]), jnp.array([[98]]), method="token_losses"
    )
    assert told == pytest.approx(-float(losses[0, 0]), rel=1e-4)

    class Ending(ByteTokenizer):
        end_ids = (3, 4)

    assert harness.HarnessModel(model, params, Ending()).encode_pair("", "ab") == ([3], [97, 98])


def test_a_task_of_one_s_own_is_asked_by_the_command(checkpoint, tmp_path, capsys):
    lines = [{"q": "the cat", "a": [" sat", " dog", " €"], "right": i % 3} for i in range(6)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "own.yaml").write_text(
        f"""
task: own_cats
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "data.jsonl"}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{a}}}}"
doc_to_target: right
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    given = [f"--workdir={checkpoint / 'run'}", "--harness=own_cats", f"--output={tmp_path}"]
    given += [f"--harness_folder={tmp_path}", "--limit=5"]
    assert hope("evaluate", *given) == 0
    assert "|own_cats|" in capsys.readouterr().out
    model = harness.HarnessModel(*load_model(str(checkpoint / "run")))
    told = model.loglikelihood(
        requests("loglikelihood", [("the cat", choice) for choice in lines[0]["a"]])
    )
    best = int(np.argmax([value for value, _ in told]))
    kept = json.loads((tmp_path / "harness.json").read_text())
    assert kept["results"]["own_cats"]["acc,none"] == np.mean([i % 3 == best for i in range(5)])
