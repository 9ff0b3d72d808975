"""Folders that appear whole or not at all."""

import os
import subprocess
import sys
import threading

import pytest

from hope_jax.data.whole_folder import check_writable, whole_folder


def write(path, content="new"):
    with whole_folder(path, "--output") as folder:
        (folder / "a").write_text(content)


def test_nothing_is_seen_before_all_is(tmp_path):
    path = tmp_path / "deep" / "out"
    with whole_folder(path, "--output") as folder:
        (folder / "a").write_text("half")
        assert os.listdir(path) == []
        assert folder.parent == path.parent  # one move, on one file system
    assert (path / "a").read_text() == "half"
    assert os.listdir(path.parent) == ["out"]
    with pytest.raises(ValueError, match="--output=.*out holds files already"):
        write(path)
    assert (path / "a").read_text() == "half"


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), whole_folder(tmp_path / "out", "--output") as folder:
        (folder / "a").write_text("half")
        raise KeyError
    assert os.listdir(tmp_path) == []
    with (
        pytest.raises(ValueError, match=r"out cannot be written \(No space left on device\)"),
        whole_folder(tmp_path / "out", "--output"),
    ):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_second_writer_is_refused_before_it_begins(tmp_path):
    program = (
        "import sys; from hope_jax.data.whole_folder import whole_folder\n"
        f"with whole_folder({str(tmp_path / 'out')!r}, '--output') as folder:\n"
        "    print('began', flush=True); sys.stdin.read(); (folder / 'a').write_text('first')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as first:
        assert first.stdout.readline() == "began\n"
        with pytest.raises(ValueError, match="is being written by another process"):
            write(tmp_path / "out", "second")
        first.communicate()
    assert (tmp_path / "out" / "a").read_text() == "first"


def test_one_of_many_writers_wins_whole(tmp_path):
    won = []

    def try_it(name):
        try:
            with whole_folder(tmp_path / "out", "--output") as folder:
                for part in "ab":
                    (folder / part).write_text(name)
            won.append(name)
        except ValueError:
            pass

    threads = [threading.Thread(target=try_it, args=(str(i),)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert {(tmp_path / "out" / part).read_text() for part in "ab"} == set(won)
    assert os.listdir(tmp_path) == ["out"]


def test_places_that_cannot_be_written_are_known_beforehand(tmp_path):
    (tmp_path / "file").write_text("kept")
    for path, message in (
        (tmp_path, "is a folder; give the path of a file"),
        (tmp_path / "file" / "state", r"cannot be written \(Not a directory"),
        ("/dev/null", "is no ordinary file"),
    ):
        with pytest.raises(ValueError, match=f"--state_out=.*{message}"):
            check_writable(path, "--state_out")
    with pytest.raises(ValueError, match=r"--output=.* cannot be written"):
        write(tmp_path / "file" / "out")
    with pytest.raises(ValueError, match=r"--output=.* cannot be written"):
        write(tmp_path / "file")
    check_writable(tmp_path / "file", "--state_out")
    check_writable(tmp_path / "new" / "state", "--state_out")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "kept"
