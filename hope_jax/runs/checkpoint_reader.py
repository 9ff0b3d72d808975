"""Reads the checkpoints of a run, and changes nothing: the run may be training meanwhile.

A checkpoint is a folder `checkpoints/STEP` that appears in one move and leaves in one move. In it are
the parameters (`params`), all else that training changes (`rest`), the place in the data (`data`), and
checksums of all files.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from hope_jax.runs.checksums import find_wrong_file
from hope_jax.runs.folder_error import explained
from hope_jax.runs.unchecked import find_undecodable, is_unchecked

PARTS = ("params", "rest", "data")
# A reader that this many newer checkpoints have overtaken gives up.
_ATTEMPTS = 20


def checkpoint_steps(workdir: str | Path) -> list[int]:
    """Steps of the checkpoints in a run's folder, newest first."""
    folder = Path(workdir) / "checkpoints"
    with explained(workdir, "listing checkpoints"):
        if not folder.is_dir():
            return []
        return sorted((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), reverse=True)


def find_damage(workdir: str | Path, step: int, parts: Sequence[str] = PARTS) -> str | None:
    """Reads the files of a checkpoint and compares them with their checksums.

    Args:
      workdir: folder of the run.
      step: of the checkpoint.
      parts: those that matter.

    Returns:
      The damage that is proven: a file that is missing, cut, altered or cannot be decoded; else None.

    Raises:
      RunFolderError: if a file is there and cannot be read.
    """
    folder = Path(workdir).absolute() / "checkpoints" / str(step)
    with explained(workdir, f"reading the checkpoint of step {step}"):
        return find_undecodable(folder) if is_unchecked(folder) else find_wrong_file(folder, parts)


def read_state(workdir: str | Path, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint that is whole.

    Args:
      workdir: folder of the run.
      step: of the checkpoint.
      target: shapes and shardings of the state, a NamedTuple with a field `params`. A field with a
        default that the checkpoint does not hold, since there was none then, has its default.

    Returns:
      The state, and that of the data iterator.

    Raises:
      ValueError: if the checkpoint is of another state, with its arrays and both shapes.
    """
    folder = Path(workdir).absolute() / "checkpoints" / str(step)
    with explained(workdir, f"reading the checkpoint of step {step}"):
        data = json.loads((folder / "data" / "metadata").read_bytes())
        if is_unchecked(folder):
            target = _as_it_was(folder / "state", target)
            return _read_tree(folder / "state", target, step), data
        rest = _as_it_was(folder / "rest", target)._asdict()
        params = _read_tree(folder / "params", rest.pop("params"), step)
        rest = _read_tree(folder / "rest", rest, step)
    return type(target)(params=params, **rest), data


def _as_it_was(folder: Path, target: Any) -> Any:
    """The target with the defaults of fields of which a checkpoint holds nothing."""
    there = {name.partition("/")[0] for name in _shapes(_metadata(folder))}
    defaults = {n: v for n, v in target._field_defaults.items() if n not in there}
    return target._replace(**defaults)


def run_and_step(path: str | Path) -> tuple[str, int | None]:
    """The run's folder, and the step where the path is that of one of its checkpoints.

    Example:
      >>> run_and_step("runs/a"), run_and_step("runs/a/checkpoints/500")
      (('runs/a', None), ('runs/a', 500))
    """
    path = Path(path)
    if path.name.isdecimal() and path.parent.name == "checkpoints":
        return str(path.parents[1]), int(path.name)
    return str(path), None


def read_params(workdir: str | Path, target: Any) -> Any:
    """Reads the parameters of `read_params_and_step`."""
    return read_params_and_step(workdir, target)[1]


def read_params_and_step(workdir: str | Path, target: Any) -> tuple[int, Any]:
    """Reads the parameters of the newest checkpoint that is whole, and nothing else: see `read_newest`.

    Args:
      workdir: folder of the run, or of one of its checkpoints, which is then read.
      target: shapes and shardings of the parameters.

    Returns:
      The step, and the parameters.
    """
    run, only = run_and_step(workdir)
    return read_newest(run, ("params",), lambda step: _read_params(run, step, target), only=only)


def read_other(workdir: str | Path, target: Any, whole: bool) -> tuple[int, Any]:
    """Reads the newest checkpoint of another run, which `--from_run` has named: see `read_newest`.

    Args:
      workdir: folder of the run.
      target: shapes and shardings of a state, a NamedTuple with a field `params`.
      whole: whether all of it is read, or the parameters alone.

    Returns:
      Its step, and the state or the parameters.
    """
    read: Callable[[int], Any] = lambda step: _read_params(workdir, step, target.params)
    if whole:
        read = lambda step: read_state(workdir, step, target)[0]
    return read_newest(workdir, PARTS if whole else ("params",), read, "--from_run")


def read_newest(
    workdir: str | Path,
    parts: Sequence[str],
    read: Callable[[int], Any],
    flag: str = "--workdir",
    only: int | None = None,
) -> tuple[int, Any]:
    """Reads from the newest checkpoint whose parts are whole.

    Nothing is written, moved or locked. A checkpoint that goes while it is read has made room for a
    newer one, which is taken.

    Args:
      workdir: folder of the run.
      parts: of the checkpoint that must be whole.
      read: reads what is wanted of the checkpoint of a step.
      flag: that gave the folder, for the errors.
      only: step of the checkpoint that is read, if no other will do.

    Returns:
      The step, and what was read.

    Raises:
      ValueError: if there is no checkpoint, none that is whole, or one of another model.
      RunFolderError: if the folder cannot be read.
    """
    damaged: set[tuple[int, int]] = set()
    for _ in range(_ATTEMPTS):
        steps = [step for step in checkpoint_steps(workdir) if only in (None, step)]
        there = [(step, _identity(workdir, step)) for step in steps]
        found = [(step, place) for step, place in there if place and (step, place) not in damaged]
        if not found:
            break
        step, place = found[0]
        try:
            damage = find_damage(workdir, step, parts)
            if damage is None:
                return step, read(step)
        except Exception:
            if _identity(workdir, step) == place:
                raise
            continue
        if _identity(workdir, step) == place:
            logging.warning(
                "checkpoint of step %d is damaged (%s); taking the one before", step, damage
            )
            damaged.add((step, place))
    else:
        raise ValueError(
            f"{flag}={workdir}: checkpoints are replaced faster than they can be read; raise "
            f"checkpoint.keep or checkpoint.every of the run"
        )
    if damaged:
        raise ValueError(f"{flag}={workdir}: all checkpoints are damaged")
    if only is not None:
        there_are = ", ".join(map(str, checkpoint_steps(workdir)))
        raise ValueError(f"{workdir} has no checkpoint of step {only}; there are {there_are}")
    raise ValueError(f"{flag}={workdir} has no checkpoint yet; let the run save one")


def _identity(workdir: str | Path, step: int) -> int:
    """Tells a checkpoint from one of the same step that took its place; 0 if there is none."""
    with explained(workdir, "listing checkpoints"):
        try:
            return (Path(workdir) / "checkpoints" / str(step)).stat().st_ino
        except FileNotFoundError:
            return 0


def _read_params(workdir: str | Path, step: int, target: Any) -> Any:
    folder = Path(workdir).absolute() / "checkpoints" / str(step)
    with explained(workdir, f"reading the checkpoint of step {step}"):
        if not is_unchecked(folder):
            return _read_tree(folder / "params", target, step)
        tree = {"params": target}
        _check_fits(folder / "state", tree, step, partial=True)
        handler = ocp.PyTreeCheckpointHandler()
        settings = ocp.checkpoint_utils.construct_restore_args(tree)
        args = ocp.args.PyTreeRestore(tree, restore_args=settings, partial_restore=True)
        return handler.restore(folder / "state", args=args)["params"]


def _read_tree(folder: Path, target: Any, step: int) -> Any:
    _check_fits(folder, target, step)
    return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(target))


def _check_fits(folder: Path, target: Any, step: int, partial: bool = False) -> None:
    """Compares names, shapes and dtypes: Orbax casts, cuts and fills up without a word."""
    there = _shapes(_metadata(folder))
    here = _shapes(target)
    names = sorted(here if partial else {*there, *here})
    differing = [
        f"{name} is {there.get(name, 'not')} there and {here.get(name, 'not')} here"
        for name in names
        if there.get(name) != here.get(name)
    ]
    if differing:
        # A model that fits can go on without its optimiser's state.
        other = f" with --from_run={folder.parents[2]}" if folder.name == "rest" else ""
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError(
            f"the checkpoint of step {step} in {folder.parents[2]} is of another model or optimiser: "
            f"{'; '.join(differing[:3])}{more}. Give the settings and the version of hope_jax that wrote "
            f"it (without --config a run's own are taken), or another --workdir{other}; nothing was "
            f"moved"
        )


def _metadata(folder: Path) -> Any:
    return ocp.StandardCheckpointHandler().metadata(folder).tree


def _shapes(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
