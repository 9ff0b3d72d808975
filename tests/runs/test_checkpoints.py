"""Checkpoints that are written, rotated, damaged, refused by the system, or of another state."""

import errno
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from hope_jax.runs import checkpoint_reader, checkpoint_writer
from hope_jax.runs.checkpoint_reader import (
    checkpoint_steps,
    find_damage,
    read_params,
    read_params_and_step,
    read_state,
)
from hope_jax.runs.checkpoint_writer import CheckpointWriter
from hope_jax.runs.folder_error import RunFolderError
from hope_jax.runs.keep import Keep, superfluous
from tests.runs.folders import (
    State,
    files_in,
    flip_bit,
    make_config,
    make_state,
    place_after,
    target_of,
    write_run,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run with checkpoints of steps 1 and 2, not to be changed."""
    return write_run(tmp_path_factory.mktemp("written") / "run")


@pytest.fixture
def run(written, tmp_path):
    """A copy to be changed."""
    return pathlib.Path(shutil.copytree(written, tmp_path / "run"))


def restore(workdir, target=None):
    writer = CheckpointWriter(str(workdir), make_config(), Keep(3))
    try:
        return writer.restore(target or target_of(make_state(0)))
    finally:
        writer.close()


def assert_is_step(restored, step):
    state, data = restored
    wanted = make_state(step)
    assert data == place_after(step)
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert ours.dtype == theirs.dtype and ours.sharding == theirs.sharding
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_saved_comes_back(run):
    assert_is_step(restore(run), 2)
    assert checkpoint_steps(run) == [2, 1]
    params = read_params(run, target_of(make_state(0)).params)
    np.testing.assert_array_equal(params["up"]["kernel"], make_state(2).params["up"]["kernel"])


def test_the_newest_stay(tmp_path):
    assert checkpoint_steps(write_run(tmp_path / "run", range(1, 6), keep=2)) == [5, 4]
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"5", "4"}
    with pytest.raises(ValueError, match="keep=0 would keep none"):
        CheckpointWriter(str(tmp_path / "other"), make_config(), Keep(0))
    assert not (tmp_path / "other").exists()


def test_the_newest_those_of_every_so_many_steps_and_the_best_stay(tmp_path):
    """By a count of ranks; a loss that is no number, or is not known, is none of the best."""
    draw = np.random.default_rng(0)
    steps = list(range(5, 200, 5))
    losses = {step: float(draw.normal()) for step in steps[:-6]} | {165: float("nan")}
    for keep in (Keep(3), Keep(1, 50), Keep(2, 0, 4), Keep(2, 25, 3)):
        ranked = sorted(set(losses) - {165}, key=losses.get)[: keep.best]
        stays = {*steps[-keep.newest :], *ranked}
        stays |= {step for step in steps if keep.every and step % keep.every == 0}
        assert superfluous(draw.permutation(steps), keep, losses) == sorted({*steps} - stays)
    writer = CheckpointWriter(str(tmp_path / "run"), make_config(), Keep(1, 4, 1))
    lines = [{"step": 2, "validation_loss": 1.0}, {"step": 3, "validation_loss": 2.0}]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    for step in range(1, 7):
        writer.save(step, make_state(step), place_after(step))
    writer.close()
    assert checkpoint_steps(tmp_path / "run") == [6, 4, 2]
    target = target_of(make_state(0)).params
    params = read_params(tmp_path / "run" / "checkpoints" / "2", target)
    np.testing.assert_array_equal(params["down"], make_state(2).params["down"])
    assert read_params_and_step(tmp_path / "run" / "checkpoints" / "2", target)[0] == 2
    (tmp_path / "run" / "checkpoints" / "6" / "checksums.json").unlink()
    assert read_params_and_step(tmp_path / "run", target)[0] == 4
    with pytest.raises(ValueError, match="has no checkpoint of step 3; there are 6, 4, 2"):
        read_params(tmp_path / "run" / "checkpoints" / "3", target)


def test_damage_of_every_file_is_found_or_harmless(run):
    """Deleted, cut, zeroed, or a bit flipped at the start, in the middle and at the end."""
    folder = run / "checkpoints" / "2"
    target, wanted = target_of(make_state(0)), make_state(2)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    damages = {
        "deleted": lambda path: path.unlink(),
        "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
        "first": lambda path: flip_bit(path, 0, 7),
        "middle": lambda path: flip_bit(path, path.stat().st_size // 2),
        "last": lambda path: flip_bit(path, path.stat().st_size - 1, 3),
    }
    harmless = set()
    for name in names:
        for kind, damage in damages.items():
            content = (folder / name).read_bytes()
            damage(folder / name)
            if find_damage(run, 2) is None:
                harmless.add(name)
                state, data = read_state(run, 2, target)
                assert data == place_after(2), (name, kind)
                jax.tree.map(np.testing.assert_array_equal, state, wanted)
            (folder / name).write_bytes(content)
    assert {os.path.basename(name) for name in harmless} == {
        "_CHECKPOINT_METADATA",
        "commit_success.txt",
    }
    assert len(names) > 15


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(run, caplog):
    flip_bit(next((run / "checkpoints" / "2" / "rest").rglob("d/*")), 40)
    before = files_in(run / "checkpoints" / "2")
    assert_is_step(restore(run), 1)
    assert "step 2 is damaged" in caplog.text and "another checksum" in caplog.text
    assert files_in(run / "damaged" / "2") == before
    # One of the same step, written anew and damaged again, does not take its place.
    writer = CheckpointWriter(str(run), make_config(), Keep(3))
    writer.save(2, make_state(2), place_after(2))
    writer.close()
    (run / "checkpoints" / "2" / "data" / "metadata").unlink()
    assert_is_step(restore(run), 1)
    assert {path.name for path in (run / "damaged").iterdir()} == {"2", "2_2"}
    assert files_in(run / "damaged" / "2") == before


def test_beside_damaged_ones_alone_nothing_begins_anew(run):
    for step in ("1", "2"):
        (run / "checkpoints" / step / "checksums.json").unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no whole checkpoint.*\(mv .*damaged/STEP"):
            restore(run)
    assert {path.name for path in (run / "damaged").iterdir()} == {"1", "2"}
    shutil.rmtree(run / "damaged")
    assert restore(run) is None


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_what_the_system_refuses_is_no_damage(run, monkeypatch, number):
    real = pathlib.Path.open

    def refuse(path, mode="r", *args, **kwargs):
        if path.parent.name == "d" and "r" in mode:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, mode, *args, **kwargs)

    before = files_in(run / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", refuse)
        with pytest.raises(
            RunFolderError, match=f"{run}: reading .* failed .*{os.strerror(number)}"
        ):
            restore(run)
        with pytest.raises(RunFolderError, match="failed"):
            read_params(run, target_of(make_state(0)).params)
    assert files_in(run / "checkpoints") == before and not (run / "damaged").exists()
    assert_is_step(restore(run), 2)


def test_another_state_is_no_damage_and_is_named(run):
    target = target_of(make_state(0))
    float32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    kernel = target.params["up"]["kernel"]
    cases = {
        r"up/kernel is float32\[8, 6\] there and float32\[8, 7\] here": target._replace(
            params={**target.params, "up": {"kernel": float32(8, 7)}}
        ),
        r"down is bfloat16\[3\] there and float32\[3\] here": target._replace(
            params={**target.params, "down": float32(3)}
        ),
        r"up/kernel is float32\[8, 6\] there and not here; up/weight is not there": target._replace(
            params={**target.params, "up": {"weight": kernel}}
        ),
        r"optimizer/1/first/down is .* there and not here": target._replace(optimizer=()),
    }
    before = files_in(run / "checkpoints")
    for message, other in cases.items():
        with pytest.raises(ValueError, match=message):
            restore(run, other)
    with pytest.raises(ValueError, match=r"\[8, 6\] there and float32\[8, 7\] here"):
        read_params(run, {**target.params, "up": {"kernel": float32(8, 7)}})
    assert files_in(run / "checkpoints") == before and not (run / "damaged").exists()


def test_a_reader_changes_nothing(run):
    before = files_in(run)
    os.chmod(run, 0o555)
    read_params(run, target_of(make_state(0)).params)
    flip_bit(next((run / "checkpoints" / "2" / "params").rglob("d/*")), 40)
    before = files_in(run)
    params = read_params(run, target_of(make_state(0)).params)
    np.testing.assert_array_equal(params["up"]["kernel"], make_state(1).params["up"]["kernel"])
    assert files_in(run) == before


def test_a_reader_looks_again_when_a_checkpoint_goes(run, monkeypatch):
    """While step 2 is read, it is renamed and deleted, and step 3 is there."""
    target = target_of(make_state(0)).params

    def rotate():
        if checkpoint_steps(run)[0] == 2:
            writer = CheckpointWriter(str(run), make_config(), Keep(1))
            writer.save(3, make_state(3), {})
            writer.close()

    for name, early in (("find_damage", True), ("_read_params", True), ("find_damage", False)):
        shutil.rmtree(run)
        write_run(run)
        real = getattr(checkpoint_reader, name)

        def meanwhile(*args, real=real, early=early):
            if early:
                rotate()
            found = real(*args)
            rotate()
            return found

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_reader, name, meanwhile)
            params = read_params(run, target)
        np.testing.assert_array_equal(params["down"], make_state(3).params["down"])
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        read_params(run, target)


def test_what_a_kill_leaves_is_cleared_away(run):
    left = run / "checkpoints"
    shutil.copytree(left / "2", left / "4.orbax-checkpoint-tmp")
    os.rename(left / "1", left / "1.deleted")
    (run / ".metrics.jsonl.0123.unfinished").write_text("half")
    assert checkpoint_steps(run) == [2]
    assert_is_step(restore(run), 2)
    assert {path.name for path in left.iterdir()} == {"2"}
    assert {path.name for path in run.iterdir()} == {"checkpoints", "config.json", "lock"}


def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_no_half_of_it(run, monkeypatch):
    remove = shutil.rmtree

    def delete_half(folder):
        remove(pathlib.Path(folder) / "params")
        raise KeyboardInterrupt

    writer = CheckpointWriter(str(run), make_config(), Keep(1))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer.shutil, "rmtree", delete_half)
        with pytest.raises(KeyboardInterrupt):
            writer.wait()
    assert [find_damage(run, step) for step in checkpoint_steps(run)] == [None]
    writer._lock.release()
    assert_is_step(restore(run), 2)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"2"}


def test_a_kill_before_the_checkpoint_has_its_name_leaves_the_one_before(run, monkeypatch, caplog):
    """The background dies while it writes checksums: as a kill there, and as a full disk."""
    full = OSError(errno.ENOSPC, "No space left on device")

    def die(folder):
        raise full

    writer = CheckpointWriter(str(run), make_config(), Keep(3))
    monkeypatch.setattr(checkpoint_writer, "write_checksums", die)
    writer.save(3, make_state(3), {})
    with pytest.raises(RunFolderError) as error:
        writer.wait()
    said = str(error.value)
    assert str(run) in said and "No space left" in said and "free some space" in said
    assert "\n" not in said and not caplog.records
    writer.close()
    assert checkpoint_steps(run) == [2, 1]
    assert_is_step(restore(run), 2)


def test_a_folder_that_goes_is_noticed_at_the_next_checkpoint(run):
    writer = CheckpointWriter(str(run), make_config(), Keep(3))
    os.rename(run, run.with_name("moved"))
    with pytest.raises(RunFolderError, match=f"{run} was removed, moved or replaced"):
        writer.save(3, make_state(3), {})
    os.rename(run.with_name("moved"), run)
    writer.close()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(ValueError, match=r"--workdir=.*file cannot be written"):
        CheckpointWriter(str(tmp_path / "file"), make_config(), Keep(3))


def test_other_settings_are_named_and_the_folder_is_free_again(run):
    config = make_config()
    config.model.width = 32
    config.steps = 10
    with pytest.raises(ValueError, match=r"model\.width: 4 there, 32 here; steps"):
        CheckpointWriter(str(run), config, Keep(3))
    assert_is_step(restore(run), 2)


@pytest.fixture
def earlier(tmp_path):
    """A run as it was before there were checksums: one item, written by Orbax's manager."""
    run = tmp_path / "earlier"
    manager = ocp.CheckpointManager(run / "checkpoints")
    for step in (1, 2):
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(make_state(step)),
            data=ocp.args.JsonSave(place_after(step)),
        )
        manager.save(step, args=args)
    manager.close()
    return run


def test_a_run_of_before_is_read_and_goes_on(earlier):
    params = read_params(earlier, target_of(make_state(0)).params)
    np.testing.assert_array_equal(params["down"], make_state(2).params["down"])
    writer = CheckpointWriter(str(earlier), make_config(), Keep(2))
    assert_is_step(writer.restore(target_of(make_state(0))), 2)
    writer.save(3, make_state(3), place_after(3))
    writer.close()
    assert checkpoint_steps(earlier) == [3, 2]
    assert_is_step(restore(earlier), 3)
    with pytest.raises(ValueError, match="another model or optimiser"):
        read_state(earlier, 2, State(target_of(make_state(0)).step, {}, ()))


def test_of_a_run_of_before_what_cannot_be_decoded_is_damaged(earlier, tmp_path):
    for number, pattern in enumerate(("state/**/d/*", "state/_METADATA", "data/metadata")):
        copy = pathlib.Path(shutil.copytree(earlier, tmp_path / str(number)))
        for path in (copy / "checkpoints" / "2").glob(pattern):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert_is_step(restore(copy), 1)
        assert (copy / "damaged" / "2" / "state").is_dir()
