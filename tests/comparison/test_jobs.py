"""Runs that go on at once, each in a process of its own."""

import os
import signal
import time

import pytest

from hope_jax.comparison.jobs import TrialError, run_trials
from tests.comparison.plans import plan_of, write_result


def wait_until(condition):
    deadline = time.time() + 60
    while not condition():
        assert time.time() < deadline
        time.sleep(0.01)


def meet(trial):
    """Ends when as many runs as there are jobs go on; says on which cores."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    (trial.folder / "cores").write_text(str(sorted(os.sched_getaffinity(0))))
    print("here", trial)
    wait_until(lambda: len(list(trial.folder.parents[2].rglob("cores"))) == 2)
    return write_result(trial)


def fail_or_wait(trial):
    """The first run fails when the second has begun, which then is asked to stop."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    (trial.folder / "begun").touch()
    wait_until(lambda: len(list(trial.folder.parents[2].rglob("begun"))) == 2)
    if trial.row == "narrow":
        raise OSError("no space")
    wait_until(lambda: stopped)
    (trial.folder / "saved").touch()
    return False


def stop_parent(trial):
    """Asks the process that has begun this to stop, and saves when it is asked itself."""
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    os.kill(os.getppid(), signal.SIGINT)
    wait_until(lambda: stopped)
    (trial.folder / "saved").touch()
    return False


def trials_of(folder):
    plan = plan_of(folder, selection_seeds=1, seeds=1)
    return [plan.reported(row, plan.choices()[0])[0] for row in plan.rows]


def test_two_runs_go_on_at_once_on_cores_of_their_own(tmp_path):
    trials, ended = trials_of(tmp_path), []
    assert run_trials(trials, 2, meet, ended.append)
    assert sorted(ended) == sorted(trials)
    cores = [(trial.folder / "cores").read_text() for trial in trials]
    if len(os.sched_getaffinity(0)) > 1:
        assert cores[0] != cores[1]
    assert (trials[0].folder / "output.txt").read_text() == f"here {trials[0]}\n"


def test_where_one_fails_the_others_are_saved_and_it_is_named(tmp_path):
    trials = trials_of(tmp_path)
    with pytest.raises(TrialError, match=rf"the run narrow, .*{trials[0].folder}/output.txt says"):
        run_trials(trials, 2, fail_or_wait, print)
    assert "no space" in (trials[0].folder / "output.txt").read_text()
    assert (trials[1].folder / "saved").exists()


def test_a_stop_is_passed_on(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    (trial, _) = trials = trials_of(tmp_path)
    assert not run_trials(trials[:1], 2, stop_parent, print)
    assert (trial.folder / "saved").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_one_after_the_other(tmp_path):
    trials, ended = trials_of(tmp_path), []
    assert run_trials(trials, 1, write_result, ended.append) and ended == trials
    assert not run_trials(trials, 1, lambda trial: False, ended.append) and ended == trials
