"""Paths that are given to a command, looked at before it begins its work; nothing is written for it."""

import os
from pathlib import Path


def check_input_file(flag: str, path: str) -> None:
    """Raises a ValueError if there is no such file, or it cannot be read."""
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "is not there"
        raise ValueError(f"--{flag}={path} {what}; give the path of a file")
    if not os.access(path, os.R_OK):
        raise ValueError(f"--{flag}={path} cannot be read; change its permissions")


def check_output_file(flag: str, path: str) -> None:
    """Raises a ValueError if no file of that name can be written."""
    if os.path.isdir(path):
        raise ValueError(f"--{flag}={path} is a folder; give the name of a file in it")
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"--{flag}={path}: there is no folder {folder}; make it first")
    _check_writable(flag, path, folder)


def check_output_folder(flag: str, path: str) -> None:
    """Raises a ValueError if that is no folder, and cannot become one, in which to write."""
    there = Path(path).absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"--{flag}={path}: {there} is no folder; give another path")
    _check_writable(flag, path, there)


def check_state_files(state_in: str | None, state_out: str | None) -> None:
    """Raises a ValueError if what a model has read cannot be taken up, or kept, in these files."""
    if state_in:
        check_input_file("state_in", state_in)
    if state_out:
        check_output_file("state_out", state_out)


def _check_writable(flag: str, path: str, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(
            f"--{flag}={path}: {folder} cannot be written to; change its permissions, or give another "
            f"path"
        )
