"""The command that lets a reader sleep."""

import json
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hope_jax.commands.first_checkpoint import write_first_checkpoint
from hope_jax.commands.trained_model import load_model
from hope_jax.evaluation.given_answers import mean_log_probability
from hope_jax.exit_codes import DIVERGED, SAVED
from hope_jax.inference.context_file import load_context
from hope_jax.models import LanguageModel, LanguageModelConfig
from hope_jax.runs.checkpoint_writer import CheckpointWriter
from hope_jax.sleep import cycle
from hope_jax.sleep.dreams import Dreams
from hope_jax.sleep.expansion import experts_of, with_experts
from hope_jax.sleep.progress_file import ProgressFile
from hope_jax.sleep.seeding import SeedingStep
from tests.commands.in_process import hope
from tests.training.runs import QUICKSTART, tiny_config

SMALL = ("--config.experts=2", "--config.expert_width=3", "--config.steps=2")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run in which nothing has been trained, and what a reader has read."""
    folder = tmp_path_factory.mktemp("sleep")
    config = tiny_config(folder, **{"model.in_context": {"chunks": (4,), "blocks": 1}})
    config.model.attention_window = 8
    model = LanguageModel(LanguageModelConfig.from_config_dict(config.model))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    write_first_checkpoint(str(folder / "run"), config, nn.unbox(params))
    read = f"--state-out={folder / 'read.msgpack'}"
    assert (
        hope(
            "generate", f"--workdir={folder / 'run'}", "--prompt=ten green", "--num-tokens=0", read
        )
        == 0
    )
    return folder


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """Steps that compile nothing; their loss is that of `losses`."""
    losses = [0.5, 0.25]

    def step(model, params, lesson, seeding, *_):
        loss = jnp.full((1,), losses[int(seeding.step)])
        expert = jax.tree.map(lambda w: w + 0.1, seeding.expert)
        return seeding._replace(expert=expert, step=seeding.step + 1), SeedingStep(loss, loss, loss)

    monkeypatch.setattr(cycle, "seed_step", step)
    monkeypatch.setattr(cycle, "measure", lambda *_, **__: jnp.ones(1))
    return losses


def test_a_state_sleeps_and_is_taken_up_like_any_other(workdir, capsys):
    run, state = f"--workdir={workdir / 'run'}", workdir / "alice.msgpack"
    text = workdir / "text" / "0.txt"
    given = f"--state-in={workdir / 'read.msgpack'}", f"--state-out={state}", f"--text={text}"
    assert hope("sleep", run, *given, *SMALL) == 0
    said = capsys.readouterr().out
    assert "step 2/2  divergence 0.2500  reward 0.250" in said
    assert "| divergence from the teacher, nats per token | 1.0000 | 1.0000 |" in said
    assert "| loss of the held-out text |" in said and "level 0: 1 of 2" in said
    assert (workdir / "alice.png").stat().st_size > 1000
    assert (workdir / "alice.md").read_text() in said
    model, params, _ = load_model(str(workdir / "run"))
    context = load_context(state, model, params)
    np.testing.assert_array_equal(experts_of(context.state).active, [[[[True, False]]]])
    assert context.state.adapting.open_chunk.filled == 1  # a new line
    again = f"--state-in={state}", f"--state-out={state}"
    assert hope("generate", run, *again, "--prompt=bottles", "--num-tokens=1") == 0
    assert hope("sleep", run, *again, *SMALL) == 0
    capsys.readouterr()
    assert hope("sleep", run, *again, *SMALL) == 2
    assert "all 2 experts for what level 0 has learned are in use" in capsys.readouterr().err


def test_a_night_rehearses_parts_of_a_file_as_long_as_its_samples(workdir, monkeypatch, capsys):
    taken, lessons = cycle.seed_step, []

    def step(model, params, lesson, *rest):
        lessons.append(lesson)
        return taken(model, params, lesson, *rest)

    monkeypatch.setattr(cycle, "seed_step", step)
    other = workdir / "other.txt"
    other.write_text("nine hundred and ninety-nine")
    run, out = f"--workdir={workdir / 'run'}", workdir / "rehearsed.msgpack"
    given = f"--state-in={workdir / 'read.msgpack'}", f"--state-out={out}", "--config.tokens=5"
    assert hope("sleep", run, *given, *SMALL, f"--rehearse={other}") == 0
    (_, _, tokenizer) = load_model(str(workdir / "run"))
    ids = np.asarray([*tokenizer.before, *tokenizer.encode(other.read_text())])
    kept = lessons[0].rehearsed.samples.tokens
    assert kept.shape == (1, len(ids) // 6, 6)
    np.testing.assert_array_equal(np.ravel(kept), ids[: kept.size])
    other.write_text("n")
    assert hope("sleep", run, *given, *SMALL, f"--rehearse={other}") == 2
    assert f"--rehearse={other} has fewer than two tokens" in capsys.readouterr().err


def test_a_dropped_night_writes_nothing(workdir, capsys, fake):
    fake[1] = np.nan
    out = workdir / "dropped.msgpack"
    given = f"--state-in={workdir / 'read.msgpack'}", f"--state-out={out}"
    assert hope("sleep", f"--workdir={workdir / 'run'}", *given, *SMALL) == DIVERGED
    said = capsys.readouterr().err
    assert "the loss of step 2 is no finite number, so the night is dropped" in said
    assert not list(workdir.glob("dropped*"))


def killed(workdir, monkeypatch, out, flag):
    """What is left of a night whose second step is never taken."""
    taken = cycle.seed_step

    def dies(model, params, lesson, seeding, *rest):
        if int(seeding.step) == 1:
            raise KeyboardInterrupt
        return taken(model, params, lesson, seeding, *rest)

    given = f"--state-in={workdir / 'read.msgpack'}", f"--{flag}={out}", "--save-every=0"
    with monkeypatch.context() as patch:
        patch.setattr(cycle, "seed_step", dies)
        assert hope("sleep", f"--workdir={workdir / 'run'}", *given, *SMALL) == 130
    return given


def test_a_night_that_was_killed_goes_on_to_the_same_bits(workdir, capsys, monkeypatch, fake):
    run = f"--workdir={workdir / 'run'}"
    whole, out = workdir / "whole.msgpack", workdir / "killed.msgpack"
    given = f"--state-in={workdir / 'read.msgpack'}", f"--state-out={whole}"
    assert hope("sleep", run, *given, *SMALL) == 0
    given = killed(workdir, monkeypatch, out, "state-out")
    progress = out.with_name("killed.msgpack.night")
    assert progress.exists() and not out.exists()
    capsys.readouterr()
    assert hope("sleep", run, *given, *SMALL, "--config.learning_rate=0.5") == 2
    said = capsys.readouterr().err
    assert "learning_rate was 0.01 and is 0.5; give those of before" in said
    fake[0] = np.nan  # the first step is not taken again
    assert hope("sleep", run, *given, *SMALL) == 0
    assert f"going on with {progress}" in capsys.readouterr().out
    assert out.read_bytes() == whole.read_bytes() and not progress.exists()
    assert out.with_suffix(".md").read_text() == whole.with_suffix(".md").read_text()


def test_a_mesh_holds_the_parameters_while_a_reader_sleeps(workdir, monkeypatch, capsys):
    """And it may be another one than before the night was stopped."""
    run, out = f"--workdir={workdir / 'run'}", workdir / "meshed.msgpack"
    given = killed(workdir, monkeypatch, out, "state-out")
    step, seen = cycle.seed_step, []

    def looks(model, params, *rest):
        seen.append((dict(jax.sharding.get_abstract_mesh().shape), params))
        return step(model, params, *rest)

    monkeypatch.setattr(cycle, "seed_step", looks)
    assert hope("sleep", run, *given, *SMALL, "--config.mesh.fsdp=4") == 0
    assert "going on with" in capsys.readouterr().out
    ((mesh, params),) = seen
    assert mesh == {"data": 2, "fsdp": 4, "sequence": 1, "tensor": 1}
    table = params["embedding"]
    assert table.sharding.shard_shape(table.shape) == (table.shape[0], table.shape[1] // 4)


def test_a_night_asked_to_stop_saves(workdir, capsys, monkeypatch):
    out, step = workdir / "stopped.msgpack", cycle.seed_step

    def asked(*given):
        signal.raise_signal(signal.SIGTERM)
        return step(*given)

    given = f"--state-in={workdir / 'read.msgpack'}", f"--state-out={out}"
    with monkeypatch.context() as patch:
        patch.setattr(cycle, "seed_step", asked)
        assert hope("sleep", f"--workdir={workdir / 'run'}", *given, *SMALL) == SAVED
    assert "the same command goes on" in capsys.readouterr().err
    assert hope("sleep", f"--workdir={workdir / 'run'}", *given, *SMALL) == 0
    assert "step 2/2" in capsys.readouterr().out


def test_a_state_in_its_own_place_sleeps_once(workdir, capsys, monkeypatch):
    """Killed between the new state and the end of its progress."""
    run, state = f"--workdir={workdir / 'run'}", workdir / "own.msgpack"
    shutil.copy(workdir / "read.msgpack", state)
    given = f"--state-in={state}", f"--state-out={state}"
    with monkeypatch.context() as patch:
        patch.setattr(ProgressFile, "delete", lambda self: None)
        assert hope("sleep", run, *given, *SMALL) == 0
    woken = state.read_bytes()
    assert hope("sleep", run, *given, *SMALL) == 0
    assert "this night was over" in capsys.readouterr().out
    assert state.read_bytes() == woken
    assert hope("sleep", run, *given, *SMALL) == 0  # another night
    assert state.read_bytes() != woken


def test_a_merge_that_was_killed_goes_on(workdir, monkeypatch, capsys):
    whole, out, run = workdir / "merged2", workdir / "merged3", f"--workdir={workdir / 'run'}"
    given = f"--state-in={workdir / 'read.msgpack'}", f"--merge={whole}"
    assert hope("sleep", run, *given, *SMALL) == 0
    given = killed(workdir, monkeypatch, out, "merge")
    for name, of in (("save", CheckpointWriter), ("delete", ProgressFile)):
        with monkeypatch.context() as patch:
            patch.setattr(of, name, interrupted)
            assert hope("sleep", run, *given, *SMALL) == 130
    assert hope("sleep", run, *given, *SMALL) == 0
    assert "this night was over" in capsys.readouterr().out
    ours, theirs = (load_model(str(folder))[1] for folder in (out, whole))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_openings_may_be_of_any_length(workdir, monkeypatch):
    run, file = f"--workdir={workdir / 'run'}", workdir / "prompts"
    given = f"--state-in={workdir / 'read.msgpack'}", f"--state-out={workdir / 'p.msgpack'}"
    file.write_text("one\n\nthree\n")
    step, openings = cycle.seed_step, []

    def looks(model, params, lesson, *rest):
        openings.append([np.asarray(leaf).tolist() for leaf in lesson.openings])
        return step(model, params, lesson, *rest)

    monkeypatch.setattr(cycle, "seed_step", looks)
    assert hope("sleep", run, *given, f"--prompts={file}", *SMALL) == 0
    assert openings == [[[[*b"one"], [*b"thr"]], [[0, 0], [*b"ee"]], [0, 2]]] * 2


ENDS = "--state_in=read.msgpack", "--state_out=out"
QUESTIONS = [{"prompt": "green", "answer": " bottles"}, {"prompt": "on", "answer": " the wall"}]
DREAMING = ("--config.dreams=3", "--config.best=1", "--config.others=1")


@pytest.fixture
def dreamer(workdir, monkeypatch):
    """Dreams that compile nothing, by what they were called with and what is done after each trial."""
    calls = []

    def dream(model, params, lesson, settings, dreaming, score, *, vocab_size, on_trial):
        calls.append((dreaming, score))
        for tried in (1, 2):
            on_trial(tried)
        experts = experts_of(lesson.student)
        student = with_experts(lesson.student, experts._replace(up=experts.up + 1))
        told = [None, np.zeros((1, 3)), None, None, np.array([[0, 1]]), np.ones((1, 2))]
        return student, Dreams(*told, np.array([-2.5]), np.array([-1.5]))

    monkeypatch.setattr(cycle, "dream", dream)
    (workdir / "questions").write_text("".join(json.dumps(row) + "\n\n" for row in QUESTIONS))
    return calls


def test_dreams_are_tried_by_questions_or_a_function_of_one_s_own(workdir, capsys, dreamer):
    run, out = f"--workdir={workdir / 'run'}", workdir / "dreamt.msgpack"
    given = f"--state-in={workdir / 'read.msgpack'}", f"--state-out={out}", *DREAMING
    assert hope("sleep", run, *given, *SMALL, f"--questions={workdir / 'questions'}") == 0
    said = capsys.readouterr().out
    assert "dreams tried: 2/2" in said
    assert "| score, of the dreams | -2.5000 | -1.5000 |" in said
    assert "| the same, of the dreams | 1.0000 | 1.0000 |" in said
    assert "3 dreams, of which 2 were tried and 1 helped" in said
    model, params, _ = load_model(str(workdir / "run"))
    assert (experts_of(load_context(out, model, params).state).up >= 1).all()
    dreaming, score = dreamer[0]
    assert dreaming.dreams == 3 and score.func is mean_log_probability
    first = score.args[0].tokens[0, 0]
    assert bytes(first[score.args[0].told[0, 0]].astype(np.uint8)) == b" bottles"
    assert bytes(first.astype(np.uint8)).startswith(b"\ngreen bottles")  # a context begins so
    more = "--config.score=tests.commands.test_sleep.of_my_own", "--config.keep_context=True"
    assert hope("sleep", run, *given, *SMALL, *more) == 0
    assert dreamer[1][1] is of_my_own
    more = f"--questions={workdir / 'questions'}", "--config.keep_context=True"
    assert hope("sleep", run, *given, *SMALL, *more) == 0
    assert bytes(dreamer[2][1].args[0].tokens[0, 0].astype(np.uint8)).startswith(b"green")


def of_my_own(model, params, state):
    return 0.0


def test_a_night_that_was_killed_while_dreaming_goes_on_to_the_same_bits(
    workdir, monkeypatch, dreamer, fake
):
    run, whole = f"--workdir={workdir / 'run'}", workdir / "whole_dream.msgpack"
    more = *DREAMING, *SMALL, f"--questions={workdir / 'questions'}", "--save-every=1000"
    read = f"--state-in={workdir / 'read.msgpack'}"
    assert hope("sleep", run, read, f"--state-out={whole}", *more) == 0
    dream = cycle.dream
    for name, code, ends in (("killed", 130, interrupted), ("stopped", SAVED, terminated)):
        out = workdir / f"{name}_dream.msgpack"
        given = run, read, f"--state-out={out}", *more

        def dies(*call, on_trial, ends=ends, **other):
            return dream(*call, on_trial=lambda tried: (ends(), on_trial(tried)), **other)

        with monkeypatch.context() as patch:
            patch.setattr(cycle, "dream", dies)
            assert hope("sleep", *given) == code
        assert out.with_name(out.name + ".night").exists() and not out.exists()
        losses, fake[:] = [*fake], [np.nan] * 2  # no step is taken again
        assert hope("sleep", *given) == 0
        fake[:] = losses
        assert out.read_bytes() == whole.read_bytes()


def terminated():
    signal.raise_signal(signal.SIGTERM)


def test_a_night_becomes_a_run_for_everyone(workdir, capsys):
    run, merged = f"--workdir={workdir / 'run'}", workdir / "merged"
    given = f"--state-in={workdir / 'read.msgpack'}", f"--merge={merged}"
    assert hope("sleep", run, *given, *SMALL) == 0
    model, params, _ = load_model(str(merged))
    assert model.config.in_context["experts"] == 1
    assert params["expert_up"].shape == (1, 1, 1, 3, 16) and params["expert_up"].any()
    assert (merged / "sleep.png").exists() and (merged / "sleep.md").exists()
    before = json.loads((workdir / "run" / "config.json").read_text())
    assert before["model"]["in_context"].get("experts", 0) == 0
    assert hope("sleep", run, *given, *SMALL) == 2
    assert f"--merge={merged} holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, said",
    [
        ([], "give --state-in, and one of --state-out and --merge"),
        (["--state_in=read"], "give --state-in, and one of --state-out and --merge"),
        (["--state_in=nowhere", "--state_out=a"], "--state_in=nowhere is no file"),
        (["--state_in=read.msgpack", "--merge=s3://b/a"], "--merge=s3://b/a lies in a bucket"),
        (["--config.lam=2"], "lam=2 must be a number at least 0 and at most 1"),
        (["--config.gam=0.5"], "gam=0.5 is the share of a judge; give judge, or gam=0"),
        (["--config.step=2"], "step is no setting; nearest: steps"),
        (["--config.optimizer=optax.adamm"], "optimizer='optax.adamm'"),
        (["--config.dreams=3"], "best=4 and others=1 of dreams=3 cannot be tried"),
        ([*ENDS, "--config.dreams=9"], "dreams=9 are tried by one score; give --questions=FILE"),
        ([*ENDS, "--config.mesh.fsdp=3"], "fsdp=3, sequence=1, tensor=1 does not fit 8 devices"),
        ([*ENDS, "--questions=read"], "--questions is what dreams are tried by; give --config.dr"),
        ([*ENDS, "--config.dreams=9", "--questions=bad"], "line 2 must be JSON with two texts"),
        ([*ENDS, "--config.dreams=9", "--questions=empty"], "answer '' has no token"),
    ],
)
def test_bad_input_is_refused_in_one_line(workdir, capsys, monkeypatch, given, said):
    monkeypatch.chdir(workdir)
    Path("bad").write_text(json.dumps(QUESTIONS[0]) + '\n{"prompt": "on"}\n')
    Path("empty").write_text('{"prompt": "on", "answer": ""}\n')
    assert hope("sleep", "--workdir=run", *given) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("flag", ["--text", "--rehearse"])
def test_a_file_that_is_not_there_is_told_before_the_model_is_loaded(
    workdir, capsys, monkeypatch, flag
):
    monkeypatch.setattr("hope_jax.commands.sleep.load_model", None)
    given = f"--state_in={workdir / 'read.msgpack'}", f"--state_out={workdir / 'none.msgpack'}"
    assert hope("sleep", f"--workdir={workdir / 'run'}", *given, f"{flag}=nowhere") == 2
    assert f"{flag}=nowhere is no file" in capsys.readouterr().err


def test_settings_are_told(capsys):
    config = QUICKSTART.parent / "sleep" / "default.py"
    assert hope("sleep", f"--config={config}", "--print_config") == 0
    said = capsys.readouterr().out
    assert "experts = 5 " in said and "learning_rate = 0.01" in said
