"""Checkpoints of a run: training state, place in the data, and the config they belong to."""

import json
import logging
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

# What must agree with a checkpoint for it to be continued: other settings may change in between.
_BINDING = ("model", "data", "optimizer", "seed", "steps", "accumulate")


class Checkpoints:
    """The checkpoints in a run's folder, written in the background.

    Args:
      workdir: folder of the run.
      config: of the run; compared with the one that is there.
      keep: how many of the newest checkpoints stay.

    Raises:
      ValueError: if the folder holds a run with other settings.
    """

    def __init__(self, workdir: str, config: ConfigDict, keep: int):
        self.folder = pathlib.Path(workdir).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        _check_config(self.folder / "config.json", config)
        self._manager = self._open(keep)
        self._keep = keep

    def _open(self, keep: int) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        return ocp.CheckpointManager(self.folder / "checkpoints", options=options)

    def latest(self) -> int | None:
        """Step of the newest checkpoint, whole or not; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data: dict[str, Any]) -> None:
        """Begins to write a checkpoint; training may go on meanwhile.

        Args:
          step: number of steps taken.
          state: after them.
          data: state of the data iterator after them; `{}` before the first.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data)
            ),
        )

    def restore(self, target: Any) -> tuple[Any, dict[str, Any]] | None:
        """Reads the newest checkpoint that is whole.

        A damaged one is moved to the folder `damaged`, with a warning, and the one before is taken.

        Args:
          target: shapes and shardings of the state.

        Returns:
          The state and that of the data iterator; `None` if there is no checkpoint.

        Raises:
          ValueError: if there are checkpoints and all are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                read = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
                    ),
                )
            except (MemoryError, jax.errors.JaxRuntimeError):
                raise  # the machine's fault, not the file's
            except Exception as error:  # whatever a damaged file makes the readers raise
                self._set_aside(step, error)
                continue
            return read["state"], read["data"]
        if steps:
            raise ValueError(
                f"all checkpoints in {self.folder} are damaged (now under {self.folder / 'damaged'}); "
                f"give another --workdir to start anew"
            )
        return None

    def _set_aside(self, step: int, error: Exception) -> None:
        logging.warning(
            "checkpoint of step %d is damaged (%s: %s); taking the one before",
            step,
            type(error).__name__,
            str(error).splitlines()[0] if str(error) else "",
        )
        self._manager.close()
        damaged = self.folder / "damaged" / str(step)
        damaged.parent.mkdir(exist_ok=True)
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.move(self.folder / "checkpoints" / str(step), damaged)
        self._manager = self._open(self._keep)

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def load_config(workdir: str) -> ConfigDict:
    """The config of the run in a folder.

    Raises:
      ValueError: if there is no run.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"--workdir={workdir} holds no run (there is no {path}); train one first with "
            f"hope train --config=experiments/quickstart.py --workdir={workdir}"
        )
    return ConfigDict(json.loads(path.read_text()))


def _check_config(path: pathlib.Path, config: ConfigDict) -> None:
    """Compares with the config that is there, then keeps the present one."""
    mine = json.loads(config.to_json_best_effort())
    if path.is_file():
        theirs = json.loads(path.read_text())
        differing = [
            f"{name}: {old!r} there, {new!r} here"
            for key in _BINDING
            for name, old, new in _differences(key, theirs.get(key), mine.get(key))
        ]
        if differing:
            raise ValueError(
                f"{path.parent} holds a run with other settings: {'; '.join(differing)}. Give the same "
                f"settings to continue it, or another --workdir to start anew"
            )
    if jax.process_index() == 0:
        # In one move: other processes may be reading it.
        whole = path.with_suffix(".tmp")
        whole.write_text(json.dumps(mine, indent=2) + "\n")
        whole.replace(path)


def _differences(name: str, old: Any, new: Any):
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield name, old, new
