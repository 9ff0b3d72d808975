"""A checkpoint made into a run, and what the commands do with it."""

import math
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from hope_jax.commands.convert import import_llama
from hope_jax.commands.main import main
from hope_jax.commands.trained_model import load_model
from hope_jax.data.tokenizers import copy_tokenizer
from hope_jax.inference.level_trace import trace_levels
from hope_jax.inference.sampling import score
from hope_jax.models.llama import read_llama, read_llama_config
from hope_jax.runs.run_config import load_config
from hope_jax.training.loop import train
from tests.commands.in_process import hope
from tests.models.test_llama import SIZES, write_random
from tests.training.runs import QUICKSTART, tiny_config

TEXT = "ten green bottles hanging on the wall, " * 5
LEARNING = {"chunks": (4, 8), "step_size": 0.1, "blocks": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run made of a checkpoint, in which nothing has been trained."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "vocab_size", 256)
        write_random(folder / "llama", "untied")
    copy_tokenizer("bytes", folder / "llama")
    config = tiny_config(folder)
    config.model.in_context = LEARNING
    config.model.attention_window = 8
    import_llama(str(folder / "llama"), str(folder / "run"), config)
    return folder


def process(name: str, *arguments: str) -> str:
    """What a command prints that begins with nothing loaded."""
    done = subprocess.run(
        [sys.executable, "-m", "hope_jax", name, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=QUICKSTART.parents[1],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_imported_checkpoint_is_a_run_that_can_be_trained_and_exported(run, monkeypatch):
    monkeypatch.chdir(run)
    workdir = str(run / "run")
    model, params, tokenizer = load_model(workdir)
    assert model.config.adapting_blocks == 2
    expected = read_llama(run / "llama", model.config)
    np.testing.assert_array_equal(params["embedding"], expected["embedding"])
    losses, _ = score(model, params, np.asarray(tokenizer.encode(TEXT))[None])
    assert np.isfinite(losses).all()

    with pytest.raises(ValueError, match="holds a run already"):
        import_llama(str(run / "llama"), workdir, tiny_config_like(run))
    result = train(load_config(workdir), workdir)
    assert result is not None and math.isfinite(result["validation_loss"])
    _, trained, _ = load_model(workdir)
    assert np.abs(trained["log_step"]).max() > 0
    printed = process("convert", f"--workdir={workdir}", f"--to_llama={run / 'back'}")
    assert str(run / "back") in printed and "from_pretrained" in printed
    config = read_llama_config(run / "back", in_context=LEARNING)
    back = read_llama(run / "back", config)
    np.testing.assert_allclose(back["embedding"], trained["embedding"], rtol=1e-6)
    np.testing.assert_array_equal(
        back["blocks"]["continuum"]["level_0"]["up"]["kernel"],
        trained["blocks"]["continuum"]["level_0"]["up"]["kernel"],
    )


def tiny_config_like(folder):
    config = load_config(str(folder / "run"))
    config.unlock()
    return config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate",), "nothing to continue: give --prompt, or --state_in, or both"),
        (("generate", "--prompt=a", "--state_out={}"), "is a folder; give the path of a file"),
        (("generate", "--prompt=a", "--state_in=missing"), "--state_in=missing is no file"),
        (("generate", "--prompt=a", "--temperature=nan"), "temperature"),
        (("evaluate", "--text={}/a", "--state_out={}"), "is a folder; give the path of a file"),
        (("inspect", "--text={}/a", "--output={}/a"), "cannot be written (Not a directory"),
    ],
    ids=str,
)
def test_what_cannot_end_well_is_not_begun(arguments, message, tmp_path, capsys):
    """Said before the model is loaded: there is none."""
    (tmp_path / "a").write_text("text")
    name, *given = (argument.format(tmp_path) for argument in arguments)
    known = set(flags.FLAGS)
    try:
        with pytest.raises(SystemExit) as ended:
            main([name, f"--workdir={tmp_path / 'nowhere'}", *given])
    finally:
        flags.FLAGS.remove_flag_values(set(flags.FLAGS) - known)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_text_is_measured_in_two_calls_as_in_one(run, capfd):
    whole, first, second = (run / name for name in ("whole.txt", "first.txt", "second.txt"))
    whole.write_text(TEXT)
    first.write_text(TEXT[:70])
    second.write_text(TEXT[70:])
    state, workdir = run / "state", f"--workdir={run / 'run'}"

    def nats(*arguments: str) -> float:
        assert hope("evaluate", workdir, *arguments) == 0
        lines = capfd.readouterr().out.splitlines()
        tokens = int(lines[0].split()[0])
        bits = float(lines[2].split()[0])
        assert bits == pytest.approx(float(lines[1].split()[0]) / math.log(2), abs=1e-3)
        return tokens * float(lines[1].split()[0])

    one = nats(f"--text={whole}")
    two = nats(f"--text={first}", f"--state-out={state}")
    two += nats(f"--text={second}", f"--state_in={state}", "--segment=16")
    assert two == pytest.approx(one, rel=1e-3)

    assert hope("evaluate", workdir, f"--text={whole}", "--every=40") == 0
    tokens, mean, _, *parts = capfd.readouterr().out.splitlines()
    told, means = zip(*(line.split(": ") for line in parts), strict=True)
    count = int(tokens.split()[0])
    assert told[:2] == ("1 to 40", "41 to 80") and told[-1].endswith(f" to {count}")
    sizes = [40] * (count // 40) + [count % 40] * (count % 40 > 0)
    assert np.average([*map(float, means)], weights=sizes) == pytest.approx(
        float(mean.split()[0]), abs=1e-3
    )


def test_what_levels_do_is_drawn_and_tabled(run, capfd):
    text = run / "text.txt"
    text.write_text(TEXT)
    out = run / "seen"
    assert hope("inspect", f"--workdir={run / 'run'}", f"--text={text}", f"--output={out}") == 0
    printed = capfd.readouterr().out
    assert (out / "inspect.png").stat().st_size > 10_000
    assert (out / "inspect.md").read_text() in printed
    model, params, tokenizer = load_model(str(run / "run"))
    tokens = np.asarray(tokenizer.encode(TEXT), np.int32)
    trace = trace_levels(model, params, tokens)
    losses, context = score(model, params, tokens[None])
    np.testing.assert_allclose(trace.losses, losses[0], rtol=1e-3, atol=1e-4)
    # The first chunk is learnt from when the second comes; the slow level changes half as often.
    np.testing.assert_allclose(trace.plain_losses[:4], trace.losses[:4], rtol=1e-5)
    assert (trace.distance[0] == 0).all()
    changes = (trace.change > 0).sum(0)
    assert changes[0] == len(trace.change) - 1
    assert changes[1] == changes[0] // 2
    # By hand, of the block that changes every 4 tokens.
    weights = context.state.adapting.blocks.continuum.levels[0].weights
    slow = params["blocks"]["continuum"]["level_0"]
    pairs = [(getattr(weights, n)[0, 0], slow[n]["kernel"][1]) for n in ("gate", "up", "down")]
    apart = sum(float(((fast - w) ** 2).sum()) for fast, w in pairs)
    norm = sum(float((w**2).sum()) for _, w in pairs)
    assert trace.distance[-1, 0] == pytest.approx((apart / norm) ** 0.5, rel=1e-2)
