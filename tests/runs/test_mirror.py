"""What a run's bucket holds, whatever the network and other machines do."""

import json
import shutil
import time

import jax
import numpy as np
import pytest

from hope_jax.data.bucket import Bucket, BucketError
from hope_jax.exit_codes import UNSENT
from hope_jax.runs.bucket_lock import LOCK, BucketLock
from hope_jax.runs.checkpoint_reader import PARTS, find_damage, read_params_and_step, read_state
from hope_jax.runs.checkpoint_writer import CheckpointWriter
from hope_jax.runs.checksums import CHECKSUMS, write_checksums
from hope_jax.runs.fetch import fetch_run, whole_steps
from hope_jax.runs.folder_error import RunFolderError
from hope_jax.runs.keep import Keep
from hope_jax.runs.mirror import Mirror, UnsentError
from hope_jax.runs.place import place_of
from tests.runs.buckets import RUN, flaky, lose_machine  # noqa: F401
from tests.runs.folders import make_config, make_state, place_after, target_of, write_run

THREE = Keep(3)


def send(folder, keep=THREE, **more):
    """Mirrors a folder until the bucket has it."""
    mirror = Mirror(Bucket(RUN), folder, folder.with_name("sending"), keep, **more)
    mirror.begin()
    mirror.finish()


def add_checkpoint(folder, step, keep=3):
    writer = CheckpointWriter(str(folder), make_config(), Keep(keep))
    writer.save(step, make_state(step), place_after(step))
    writer.close()


def read(address=RUN):
    """Step and parameters, as a command reads them."""
    return read_params_and_step(fetch_run(address), target_of(make_state(0)).params)


def assert_same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(wanted))


def refuse(*words):
    """An operation that fails where its path holds one of some words."""

    def before(operation, path):
        if any(word in path for word in words):
            raise OSError("the network is down")

    return before


def test_a_bucket_holds_what_the_folder_does_and_is_read_like_it(tmp_path, flaky):  # noqa: F811
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (folder / ".half.unfinished").write_text("x")
    (folder / "damaged").mkdir()
    (folder / "damaged" / "1").write_text("x")
    left = tmp_path / "sending" / "9" / "params"
    left.mkdir(parents=True)
    send(folder)
    assert not left.parent.exists()
    names = Bucket(RUN).files()
    here = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    notes = {name for name in here if name.endswith("commit_success.txt")}
    assert set(names) == here - notes - {"lock", ".half.unfinished", "damaged/1"}
    assert all(Bucket(RUN).read(name) == (folder / name).read_bytes() for name in names)
    step, params = read()
    assert step == 2
    assert_same(params, make_state(2).params)
    step, params = read(f"{RUN}/checkpoints/1")
    assert step == 1
    assert_same(params, make_state(1).params)
    # What has changed since is sent again, and nothing else.
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    send(folder)
    assert Bucket(RUN).read("metrics.jsonl") == (folder / "metrics.jsonl").read_bytes()


def test_a_checkpoint_that_is_cut_off_anywhere_is_none(tmp_path, flaky):  # noqa: F811
    """Killed between any two of its files: readers and a new machine take the one before."""
    folder = write_run(tmp_path / "run", steps=(1,))
    send(folder)
    add_checkpoint(folder, 2)
    sent = []
    count = sum(path.is_file() for path in (folder / "checkpoints" / "2").rglob("*"))
    for allowed in range(count):
        sent.clear()

        def cut(operation, path, allowed=allowed):
            if operation in ("put", "write") and "checkpoints/2/" in path:
                if len(sent) == allowed:
                    raise OSError("killed")
                sent.append(path)

        flaky(cut)
        try:
            send(folder, patience=0.2)
        except UnsentError:
            flaky(lambda operation, path: None)
            assert read()[0] == 1
            continue
        break
    assert allowed > 5 and sent[-1].endswith(CHECKSUMS)
    assert read()[0] == 2


def test_a_bucket_out_of_reach_is_told_of_once_and_waited_for(tmp_path, flaky, caplog):  # noqa: F811
    folder = write_run(tmp_path / "run", steps=(1,))
    mirror = Mirror(Bucket(RUN), folder, tmp_path / "sending", Keep(3))
    mirror.begin()
    flaky(refuse("checkpoints"))
    add_checkpoint(folder, 2)
    with pytest.raises(
        UnsentError, match="lacks the checkpoint of step 2 .*network is down"
    ) as raised:
        mirror.finish()
    assert raised.value.exit_code == UNSENT and str(folder) in str(raised.value)
    assert len([line for line in caplog.messages if "cannot be copied" in line]) == 1
    # While it goes on, it goes on trying.
    mirror = Mirror(Bucket(RUN), folder, tmp_path / "sending", Keep(3))
    mirror.begin()
    time.sleep(0.3)
    flaky(lambda operation, path: None)
    mirror.finish()
    assert "is reached again" in caplog.text
    assert whole_steps(Bucket(RUN).files()) == [2, 1]


def test_a_bucket_that_takes_nothing_is_refused_at_once(tmp_path, flaky):  # noqa: F811
    flaky(refuse("config.json"))
    mirror = Mirror(Bucket(RUN), write_run(tmp_path / "run"), tmp_path / "sending", Keep(3))
    with pytest.raises(BucketError, match="cannot write flaky://bucket/runs/a/config.json"):
        mirror.begin()


def test_checkpoints_that_may_go_go_from_the_bucket_the_mark_of_being_whole_first(
    tmp_path,
    flaky,  # noqa: F811
):
    folder = write_run(tmp_path / "run", steps=(1, 2))
    send(folder)
    add_checkpoint(folder, 3)
    deleted = []
    flaky(lambda operation, path: deleted.append(path) if operation == "delete" else None)
    send(folder, Keep(1, every=2))
    assert whole_steps(Bucket(RUN).files()) == [3, 2]
    assert not [name for name in Bucket(RUN).files() if "checkpoints/1/" in name]
    assert deleted[0].endswith(f"checkpoints/1/{CHECKSUMS}")


def test_a_checkpoint_that_makes_room_while_it_is_sent_arrives_whole(tmp_path, flaky):  # noqa: F811
    folder = write_run(tmp_path / "run", steps=(1,))

    def make_room(operation, path):
        if operation == "put" and (folder / "checkpoints" / "1").exists():
            shutil.rmtree(folder / "checkpoints" / "1", ignore_errors=True)

    flaky(make_room)
    send(folder)
    assert not (folder / "checkpoints" / "1").exists()
    assert read()[0] == 1


def test_a_slow_bucket_gets_the_newest(tmp_path, flaky, caplog):  # noqa: F811
    folder = write_run(tmp_path / "run", steps=(1,))
    send(folder)
    for step in (2, 3):
        add_checkpoint(folder, step)
    order = []
    flaky(lambda operation, path: order.append(path) if path.endswith(CHECKSUMS) else None)
    send(folder)
    assert [path.split("/")[-2] for path in order if "checkpoints" in path][:2] == ["3", "2"]
    assert "the newest is sent" in caplog.text


def test_of_several_processes_each_sends_its_pieces_and_all_of_them_are_a_checkpoint(
    tmp_path,
    flaky,  # noqa: F811
):
    files = {
        "params/a/0": (0,),
        "params/a/1": (1,),
        "params/_METADATA": (0, 1),
        "rest/b/0": (1,),
        "data/metadata": (0, 1),
    }
    folders = [tmp_path / f"process_{number}" for number in (0, 1)]
    for number, folder in enumerate(folders):
        place = folder / "checkpoints" / "5"
        for name in (name for name, whose in files.items() if number in whose):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(f"{name} of {number}")
        write_checksums(place)
    first, second = (
        Mirror(Bucket(RUN), folder, tmp_path / f"sending_{n}", Keep(1), number=n, processes=2)
        for n, folder in enumerate(folders)
    )
    first.begin()
    time.sleep(0.5)
    assert whole_steps(Bucket(RUN).files()) == []
    second.begin()
    second.finish()
    first.finish()
    names = Bucket(RUN).files()
    assert set(names) == {f"checkpoints/5/{name}" for name in (*files, CHECKSUMS)}
    assert Bucket(RUN).read("checkpoints/5/params/_METADATA") == b"params/_METADATA of 0"
    assert set(json.loads(Bucket(RUN).read(f"checkpoints/5/{CHECKSUMS}"))["files"]) == set(files)
    Bucket(RUN).write("config.json", b"{}")
    assert find_damage(fetch_run(RUN, PARTS), 5) is None


def test_a_process_that_has_lost_a_checkpoint_says_so_and_the_next_is_sent(
    tmp_path,
    flaky,  # noqa: F811
):
    folders = [write_run(tmp_path / f"process_{number}", steps=(1,)) for number in (0, 1)]
    add_checkpoint(folders[1], 2)
    shutil.rmtree(folders[1] / "checkpoints" / "1")
    first, second = (
        Mirror(Bucket(RUN), folder, tmp_path / f"sending_{n}", Keep(3), number=n, processes=2)
        for n, folder in enumerate(folders)
    )
    first.begin()
    second.begin()
    time.sleep(0.5)
    add_checkpoint(folders[0], 2)
    first.finish()
    second.finish()
    assert whole_steps(Bucket(RUN).files()) == [2]


def test_damage_on_the_way_or_in_the_bucket_is_found(tmp_path, flaky, caplog):  # noqa: F811
    send(write_run(tmp_path / "run"))
    name = next(n for n in Bucket(RUN).files() if "checkpoints/2/params/d/" in n)
    content = bytearray(Bucket(RUN).read(name) or b"")
    content[20] ^= 1
    Bucket(RUN).write(name, bytes(content))
    assert read()[0] == 1
    assert "step 2 in flaky://bucket/runs/a is damaged" in caplog.text
    with place_of(RUN) as place:
        assert find_damage(place.folder, 1) is None
    names = Bucket(RUN).files()
    assert whole_steps(names) == [1]
    assert f"damaged/2/{CHECKSUMS}" in names and name.replace("checkpoints", "damaged") in names


def test_what_was_fetched_is_fetched_once_and_never_mistaken_for_another(
    tmp_path,
    flaky,  # noqa: F811
):
    send(write_run(tmp_path / "run", steps=(1,)))
    read()
    fetched = []
    flaky(lambda operation, path: fetched.append(path) if operation == "get" else None)
    read()
    assert not [path for path in fetched if "checkpoints" in path]
    # Another run of the same name, whose checkpoint is of the same step.
    Bucket(RUN).delete(Bucket(RUN).files())
    other = CheckpointWriter(str(tmp_path / "other"), make_config(), Keep(3))
    other.save(1, make_state(7), place_after(1))
    other.close()
    send(tmp_path / "other")
    assert_same(read()[1], make_state(7).params)


def test_a_checkpoint_that_goes_while_it_is_fetched_has_made_room_for_a_newer_one(
    tmp_path,
    flaky,  # noqa: F811
):
    folder = write_run(tmp_path / "run", steps=(1,))
    send(folder)
    add_checkpoint(folder, 2)
    done = []

    def overtake(operation, path):
        if operation == "get" and "checkpoints/1/" in path and not done:
            done.append(path)
            send(folder, Keep(1))

    flaky(overtake)
    assert read()[0] == 2


def test_a_run_that_is_not_there_is_named(flaky):  # noqa: F811
    with pytest.raises(ValueError, match="--workdir=flaky://bucket/runs/a holds no run"):
        fetch_run(RUN)


def make_lock(name, **more):
    return BucketLock(Bucket(RUN), name, **{"beat": 0.05, "silence": 0.4, **more})


def test_one_at_a_time_writes_to_a_bucket(flaky):  # noqa: F811
    first = make_lock("here")
    with pytest.raises(ValueError, match="is being written by process .* on "):
        make_lock("there")
    first.check()
    first.lead()
    first.release()
    second = make_lock("there")
    assert second.head == "here"
    second.release()
    assert make_lock("other").head == "here"


def test_who_dies_gives_a_bucket_back_and_who_comes_back_finds_it_taken(
    flaky,  # noqa: F811
    caplog,
):
    gone = make_lock("here")
    flaky(refuse("lock"))  # cut off
    time.sleep(0.2)
    gone._ending.set()
    gone._thread.join()
    flaky(lambda operation, path: None)
    began = time.monotonic()
    late = make_lock("there")
    assert time.monotonic() - began > 0.4 and "looking" in caplog.text
    with pytest.raises(RunFolderError, match="is now written by process"):
        gone.confirm()
    with pytest.raises(RunFolderError, match="is now written by process"):
        gone.check()
    before = Bucket(RUN).read(LOCK)
    gone.release()
    assert json.loads(Bucket(RUN).read(LOCK))["start"] == json.loads(before)["start"]
    late.release()
    # The same folder again, which its own lock guards, waits for nobody.
    make_lock("there").release()


def test_a_mirror_whose_bucket_was_taken_over_makes_no_checkpoint_whole(
    tmp_path,
    flaky,  # noqa: F811
):
    def taken():
        raise RunFolderError("is now written by another")

    folder = write_run(tmp_path / "run")
    mirror = Mirror(Bucket(RUN), folder, tmp_path / "sending", Keep(3), taken)
    mirror.begin()
    with pytest.raises(RunFolderError, match="by another"):
        mirror.finish()
    assert whole_steps(Bucket(RUN).files()) == []


def train_to(step, finish=True):
    """Takes a run in the bucket one step further; the step that it began at."""
    with place_of(RUN) as place:
        writer = CheckpointWriter(place.folder, make_config(), Keep(3))
        restored = writer.restore(target_of(make_state(0)))
        place.begin(Keep(3))
        writer.save(step, make_state(step), place_after(step))
        writer.close()
        if finish:
            place.finish()
        return None if restored is None else int(restored[0].step)


def test_a_new_machine_goes_on_where_the_bucket_is(tmp_path, flaky):  # noqa: F811
    assert train_to(1) is None
    lose_machine(tmp_path)
    assert train_to(2) == 1
    state, data = read_state(fetch_run(RUN, PARTS), 2, target_of(make_state(0)))
    assert data == place_after(2)
    assert_same(state, make_state(2))


def test_what_was_being_sent_when_a_run_was_killed_is_cleared_away(
    tmp_path,
    flaky,  # noqa: F811
):
    train_to(1)
    Bucket(RUN).write("checkpoints/2/upload/begun", b"")
    Bucket(RUN).write("checkpoints/2/upload/part_1.json", b"{}")
    with place_of(RUN):
        assert not [name for name in Bucket(RUN).files() if name.startswith("checkpoints/2/")]
    assert whole_steps(Bucket(RUN).files()) == [1]


def test_a_large_file_is_waited_for_while_nothing_fails(tmp_path, flaky):  # noqa: F811
    flaky(lambda operation, path: time.sleep(0.5) if path.endswith("data/metadata") else None)
    send(write_run(tmp_path / "run", steps=(1,)), patience=0.2)
    assert whole_steps(Bucket(RUN).files()) == [1]


def test_the_machine_that_was_last_goes_on_with_what_the_bucket_lacks(
    tmp_path,
    flaky,  # noqa: F811
):
    train_to(1)
    flaky(refuse("checkpoints/2"))
    with pytest.raises(UnsentError):
        train_to(2)
    flaky(lambda operation, path: None)
    assert whole_steps(Bucket(RUN).files()) == [1]
    assert train_to(3) == 2


def test_a_machine_that_comes_back_follows_the_bucket_and_keeps_what_it_had(
    tmp_path,
    flaky,  # noqa: F811
    monkeypatch,
    caplog,
):
    train_to(1)
    flaky(refuse("checkpoints/5"))
    with pytest.raises(UnsentError):
        train_to(5)
    flaky(lambda operation, path: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert train_to(2) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Killed before all is fetched, it begins again, and takes what it had for nothing more.
    flaky(refuse("config.json"))
    with pytest.raises(BucketError):
        train_to(3)
    flaky(lambda operation, path: None)
    assert train_to(3) == 2
    (kept,) = (tmp_path / "cache").rglob("a.before_*")
    assert (kept / "checkpoints" / "5").is_dir() and str(kept) in caplog.text


def test_two_trainings_of_a_machine_do_not_share_its_folder(flaky):  # noqa: F811
    with place_of(RUN):
        with pytest.raises(ValueError, match="is being written by process"), place_of(RUN):
            pass
        assert json.loads(Bucket(RUN).read(LOCK)).get("released") is None
