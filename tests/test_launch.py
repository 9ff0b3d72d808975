"""The scripts that start runs elsewhere: what they would run, and what they do when runs end."""

import configparser
import os
import pathlib
import shlex
import shutil
import subprocess

import pytest
import yaml

from hope_jax import exit_codes

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = ("--", "--config=my configs/a.py:b", "--workdir=/mnt/hope/it's one run")
TPU = ("--name=n", "--zone=z", "--type=v5p-32", "--spot", "--mount=10.0.0.2:/a share")
GKE = ("--name=n", "--cluster=c", "--zone=z", "--project=p", "--image=i", "--type=v6e-8")
DRY = {
    "tpu_vm": (*TPU, "create", "wait", "copy", "install", "run", "log", "status", "delete", "keep"),
    "xpk": (*GKE, "--spot", "image", "run", "log", "status", "delete"),
    "slurm": ("--nodes=2", "--partition=gpu", "--logs=my logs"),
    "gpu": ("--venv=my venv", "install", "devices", "run"),
}


@pytest.fixture
def launch(tmp_path):
    """The scripts, in a checkout whose path holds a space, and commands that note how they are called."""
    folder = tmp_path / "a checkout"
    shutil.copytree(ROOT / "launch", folder / "launch")
    (tmp_path / "bin").mkdir()
    for name in (
        "gcloud",
        "git",
        "docker",
        "xpk",
        "kubectl",
        "sbatch",
        "srun",
        "scontrol",
        "sleep",
    ):
        stub(tmp_path, name, "")
    return folder / "launch"


def stub(tmp_path, name, does):
    file = tmp_path / "bin" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$(basename "$0") $*" >>"{tmp_path}/calls"\n{does}\n'
    )
    file.chmod(0o755)
    return file


def bash(script, *arguments, **environment):
    path = f"{script.parents[2] / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", script, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, **environment},
        timeout=30,
    )


def calls(tmp_path):
    file = tmp_path / "calls"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize("name", DRY)
def test_a_dry_run_shows_commands_that_a_shell_reads_back(launch, tmp_path, name):
    done = bash(launch / f"{name}.sh", "--dry-run", *DRY[name], *TRAIN)
    assert done.returncode == 0, done.stderr
    assert calls(tmp_path) == []
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    trains = 0
    for words in commands:
        inner = [word.partition("=")[2] for word in words if word.startswith("--command=")]
        for command in inner:
            assert subprocess.run(["bash", "-nc", command]).returncode == 0, command
            words = shlex.split(command)
        if any(word.startswith("--config=") for word in words):
            assert TRAIN[1] in words and TRAIN[2] in words
            trains += 1
    assert trains >= 1
    told = [word for words in commands for word in words]
    root = str(launch.parent)
    assert name == "tpu_vm" or any(word.startswith(root) or f"={root}" in word for word in told)
    if name == "tpu_vm":
        assert "4" in done.stdout.partition("mesh.processes=")[2][:1]  # v5p-32 has four hosts
        assert root in told and "--spot" in told
        mounting = [shlex.split(word) for word in told if " mount -t nfs " in word]
        assert mounting and all("10.0.0.2:/a share" in words for words in mounting)


@pytest.mark.parametrize("name", DRY)
def test_help_and_what_is_not_known(launch, name):
    script = launch / f"{name}.sh"
    told = bash(script, "--help")
    assert told.returncode == 0 and told.stdout.startswith("Trains on")
    assert f"bash launch/{name}.sh" in told.stdout and "--dry-run" in told.stdout
    wrong = bash(script, "--nmae=x")
    assert wrong.returncode == 2 and "there is no --nmae" in wrong.stderr
    none = bash(script, *(given for given in DRY[name] if given == "run" or given[:2] == "--"))
    assert none.returncode == 2 and "what is to be trained is missing" in none.stderr


@pytest.mark.parametrize(
    "kind, hosts",
    [("v5p-8", 1), ("v5p-64", 8), ("v5litepod-8", 1), ("v5litepod-16", 4), ("v6e-1", 1)],
)
def test_hosts_follow_from_the_type(launch, kind, hosts):
    given = ("--dry-run", "--name=n", "--zone=z", f"--type={kind}", "run", *TRAIN)
    assert f"mesh.processes={hosts}\\;" in bash(launch / "tpu_vm.sh", *given).stdout


def test_machines_that_are_taken_away_are_asked_for_again(launch, tmp_path):
    """Runs, is lost with its machine, saves and stops, is done."""
    turns = tmp_path / "turns"
    turns.write_text("0")
    stub(
        tmp_path,
        "gcloud",
        f"""
turn="$(cat {turns})"
case "$*" in
*hope.code*"echo runs"*)
    echo $((turn + 1)) >{turns}
    case "$turn" in 0) echo runs ;; 1) exit 255 ;; 2) echo 76 ;; 3) echo 0 ;; esac
    ;;
*describe*)
    if [ "$turn" = 2 ] && [ ! -e {tmp_path}/gone ]; then touch {tmp_path}/gone; echo SUSPENDED
    else echo ACTIVE; fi
    ;;
esac""",
    )
    done = bash(launch / "tpu_vm.sh", *TPU, "keep", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "n is SUSPENDED; asking again" in done.stdout
    made = [
        "run" if "hope train" in call else call.split()[4]
        for call in calls(tmp_path)
        if "queued-resources create" in call or "delete" in call or "hope train" in call
    ]
    assert made == ["create", "run", "delete", "create", "run", "run", "delete"]


@pytest.mark.parametrize("code, said", [("1", "failed with code 1"), ("3", "ended with code 3")])
def test_what_has_failed_is_not_begun_again(launch, tmp_path, code, said):
    answer = f'case "$*" in *"echo runs"*) echo {code} ;; *describe*) echo ACTIVE ;; esac'
    stub(tmp_path, "gcloud", answer)
    done = bash(launch / "tpu_vm.sh", *TPU, "keep", *TRAIN)
    assert done.returncode == 2 and said in done.stderr
    assert sum("hope train" in call for call in calls(tmp_path)) == 1


@pytest.mark.parametrize(
    "codes, ends, runs",
    [
        ((75, 76, 77, 78, 137, 0), 0, 6),
        ((75, 1), 1, 2),
        ((2,), 2, 1),
        ((3,), 3, 1),
        ((130,), 130, 1),
    ],
)
def test_on_one_machine_a_run_that_has_saved_goes_on(launch, tmp_path, codes, ends, runs):
    left = tmp_path / "left"
    left.write_text("\n".join(map(str, codes)) + "\n")
    venv = tmp_path / "my venv"
    hope = stub(venv, "hope", f'code="$(head -n 1 {left})"; sed -i 1d {left}; exit "$code"')
    assert hope.parent == venv / "bin"
    done = bash(launch / "gpu.sh", f"--venv={venv}", "run", *TRAIN)
    assert done.returncode == ends
    assert len(calls(venv)) == runs


def test_scripts_start_again_after_the_codes_that_the_package_says():
    file = ROOT / "launch" / "exit_codes.sh"
    answers = [
        subprocess.run(["bash", "-c", f'source "{file}"; goes_on {code}']).returncode == 0
        for code in range(256)
    ]
    again = [code for code, answer in enumerate(answers) if answer]
    assert [code for code in again if code <= 128] == list(exit_codes.RESTART)
    assert set(range(129, 256)) - set(again) == {exit_codes.INTERRUPTED}


@pytest.mark.parametrize("code", [0, 1, 3, 75, 137])
def test_slurm_queues_a_job_again_that_has_saved(launch, tmp_path, code):
    stub(tmp_path, "srun", f"exit {code}")
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}
    done = bash(launch / "slurm.sbatch", "/my venv", *TRAIN[1:], **job)
    assert done.returncode == code
    assert ("scontrol requeue 7" in calls(tmp_path)) == (code > 3)
    assert "--config.mesh.processes=16" in calls(tmp_path)[0]


def test_skypilots_task_is_whole():
    task = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [*exit_codes.RESTART]
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-nc", task[part]]).returncode == 0
    assert task["envs"]["RUN"].startswith("gs://") and '--workdir="$RUN"' in task["run"]
    assert {*task["envs"]["EXTRA"].split(",")} == {"cuda13", "gcs"} <= extras()


def test_the_image_copies_what_is_there_and_knows_its_extras():
    lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    given = {
        part.partition("=")[2].split()[0] for line in lines for part in line.split("arg=EXTRA")[1:]
    }
    assert given == {"cuda13", "tpu"} and given <= extras()


def extras():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return set(config["options.extras_require"])
