"""The config of a run, kept in its folder."""

import json
import pathlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

import hope_jax
from hope_jax.data.whole_file import write_whole
from hope_jax.runs.run_tokenizer import check_tokenizer, own_tokenizer

# What changes only where a run is computed, what it keeps in memory, or how one looks at it: its numbers
# stay the same, to rounding.
_FREE = ("mesh", "accumulate", "checkpoint", "evaluate", "log", "model.remat", "optimizer.skips")
# What changes how the weights go on from where they are, and fits every checkpoint of the run.
RATES = (
    "optimizer.learning_rate",
    "optimizer.warmup_steps",
    "optimizer.final_fraction",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.skip_above",
)

# Under this key the file says of which version it is. It was not written before 0.2.0, when arguments
# of these optimisers, and these settings of the memories, had other defaults.
_VERSION = "hope_jax"
_ARGUMENTS_BEFORE = {"m3": {"alpha": 0.5, "slow_every": 16, "b3": 0.9, "nesterov": False}}
_TITANS_BEFORE = {"output_norm": False}
_TITANS_NAMES_BEFORE = {"others_chunk": "generator_chunk"}

Change = tuple[str, Any, Any]


def load_config(workdir: str, flag: str = "--workdir") -> ConfigDict:
    """The config of the run in a folder, which a flag has given.

    Raises:
      ValueError: if there is no run, or its config cannot be read.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{flag}={workdir} holds no run (there is no {path}); train one first with "
            f"hope train --config=experiments/quickstart.py --workdir={workdir}"
        )
    try:
        return ConfigDict(_read(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def find_changes(
    workdir: str | pathlib.Path,
    config: ConfigDict,
    complete: Callable[[Any], ConfigDict] = ConfigDict,
    may_change: Collection[str] = (),
) -> list[Change]:
    """Compares a config with the one of the run that is there, if there is one.

    Args:
      workdir: folder of the run.
      config: to compare.
      complete: gives an older run's config what it does not say.
      may_change: settings on which the run's numbers depend, and that may differ all the same: `steps`
        and those of `RATES`.

    Returns:
      Settings that differ, each with the value there and here.

    Raises:
      ValueError: if others differ on which the run's numbers depend, or the tokenizer is another.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        return []
    try:
        mine, theirs = _plain(config), _plain(complete(_read(path)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    name = theirs.get("data", {}).get("tokenizer", "bytes")
    own = own_tokenizer(workdir, name)
    if own is not None:  # known by what it is, wherever it lies
        check_tokenizer(workdir, own, mine["data"]["tokenizer"])
        mine["data"]["tokenizer"] = name
    changes = [
        change
        for key in sorted({*mine, *theirs})
        for change in _differences(key, theirs.get(key), mine.get(key))
    ]
    refused = [key for key, *_ in changes if key not in may_change and not _is_free(key)]
    if refused:
        said = "; ".join(
            f"{k}: {old!r} there, {new!r} here" for k, old, new in changes if k in refused
        )
        if set(refused) <= {"steps", *RATES}:
            given = " ".join(f"--config.{key}={new}" for key, _, new in changes)
            mend = (
                f"To go on with it at these, leave out --config and give what changes: hope train "
                f"--workdir={workdir} {given}"
            )
        else:
            mend = (
                f"Give the same settings to continue it (without --config they are taken from there), "
                f"or begin another run from its weights: --workdir=NEW --from_run={workdir}"
            )
        raise ValueError(
            f"{path.parent} holds a run with other settings: {said}. {mend}; or give another --workdir "
            f"to start anew"
        )
    return changes


def keep_config(workdir: str | pathlib.Path, config: ConfigDict) -> None:
    """Writes the config to a run's folder."""
    text = json.dumps({_VERSION: hope_jax.__version__, **_plain(config)}, indent=2) + "\n"
    write_whole(pathlib.Path(workdir) / "config.json", text)


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in _FREE)


def _plain(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json_best_effort())


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"it is damaged ({error}); write the run's config there again, as JSON"
        ) from error
    if values.pop(_VERSION, None) is None:
        optimizer, model = (values.get(key) for key in ("optimizer", "model"))
        before = (
            _ARGUMENTS_BEFORE.get(optimizer.get("name", "")) if _is_section(optimizer) else None
        )
        if before:
            optimizer["arguments"] = {**before, **(optimizer.get("arguments") or {})}
        if _is_section(model):
            theirs = model.get("titans") or {}
            theirs = {_TITANS_NAMES_BEFORE.get(name, name): theirs[name] for name in theirs}
            model["titans"] = {**(_TITANS_BEFORE if _has_memories(model) else {}), **theirs}
    return values


def _is_section(value: Any) -> bool:
    return isinstance(value, dict)


def _has_memories(model: dict[str, Any]) -> bool:
    used = model.get("pattern") or (model.get("sequence_layer", "titans"),)
    return set(used) != {"attention"}


def _differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield name, old, new
