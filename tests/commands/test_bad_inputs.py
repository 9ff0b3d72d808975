"""Input that cannot be used: one line that says why, exit code 2, and nothing written."""

import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from hope_jax.commands import train as train_command
from hope_jax.commands.compare import read_rows
from hope_jax.comparison.plan import Plan, check_plan
from hope_jax.runs.run_config import keep_config
from hope_jax.training import loop
from tests.commands.in_process import hope
from tests.training.runs import QUICKSTART, load_config

ROOT = QUICKSTART.parents[1]
# Settings of `hope train --config=experiments/quickstart.py`, and what is said of them.
SETTINGS = {
    "steps=0": "steps=0 must be a whole number at least 1",
    "steps=-5": "steps=-5 must be a whole number",
    "steps=2.5": "steps=2.5 must be a whole number",
    "steps=many": "steps='many' must be a whole number",
    "steps=": "steps='' must be a whole number",
    "steps=none": "steps=None must be a whole number",
    "steps=true": "steps=True must be a whole number",
    "steps=3000000000": "at most 2,147,483,647; the default is 700",
    "seed=-1": "seed=-1 must be a whole number at least 0",
    "seed=4294967296": "seed=4294967296 must be",
    "accumulate=0": "accumulate=0 must be a whole number at least 1",
    "accumulate=3": "data.batch_size=8 does not divide into accumulate=3 micro-batches",
    "step=3": "step is no setting; nearest: model.titans.step, steps",
    "learning_rate=0.1": "learning_rate is no setting; nearest: optimizer.learning_rate",
    "optimizer.learning_rat=0.1": "nearest: optimizer.learning_rate",
    "optimizers.learning_rate=0.1": "nearest: optimizer.learning_rate",
    "steps.more=1": "steps.more is no setting",
    "data=3": "data=3 must be a section",
    "data.sequence_length=0": "data.sequence_length=0 must be a whole number at least 1",
    "data.sequence_length=-3": "data.sequence_length=-3 must be",
    "data.sequence_length=1e3": "data.sequence_length=1000.0 must be a whole number",
    "data.batch_size=-2": "data.batch_size=-2 must be a whole number at least 1",
    "data.batch_size=0": "data.batch_size=0 must be",
    "data.batch_size='8'": "data.batch_size='8' must be",
    "data.validation_fraction=0": "data.validation_fraction=0 must be a number above 0 and below 1",
    "data.validation_fraction=1": "data.validation_fraction=1 must be",
    "data.validation_fraction=nan": "data.validation_fraction=nan must be",
    "data.reset_documents=maybe": "data.reset_documents='maybe' must be True or False",
    "data.reset_documents=1": "data.reset_documents=1 must be True or False",
    "data.files=nowhere/*.txt": "data.files='nowhere/*.txt' matches no file",
    "data.tokens=nowhere": "nowhere",
    "data.tokenizer=nowhere.model": "nowhere.model",
    "optimizer.name=adamv": "optimizer.name='adamv' is not known; nearest: adam",
    "optimizer.learning_rate=0": "optimizer.learning_rate=0 must be a finite number above 0",
    "optimizer.learning_rate=-0.1": "optimizer.learning_rate=-0.1 must be a finite number above 0",
    "optimizer.learning_rate=nan": "optimizer.learning_rate=nan must be a finite number",
    "optimizer.learning_rate=inf": "optimizer.learning_rate=inf must be a finite number",
    "optimizer.learning_rate=1e999": "optimizer.learning_rate=inf must be a finite number",
    "optimizer.learning_rate=fast": "optimizer.learning_rate='fast' must be a finite number",
    "optimizer.warmup_steps=-3": "optimizer.warmup_steps=-3 must be a whole number at least 0",
    "optimizer.final_fraction=5": "optimizer.final_fraction=5 must be a number at least 0 and at most",
    "optimizer.clip_norm=-1": "optimizer.clip_norm=-1 must be a finite number at least 0",
    "optimizer.weight_decay=-0.1": "optimizer.weight_decay=-0.1 must be a finite number at least 0",
    "optimizer.arguments=3": "optimizer.arguments=3 must be a mapping",
    "optimizer.arguments.b1=-1": "optimizer.arguments.b1=-1 must be a number at least 0 and below 1",
    "optimizer.arguments.b2=1": "optimizer.arguments.b2=1 must be a number at least 0 and below 1",
    "optimizer.arguments.b3=high": "optimizer.arguments.b3='high' must be a number",
    "optimizer.arguments.slow_every=2.5": "arguments.slow_every=2.5 must be a whole number at least 1",
    "optimizer.arguments.ns_steps=0": "arguments.ns_steps=0 must be a whole number at least 1",
    "optimizer.arguments.eps=-1": "optimizer.arguments.eps=-1 must be a finite number at least 0",
    "optimizer.arguments.alpha=nan": "optimizer.arguments.alpha=nan must be a finite number",
    "optimizer.arguments.alpha=half": "optimizer.arguments.alpha='half' must be a finite number",
    "optimizer.arguments.speed=1": "optimizer.arguments.speed is no argument of 'm3'",
    "optimizer.periods={'level_1':0}": "optimizer.periods.level_1=0 must be a whole number of steps",
    "optimizer.periods.level_1=half": "optimizer.periods.level_1='half' must be",
    "mesh.data=0": "mesh.data=0 must be a whole number at least 1, or -1",
    "mesh.fsdp=-2": "mesh.fsdp=-2 must be",
    "mesh.data=3": "mesh data=3, fsdp=1, sequence=1, tensor=1 does not fit",
    "mesh.fsdp=-1": "each must be positive, one may be -1",
    "mesh.processes=0": "mesh.processes=0 must be a whole number at least 1",
    "mesh.expect_devices=99": "mesh.expect_devices=99, but",
    "checkpoint.every=0": "checkpoint.every=0 must be a whole number at least 1",
    "checkpoint.keep=0": "checkpoint.keep=0 must be a whole number at least 1",
    "data.mixture=('a=1', 'a=2')": "data.mixture=('a=1', 'a=2') must be FOLDER=WEIGHT for each folder",
    "data.packing=first_fit": "data.packing='first_fit' puts documents into one sequence",
    "checkpoint.keep_every=7": "checkpoint.keep_every=7 is no multiple of every=",
    "evaluate.every=0": "evaluate.every=0 must be a whole number at least 1",
    "evaluate.batches=-1": "evaluate.batches=-1 must be a whole number at least 0",
    "evaluate.final_batches=-1": "evaluate.final_batches=-1 must be a whole number at least 0",
    "evaluate.ngram_orders=0": "evaluate.ngram_orders=(0,) must be a tuple, each a whole number at",
    "evaluate.ngram_orders=3,x": "evaluate.ngram_orders=('3', 'x') must be a tuple",
    "evaluate.sample_tokens=-1": "evaluate.sample_tokens=-1 must be a whole number at least 0",
    "evaluate.prompt=": "evaluate.prompt='' has nothing to continue",
    "log.every=0": "log.every=0 must be a whole number at least 1",
    "model.width=0": "model.width=0 must be a whole number at least 1",
    "model.width=100.0": "model.width=100.0 must be a whole number",
    "model.width=130": "model: width 130 does not split into 4 heads",
    "model.dtype=float16": "model.dtype='float16' must be one of float32, bfloat16, float64",
    "model.vocab_size=100": "data.tokenizer='bytes' has 256 tokens, but model.vocab_size=100",
    "model.pattern=titans,mamba": "model.pattern=('titans', 'mamba') must be a tuple, each one of",
    "model.sequence_layer=lstm": "model.sequence_layer='lstm' must be one of titans, attention",
    "model.norm_epsilon=0": "model.norm_epsilon=0 must be a finite number above 0",
    "model.rope_base=inf": "model.rope_base=inf must be a finite number above 1",
    "model.num_kv_heads=3": "model: num_kv_heads must be None or divide num_heads",
    "model.titans=none": "model.titans=None must be a section",
    "model.titans.projector=non": "model.titans.projector='non' must be one of per_map",
    "model.titans.eta_max=3": "model.titans.eta_max=3 must be a number above 0 and at most 2 or None",
    "model.titans.memory_chunk=48": "model.titans: memory_chunk 48 and generator_chunk 64",
    "model.titans.width=8": "model.titans.width is no setting; nearest: model.width",
    "model.in_context.chunks=0": "model.in_context.chunks=(0,) must be",
    "model.in_context.chunks=(4,6)": "model.in_context: each of chunks must divide the next",
    "model.in_context.chunk=4": "nearest: model.in_context.chunks",
    "model.in_context.blocks=9": "model: in_context.blocks=9, but the model has 2 blocks",
    "model.rope_scaling.factor=2": "model.rope_scaling.kind must be given",
    "model.rope_scaling=2": "model.rope_scaling=2 must be a section or None",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files that are not what they are given for."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.txt").write_text("")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "good.txt").write_text("text")
    (folder / "sub").mkdir()
    (folder / "cut.jsonl").write_text('{"text": "a"}\n{"text": "b')
    (folder / "list.jsonl").write_text("[1]\n")
    (folder / "half.jsonl").write_text('{"text": "\\ud800"}\n')
    (folder / "fake.gz").write_text("text")
    (folder / "fake.zst").write_text("text")
    (folder / "fake.parquet").write_text("text")
    (folder / "cut.gz").write_bytes(gzip.compress(b"text " * 1000)[:-20])
    (folder / "fake.model").write_text("text")
    (folder / "fake.json").write_text("{}")
    (folder / "tokens").mkdir()
    (folder / "tokens" / "tokens.json").write_text("{")
    configs = {
        "nothing": "",
        "no_return": "def get_config():\n    pass\n",
        "syntax": "def get_config(:\n",
        "raises": "def get_config():\n    return 1 / 0\n",
        "imports": "import nothing_of_this_name\n",
        "reads": "def get_config():\n    return open('/nothing/there')\n",
        "needs": "def get_config(variant):\n    return {}\n",
        "partial": "def get_config():\n    return {'steps': 3}\n",
    }
    for name, text in configs.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "nul.py").write_bytes(b"\0")
    whole = load_config("transformer")
    runs = {
        "run": lambda values: values,
        "no_section": lambda values: {k: v for k, v in values.items() if k != "optimizer"},
        "unknown": lambda values: {**values, "stepz": 3},
        "wrong": lambda values: {**values, "steps": "3"},
    }
    for name, change in runs.items():
        (folder / name).mkdir()
        keep_config(folder / name, whole)
        path = folder / name / "config.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    (folder / "cut").mkdir()
    (folder / "cut" / "config.json").write_text((folder / "run" / "config.json").read_text()[:200])
    (folder / "list").mkdir()
    (folder / "list" / "config.json").write_text("[1]")
    return folder


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def begun(*_):
    """In the place of a run's first weights: an input that is taken after all starts no run."""
    raise AssertionError("a run has begun")


def refused(capfd, folder, *arguments: str) -> str:
    """What is said of an input that is refused."""
    before = tree(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "init_state", begun)
        assert hope(*arguments) == 2
    err = capfd.readouterr().err
    assert tree(folder) == before
    assert err.count("\n") == 1 and err.startswith("hope"), err
    return err


@pytest.mark.parametrize("change", SETTINGS)
def test_settings(change, folder, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    said = refused(
        capfd,
        folder,
        "train",
        f"--config={QUICKSTART}",
        f"--workdir={folder / 'new'}",
        f"--config.{change}",
    )
    assert SETTINGS[change] in said


CONFIG = f"--config={QUICKSTART}"
# Arguments, with {} for the folder above, and what is said of them.
ARGUMENTS = {
    "trane": "no command 'trane'; nearest: train",
    "frobnicate": "there are train, generate",
    "train": "--workdir=FOLDER is missing",
    f"train {CONFIG}": "--workdir=FOLDER is missing",
    "train --print_config": "--workdir=FOLDER is missing",
    f"train {CONFIG} --workdir={{}}/new --config.steps": "steps=True must be a whole number",
    f"train {CONFIG} --workdir={{}}/new --noconfig.steps": "steps=False must be a whole number",
    f"train {CONFIG} --workdir={{}}/new --set=steps": "steps has no value; write steps=VALUE",
    f"train {CONFIG} --workdir={{}}/new --step=3": "Unknown command line flag 'step'",
    f"train {CONFIG} --workdir={{}}/new steps=3": "unexpected 'steps=3'; settings look like --config.",
    f"train {CONFIG} --workdir={{}}/good.txt": "Not a directory",
    f"train {CONFIG} --workdir={{}}/good.txt/run": "Not a directory",
    "train --workdir={}/nowhere": "nowhere holds no run",
    "train --workdir={}/good.txt": "holds no run",
    "train --workdir={}/cut": "cut/config.json: it is damaged",
    "train --workdir={}/list": "list/config.json: it is damaged",
    "train --workdir={}/no_section": "no_section/config.json: optimizer must be given",
    "train --workdir={}/unknown": "unknown/config.json: stepz is no setting; nearest: steps",
    "train --workdir={}/wrong": "wrong/config.json: steps='3' must be a whole number",
    "generate --workdir={}/no_section --prompt=a": "no_section/config.json: optimizer must be given",
    "evaluate --workdir={}/cut --text={}/good.txt": "cut/config.json: it is damaged",
    "train --config={}/nowhere.py --workdir={}/new": "nowhere.py is no file",
    "train --config={}/sub --workdir={}/new": "sub is no file",
    "train --config={}/nothing.py --workdir={}/new": "there is no function get_config in it",
    "train --config={}/good.txt --workdir={}/new": "the file fails with NameError in line 1",
    "train --config={}/nul.py --workdir={}/new": "null bytes",
    "train --config={}/no_return.py --workdir={}/new": "get_config gives NoneType, not",
    "train --config={}/syntax.py --workdir={}/new": "the file fails with SyntaxError in line 1",
    "train --config={}/raises.py --workdir={}/new": "the file fails with ZeroDivisionError in line 2",
    "train --config={}/imports.py --workdir={}/new": "the file fails with ModuleNotFoundError in line 1",
    "train --config={}/reads.py --workdir={}/new": "the file fails with FileNotFoundError in line 2",
    "train --config={}/needs.py --workdir={}/new": "its get_config needs a variant",
    "train --config={}/no_return.py:a --workdir={}/new": "its get_config takes no variant",
    "train --config={}/partial.py --workdir={}/new": "model must be given: the language model",
    f"train {CONFIG}:mamba --workdir={{}}/new": "unknown variant 'mamba'; known are hope",
    f"train {CONFIG}: --workdir={{}}/new": "unknown variant ''",
    "generate --prompt=a": "--workdir must have a value",
    "generate --workdir={}/run": "nothing to continue: give --prompt, or --state_in",
    "generate --workdir={}/run --prompt=a": "run",
    "generate --workdir={}/nowhere --prompt=a": "nowhere holds no run",
    "generate --workdir={}/run --prompt=a --temperature=nan": "must be at least 0 (0 is greedy), got nan",
    "generate --workdir={}/run --prompt=a --temperature=-1": "temperature=-1: -1.0 is not",
    "generate --workdir={}/run --prompt=a --temperature=inf": "must be at least 0 (0 is greedy), got inf",
    "generate --workdir={}/run --prompt=a --temperature=hot": "hot",
    "generate --workdir={}/run --prompt=a --top_p=0": "top_p must lie in (0, 1]",
    "generate --workdir={}/run --prompt=a --top-p=-0.5": "(1 keeps every token), got -0.5",
    "generate --workdir={}/run --prompt=a --top_p=1.5": "top_p=1.5",
    "generate --workdir={}/run --prompt=a --top_p=nan": "top_p must lie in (0, 1]",
    "generate --workdir={}/run --prompt=a --seed=-1": "seed=-1",
    "generate --workdir={}/run --prompt=a --seed=99999999999": "seed=99999999999",
    "generate --workdir={}/run --prompt=a --num_tokens=-1": "num_tokens=-1",
    "generate --workdir={}/run --prompt=a --num_tokens=2.5": "num_tokens=2.5",
    "generate --workdir={}/run --prompt=a --state_in={}/nowhere": "--state_in={}/nowhere is no file",
    "generate --workdir={}/run --prompt=a --state_in={}/sub": "--state_in={}/sub is no file",
    "generate --workdir={}/run --prompt=a --state_out={}/sub": "--state_out={}/sub is a folder",
    "generate --workdir={}/run --prompt def f": "unexpected 'f'; put a prompt of several words in quotes",
    "evaluate --workdir={}/run": "give what to read as --text=FILE, or --suite=NAME, or --harness=TASK",
    "evaluate --workdir={}/run --text={}/nowhere": "--text={}/nowhere is no file",
    "evaluate --workdir={}/run --text={}/sub": "--text={}/sub is no file",
    "evaluate --workdir={}/run --text={}/empty.txt": "empty.txt is empty",
    "evaluate --workdir={}/run --text={}/binary.txt": "binary.txt is not UTF-8 text",
    "evaluate --workdir={}/run --text={}/good.txt --segment=0": "segment=0",
    "evaluate --workdir={}/run --text={}/good.txt --state_out={}/sub": "--state_out={}/sub is a folder",
    "generate --workdir={}/run --prompt=a --state-out={}/good.txt/y": "Not a directory",
    "evaluate --workdir={}/run {}/good.txt": "give the file as --text=FILE",
    "evaluate --workdir={}/run --text={}/good.txt --output={}": "--output is of a suite",
    "evaluate --workdir={}/run --harness=no_such_task": "--harness has 'no_such_task', which is no task",
    "evaluate --workdir={}/run --harness=a --limit=0": "limit=0",
    "evaluate --workdir={}/run --suite=needle": "--suite=needle is none; there are needles, facts",
    "evaluate --workdir={}/run --suite=needles --set=kinds=S-9": "kinds has 'S-9'; there are S-1, S-2",
    "evaluate --workdir={}/run --suite=needles --set=length=9": "length is no setting; nearest: lengths",
    "evaluate --workdir={}/run --suite=needles --output={}/good.txt": "Not a directory",
    "inspect --workdir={}/run --text={}/nowhere": "--text={}/nowhere is no file",
    "inspect --workdir={}/run --text={}/good.txt --output={}/empty.txt": "Not a directory",
    "convert --workdir={}/new": "give one of --from_llama, --to_llama",
    "convert --workdir={}/new --from_llama={}/sub --to_llama={}/sub": "give one of",
    "convert --workdir={}/new --from_llama={}/sub": "--from_llama needs --config",
    f"convert --workdir={{}}/new --from_llama={{}}/sub {CONFIG}": "holds no checkpoint in Hugging Face's",
    f"convert --workdir={{}}/new --from_llama={{}}/sub {CONFIG} --config.steps=0": "steps=0 must be",
    "convert --workdir={}/run --to_llama={}/good.txt": "cannot be written (File exists)",
    "tokenize --files={}/*.md --output={}/new": "matches no file",
    "tokenize --files={}/cut.jsonl --output={}/new": "cut.jsonl, line 2: this is no JSON, or cut off",
    "tokenize --files={}/list.jsonl --output={}/new": "list.jsonl, line 1: there is no object",
    "tokenize --files={}/half.jsonl --output={}/new": "half.jsonl, line 1: character 0 is half",
    "tokenize --files={}/fake.gz --output={}/new": "fake.gz is not compressed with gzip",
    "tokenize --files={}/fake.zst --output={}/new": "fake.zst is not compressed with zstd",
    "tokenize --files={}/fake.parquet --output={}/new": "fake.parquet",
    "tokenize --files={}/cut.gz --output={}/new": "cut.gz cannot be read",
    "tokenize --files={}/binary.txt --output={}/new": "binary.txt",
    "tokenize --files={}/good.txt --output={}/new --tokenizer={}/fake.model": "no SentencePiece model",
    "tokenize --files={}/good.txt --output={}/new --tokenizer={}/fake.json": "fake.json is no file of",
    "tokenize --files={}/good.txt --output={}/new --tokenizer={}/good.txt": "good.txt' is not known",
    f"train {CONFIG} --workdir={{}}/new --set=data.tokenizer={{}}/fake.model": "no SentencePiece model",
    f"train {CONFIG} --workdir={{}}/new --set=data.tokens={{}}/tokens": "tokens.json is damaged",
    f"train {CONFIG} --workdir={{}}/new --set=data.files={{}}/cut.jsonl": "cut.jsonl, line 2: this is no",
    f"train {CONFIG} --workdir={{}}/new --set=data.files=a --set=data.tfds=b": "are given together; keep",
    "tokenize --output={}/new": "give --files=PATTERN or --source=FILE.FUNCTION",
    "tokenize --files={}/good.txt --output={}/good.txt": "cannot be written (File exists)",
    "tokenize --files={}/good.txt --output={}/new --processes=0": "processes=0",
    "tokenize --files={}/good.txt --output={}/new --validation_fraction=1": "between 0 and 1",
    "tokenize --files={}/good.txt --output={}/new --validation_fraction=nan": "between 0 and 1",
    "compare --workdir={}/new": "--config must have a value",
    f"compare {CONFIG}:hope,mamba --workdir={{}}/new": "unknown variant 'mamba'",
    f"compare {CONFIG}:hope,hope --workdir={{}}/new": "has 'hope' twice; leave one out",
    f"compare {CONFIG}:hope --workdir={{}}/good.txt": "Not a directory",
    f"compare {CONFIG}:hope --workdir={{}}/new --seeds=0": "seeds=0",
    f"compare {CONFIG}:hope --workdir={{}}/new --tune=optimizer.learning_rate=nan": "rate=nan must be",
    f"compare {CONFIG}:hope --workdir={{}}/new --tune=optimizer.learning_rate=1e-3,0": "rate=0 must be",
    f"compare {CONFIG}:hope --workdir={{}}/new --tune=optimizer.learning_rate=.1,.1": "has 0.1 twice",
    f"compare {CONFIG}:hope --workdir={{}}/new --tune=seed=1 --tune=seed=2": "--tune=seed is given twice",
    f"compare {CONFIG}:hope --workdir={{}}/new --tune=seed": "--tune=seed must be KEY=VALUE,VALUE",
    f"compare {CONFIG}:hope --workdir={{}}/new --vary=seed=1,": "--vary=seed=1, must be KEY=VALUE,VALUE",
    f"compare {CONFIG}:hope --workdir={{}}/new --vary=sed=1,2": "sed is no setting; nearest: seed",
    f"compare {CONFIG}:hope --workdir={{}}/new --vary=seed=1,1.": "seed=1.0 must be a whole number",
    f"compare {CONFIG}:hope --workdir={{}}/new --baseline=no": "--baseline=no is no row",
    f"compare {CONFIG}:hope --workdir={{}}/new --jobs=0": "jobs=0",
    f"compare {CONFIG}:hope --workdir={{}}/new --set=steps": "steps has no value",
    f"compare {CONFIG}:hope --workdir={{}}/new --set=step=3": "step is no setting; nearest: model",
    f"compare {CONFIG}:hope --workdir={{}}/new --config.steps=0": "steps=0 must be a whole number",
}


@pytest.mark.parametrize("line", ARGUMENTS, ids=lambda line: line.replace(str(QUICKSTART), "X.py"))
def test_arguments(line, folder, capfd):
    arguments = line.replace("{}", str(folder)).split(" ")
    assert ARGUMENTS[line].replace("{}", str(folder)) in refused(capfd, folder, *arguments)


def test_variants_that_come_out_equal_are_refused(tmp_path):
    lines = QUICKSTART.read_text().replace('VARIANTS = ("hope"', 'VARIANTS = ("plain", "hope"')
    (tmp_path / "x.py").write_text(lines.replace('== "hope":', 'in ("hope", "plain"):'))
    rows = read_rows(f"{tmp_path}/x.py:hope,plain")
    with pytest.raises(ValueError, match="'hope' and 'plain' are the same; leave one out"):
        check_plan(Plan(rows, {}, 1, 1, "hope", tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_folders_that_cannot_be_written(folder, capfd, tmp_path):
    tmp_path.chmod(0o500)
    said = refused(capfd, folder, "train", CONFIG, f"--workdir={tmp_path / 'new'}")
    assert "cannot be written (Permission denied" in said


def raising(monkeypatch, error):
    def run():
        raise error

    monkeypatch.setattr(train_command, "run", run)


def test_what_the_system_refuses_is_one_line_and_our_faults_are_shown(monkeypatch, capfd):
    monkeypatch.setattr(train_command, "run", pathlib.Path("/nowhere/at/all").read_text)
    assert hope("train") == 2
    assert capfd.readouterr().err == (
        "hope train: /nowhere/at/all: No such file or directory; give another path\n"
    )
    monkeypatch.setattr(train_command, "run", pathlib.Path(json.__file__ + ".no").read_text)
    with pytest.raises(FileNotFoundError):  # a library's own file
        hope("train")
    monkeypatch.setattr(train_command, "run", lambda: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        hope("train")
    raising(monkeypatch, BrokenPipeError("of a worker"))
    with pytest.raises(BrokenPipeError):
        hope("train")


def process(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "hope_jax", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        cwd=ROOT,
        **options,
    )


def test_ctrl_c_at_the_start_is_one_line(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        # Whoever runs the tests in the background may have them ignore the signal.
        "import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"os.kill(os.getpid(), {int(signal.SIGINT)})\nwhile 1: pass"
    )
    done = process("train", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert (done.returncode, done.stderr) == (130, "hope: interrupted\n")


def test_a_reader_that_has_enough_ends_the_command_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = process("train", CONFIG, "--print_config", stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_processes_that_nobody_told_of_each_other_are_refused(tmp_path):
    hidden = {"JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID", "SLURM_JOB_ID"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = process(
        "train", CONFIG, f"--workdir={tmp_path / 'a'}", "--config.mesh.processes=2", env=environment
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert (
        "set JAX_COORDINATOR_ADDRESS=HOST:PORT, of the first, and JAX_PROCESS_ID=0 to 1"
        in done.stderr
    )
    assert not list(tmp_path.iterdir())
