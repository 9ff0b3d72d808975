# ruff: noqa: F811 (fixtures of another file)
"""The command in which a reader wakes and sleeps in turn."""

import json

import pytest

from hope_jax.exit_codes import INTERRUPTED
from hope_jax.sleep import cycle, life
from hope_jax.sleep.progress_file import ProgressFile
from tests.commands.in_process import hope
from tests.commands.test_sleep import SMALL, fake, workdir  # noqa: F401

FILES = {"a": "ten green bottles", "b": "hang on the wall"}


@pytest.fixture
def day(workdir, monkeypatch):
    """What a life is called with, in steps that differ and compile nothing."""
    folder = workdir / "stream"
    folder.mkdir(exist_ok=True)
    for name, text in FILES.items():
        (folder / f"{name}.txt").write_text(text)

    def lived(state, *more):
        run, files = f"--workdir={workdir / 'run'}", f"--files={folder}/*.txt"
        given = f"--state={workdir / state}", "--save-every=0", "--config.nights=16"
        return hope("live", run, files, *given, *SMALL, *more)

    return lived


def interrupt(monkeypatch, at, module, name):
    """Lets a function be called so often, and no more."""
    real, calls = getattr(module, name), []

    def counted(*given, **more):
        calls.append(None)
        if len(calls) > at:
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(module, name, counted)


def test_interrupted_while_reading_and_in_a_night_it_ends_in_the_same_bits(
    workdir,
    day,
    monkeypatch,
    capsys,
):
    assert day("whole.msgpack") == 0
    said = capsys.readouterr().out
    assert "night of level 0 at token 32: divergence 1.0000 before, 1.0000 after" in said
    assert "33 tokens read at " in said and "bits per byte, 2 nights" in said
    whole = workdir / "whole.msgpack"
    report = json.loads(whole.with_suffix(".live.json").read_text())
    assert [row["tokens"] for row in report["reading"]] == [16, 16, 1]
    assert sum(row["bytes"] for row in report["reading"]) == pytest.approx(33)
    assert [night["position"] for night in report["nights"]] == [16, 32]
    assert whole.with_suffix(".live.png").stat().st_size > 1000
    for name, at, module, function in (
        ("reading", 1, life, "score"),
        ("night", 1, cycle, "seed_step"),
        ("second", 3, cycle, "seed_step"),
        ("end", 0, ProgressFile, "delete"),
    ):
        state = workdir / f"{name}.msgpack"
        with monkeypatch.context() as patch:
            interrupt(patch, at, module, function)
            assert day(state.name) == INTERRUPTED
        assert state.exists() == (name == "end")
        assert state.with_name(state.name + ".live").exists()
        assert day(state.name) == 0
        assert ("going on at token" in capsys.readouterr().out) == (name != "end")
        assert state.read_bytes() == whole.read_bytes()
        assert not state.with_name(state.name + ".live").exists()
        assert json.loads(state.with_suffix(".live.json").read_text()) == report


def test_another_text_and_other_arguments_are_refused(workdir, day, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt(patch, 1, life, "score")
        assert day("other.msgpack") == INTERRUPTED
    assert day("other.msgpack", "--config.steps=1") == 2
    assert "steps was 2 and is 1" in capsys.readouterr().err
    (workdir / "stream" / "a.txt").write_text("ten brown bottles")
    assert day("other.msgpack") == 2
    assert "does not begin with the text that was read before" in capsys.readouterr().err


def test_a_full_base_stops_it_and_more_room_lets_it_go_on(day, capsys):
    assert day("full.msgpack", "--config.experts=1") == 2
    said = capsys.readouterr().err
    assert "set experts to a higher number, and give --config.nights=16" in said
    assert "goes on from token 32" in said
    assert day("full.msgpack", "--config.experts=2") == 0
    assert "going on at token 32" in capsys.readouterr().out


def test_another_error_is_not_taken_for_want_of_room(day, monkeypatch):
    def broken(*_, **__):
        raise ValueError("a file that cannot be read")

    monkeypatch.setattr(life, "score", broken)
    with pytest.raises(ValueError, match=r"^a file that cannot be read$"):
        day("broken.msgpack")


def test_bad_input_is_refused_in_one_line(workdir, capsys):
    run = f"--workdir={workdir / 'run'}"
    for given, said in (
        ([], "give the folder of the run as --workdir=DIR, and --files=PATTERN"),
        (["--files=nowhere/*"], "matches no file"),
        (["--files=*", "--config.level=1"], "level=1: the schedule says who sleeps"),
    ):
        assert hope("live", run, *given) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
