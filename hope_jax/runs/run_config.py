"""The config of a run, kept in its folder."""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from hope_jax.data.whole_file import write_whole

# What must agree for a run to be continued: other settings may change in between.
_BINDING = ("model", "data", "optimizer", "seed", "steps", "accumulate")


def load_config(workdir: str) -> ConfigDict:
    """The config of the run in a folder.

    Raises:
      ValueError: if there is no run, or its config cannot be read.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"--workdir={workdir} holds no run (there is no {path}); train one first with "
            f"hope train --config=experiments/quickstart.py --workdir={workdir}"
        )
    try:
        return ConfigDict(_read(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_config(
    workdir: str | pathlib.Path,
    config: ConfigDict,
    complete: Callable[[Any], ConfigDict] = ConfigDict,
) -> None:
    """Compares a config with the one of the run that is there, if there is one.

    Args:
      workdir: folder of the run.
      config: to compare.
      complete: gives an older run's config what it does not say.

    Raises:
      ValueError: if settings differ on which the run's numbers depend.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        return
    try:
        mine, theirs = _plain(config), _plain(complete(_read(path)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
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


def keep_config(workdir: str | pathlib.Path, config: ConfigDict) -> None:
    """Writes the config to a run's folder."""
    text = json.dumps(_plain(config), indent=2) + "\n"
    write_whole(pathlib.Path(workdir) / "config.json", text)


def _plain(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json_best_effort())


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"it is damaged ({error}); write the run's config there again, as JSON"
        ) from error


def _differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield name, old, new
