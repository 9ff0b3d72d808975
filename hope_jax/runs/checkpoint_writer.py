"""Writes a run's folder: its config, its corpus's record and its checkpoints. One process at a time."""

import logging
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from hope_jax.data.whole_file import UNFINISHED
from hope_jax.runs.agreement import first_decides
from hope_jax.runs.background_noise import hush_background
from hope_jax.runs.checkpoint_reader import checkpoint_steps, find_damage, read_state
from hope_jax.runs.checksums import write_checksums
from hope_jax.runs.corpus_record import Record, check_corpus, keep_corpus
from hope_jax.runs.folder_error import explained
from hope_jax.runs.keep import Keep, superfluous
from hope_jax.runs.lock import FolderLock
from hope_jax.runs.metrics import validation_losses
from hope_jax.runs.run_config import Change, find_changes, keep_config
from hope_jax.runs.run_tokenizer import keep_tokenizer, tokenizer_of

_DELETED = ".deleted"


class CheckpointWriter:
    """The one who writes in a run's folder, from now until it is closed.

    With several processes every one has a writer and calls the same methods in the same order; the
    first decides and all learn of it. A checkpoint takes its name only when it is whole and its
    checksums are written, and is renamed before it is deleted, so that a kill at any point leaves only
    whole ones, and readers see no others.

    Args:
      workdir: folder of the run; made if it is not there.
      config: of the run; compared with the one that is there.
      keep: which checkpoints stay.
      corpus: from `describe_corpus`; compared with that of the run, if given.
      complete: gives the config of an older run what it does not say, before they are compared.
      may_change: settings that may differ from those of the run, see `find_changes`.
      shared: whether all processes have the same folder. If each has its own, a checkpoint there holds
        its own pieces of the arrays, and one to begin with must have been put whole into all of them.

    Attributes:
      changes: settings that differ from those of the run that is there, with both values.

    Raises:
      ValueError: if the folder holds a run with other settings or of another corpus, if another process
        writes to it, or it cannot be written.
    """

    def __init__(
        self,
        workdir: str,
        config: ConfigDict,
        keep: Keep,
        corpus: Record | None = None,
        complete: Callable[[Any], ConfigDict] = ConfigDict,
        may_change: Collection[str] = (),
        shared: bool = True,
    ):
        if keep.newest < 1:
            raise ValueError(f"checkpoint.keep={keep.newest} would keep none; give 1 or more")
        self.folder = Path(workdir).absolute()
        self._writes = jax.process_index() == 0 or not shared
        # A process that writes no metrics knows no losses; two, since others may be a step behind.
        self._keep = keep if jax.process_index() == 0 else Keep(max(keep.newest, 2))
        self._lock: FolderLock | None = None
        self._last: int | None = None
        self._config = config
        self.changes: list[Change] = first_decides(
            lambda: self._take(config, corpus, complete, may_change)
        )
        if self._writes and jax.process_index() > 0:
            with explained(self.folder, "clearing away what was not finished"):
                (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
                self._clear()
        hush_background()
        self._checkpointer = _make_checkpointer(self._seal, shared)
        self._tree = ocp.args.StandardSave if shared else ocp.args.PyTreeSave

    def _take(
        self,
        config: ConfigDict,
        corpus: Record | None,
        complete: Callable[[Any], ConfigDict],
        may_change: Collection[str],
    ) -> list[Change]:
        """Locks the folder, compares what is there, and clears away what was not finished."""
        try:
            (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.folder)
        except OSError as error:
            raise ValueError(
                f"--workdir={self.folder} cannot be written ({error.strerror} at {error.filename}); "
                f"give a folder that can"
            ) from error
        try:
            changes = find_changes(self.folder, config, complete, may_change)
            source = ", ".join(
                f"data.{name}={config.data[name]!r}"
                for name in (
                    "files",
                    "tfds",
                    "source",
                    "arguments",
                    "tokens",
                    "mixture",
                    "tokenizer",
                )
                if config.data.get(name) or name == "files"
            )
            if corpus is not None:
                check_corpus(self.folder, corpus, source)
            with explained(self.folder, "writing the config"):
                self._clear()
                name = config.data.get("tokenizer", "bytes")
                keep_tokenizer(self.folder, tokenizer_of(self.folder, name))
                if not (self.folder / "config.json").exists():
                    keep_config(self.folder, config)
                if corpus is not None:
                    keep_corpus(self.folder, corpus)
            return changes
        except BaseException:
            self._lock.release()
            raise

    def _clear(self) -> None:
        """Clears away what was not finished."""
        for left in self.folder.glob(f".*{UNFINISHED}"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        for left in (self.folder / "checkpoints").iterdir():
            if left.name.endswith(_DELETED) or ".orbax-checkpoint-tmp" in left.name:
                shutil.rmtree(left)

    def latest(self) -> int | None:
        """Step of the newest checkpoint, whole or not; None if there is none."""
        return next(iter(checkpoint_steps(self.folder)), None)

    def save(self, step: int, state: Any, data: dict[str, Any]) -> None:
        """Begins to write a checkpoint; training may go on meanwhile.

        Waits for the one before. That which was saved or restored last is not saved again.

        Args:
          step: number of steps taken.
          state: after them, a NamedTuple with a field `params`.
          data: state of the data iterator after them; `{}` before the first.

        Raises:
          RunFolderError: if the folder refuses this checkpoint or the one before.
        """
        if step == self._last:
            return
        self.wait()
        rest = state._asdict()
        params = rest.pop("params")
        self._last = step
        with explained(self.folder, f"writing the checkpoint of step {step}"):
            self._checkpointer.save(
                self.folder / "checkpoints" / str(step),
                args=ocp.args.Composite(
                    params=self._tree(params),
                    rest=self._tree(rest),
                    data=ocp.args.JsonSave(data),
                ),
            )

    def _seal(self) -> None:
        """Writes the checksums, in the background, before the checkpoint gets its name."""
        (unnamed,) = (self.folder / "checkpoints").glob(f"{self._last}.orbax-checkpoint-tmp*")
        write_checksums(unnamed)

    def restore(self, target: Any) -> tuple[Any, dict[str, Any]] | None:
        """Reads the newest checkpoint that is whole.

        One that is damaged for certain is moved to the folder `damaged`, with a warning, and the one
        before is taken. Nothing is moved for any other reason: what cannot be read, or is of another
        model or optimiser, is an error.

        Args:
          target: shapes and shardings of the state, a NamedTuple with a field `params`.

        Returns:
          The state and that of the data iterator; `None` if there is no checkpoint.

        Raises:
          ValueError: if there are checkpoints and all are damaged, or are of another state, or the
            run has taken more steps than its config now says.
          RunFolderError: if the folder cannot be read.
        """
        step = first_decides(self._choose)
        restored = None
        if step is not None:
            if step > self._config.steps:
                raise ValueError(
                    f"steps={self._config.steps}, but the run in {self.folder} has taken {step}; give "
                    f"more of them to go on, or another --workdir"
                )
            self._last = step
            restored = read_state(self.folder, step, target)
        first_decides(self._keep_config)
        return restored

    def _keep_config(self) -> None:
        """Puts the config in the place of the one that was there, now that it fits the checkpoint."""
        with explained(self.folder, "writing the config"):
            keep_config(self.folder, self._config)

    def _choose(self) -> int | None:
        for step in checkpoint_steps(self.folder):
            damage = find_damage(self.folder, step)
            if damage is None:
                return step
            self._set_aside(step, damage)
        damaged = self.folder / "damaged"
        if damaged.is_dir() and any(damaged.iterdir()):
            raise ValueError(
                f"{self.folder} has no whole checkpoint, and damaged ones in {damaged}. Put one back "
                f"that is whole after all (mv {damaged}/STEP {self.folder}/checkpoints/STEP), or give "
                f"another --workdir to start anew"
            )
        return None

    def _set_aside(self, step: int, damage: str) -> None:
        folder = self.folder / "damaged"
        place, number = folder / str(step), 1
        with explained(self.folder, "setting a damaged checkpoint aside"):
            folder.mkdir(exist_ok=True)
            while place.exists():
                number += 1
                place = folder / f"{step}_{number}"
            os.rename(self.folder / "checkpoints" / str(step), place)
        logging.warning(
            "checkpoint of step %d is damaged (%s), and now in %s; taking the one before",
            step,
            damage,
            place,
        )

    def wait(self) -> None:
        """Waits until everything is written, and deletes checkpoints that are too many.

        Raises:
          RunFolderError: if the folder refused something, or is not there any more.
        """
        if self._lock is not None:
            self._lock.check()
        with explained(self.folder, "writing a checkpoint"):
            self._checkpointer.wait_until_finished()
            if not self._writes:
                return
            losses = validation_losses(self.folder) if self._keep.best else {}
            for step in superfluous(checkpoint_steps(self.folder), self._keep, losses):
                old = self.folder / "checkpoints" / str(step)
                gone = old.with_name(old.name + _DELETED)
                os.rename(old, gone)
                shutil.rmtree(gone)

    def close(self) -> None:
        """Waits until everything is written, and lets others have the folder."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()
            if self._lock is not None:
                self._lock.release()


def _make_checkpointer(seal: Callable[[], None], shared: bool) -> ocp.AsyncCheckpointer:
    """Orbax's writer.

    Args:
      seal: called where a checkpoint is written, before it gets its name.
      shared: whether all processes write into one folder. If not, each makes its own, and the files are
        those of one folder that all had written into, apart from which of them has which.
    """
    if shared:
        return ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.AsyncOptions(post_finalization_callback=seal),
        )
    each = ocp.options.MultiprocessingOptions(primary_host=None)
    # Folders made in the background count as made as soon as one process has made its own.
    options = ocp.AsyncOptions(
        post_finalization_callback=seal, create_directories_asynchronously=False
    )
    # The usual one keeps a store of what is told of arrays, which every handler that reads sets back to
    # waiting for the first process.
    arrays = ocp.type_handlers.ArrayHandler(primary_host=None, array_metadata_store=None)
    # Without OCDBT each piece of an array is a file: with it one process must see those of all.
    tree = lambda: ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        multiprocessing_options=each,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, arrays)),
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=each, async_options=options),
        params=tree(),
        rest=tree(),
        data=ocp.JsonCheckpointHandler(multiprocessing_options=each),
    )
    return ocp.AsyncCheckpointer(handler, async_options=options, multiprocessing_options=each)
