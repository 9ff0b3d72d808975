"""Configs on the command line: their file, changes of single settings, and a table of all settings.

`--config=FILE.py:VARIANT` names a function's result, `--config.model.width=64` changes it. What a value
on the command line means follows from the setting's type, so that every setting can be given, also one
that is None and those of a section that is off.
"""

import ast
import contextlib
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from absl import flags
from ml_collections import ConfigDict

from hope_jax.named import failure, look_in
from hope_jax.runs.config_file import load_config_file
from hope_jax.settings import Row, SettingError, describe, unknown_key


def define_config_flags() -> None:
    """Defines the flags of a command that reads a config."""
    flags.DEFINE_string("config", None, "Config file, FILE.py or FILE.py:VARIANT.")
    define_set_flag()


def define_set_flag() -> None:
    """Defines the flag that changes settings, to which `--config.KEY=VALUE` is turned."""
    flags.DEFINE_multi_string(
        "set", [], "A setting, such as steps=500; --config.steps=500 is the same"
    )


def as_changes(arguments: Sequence[str]) -> list[str]:
    """Arguments with `--config.KEY=VALUE`, or the value as the next argument, as `--set=KEY=VALUE`.

    Example:
      >>> as_changes(["--config=a.py", "--config.steps=5", "--config.seed", "1", "--noconfig.data.x"])
      ['--config=a.py', '--set=steps=5', '--set=seed=1', '--set=data.x=False']
    """
    changed = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        found = re.fullmatch(r"--?(no)?config\.([^=]*)(=.*)?", argument, re.DOTALL)
        if found is None:
            changed.append(argument)
            continue
        negated, key, value = found.groups()
        if value is None:
            named = left and not left[0].startswith("--") and not negated
            value = "=" + (left.pop(0) if named else str(not negated))
        changed.append(f"--set={key}{value}")
    return changed


def read_config(spec: str) -> ConfigDict:
    """The config that a file gives; what it names is looked for beside it too.

    Args:
      spec: path of a file with `get_config`, and a variant after a colon if it takes one.

    Raises:
      ValueError: if there is no such file or variant, or the file fails.
    """
    path, colon, variant = spec.partition(":")
    look_in(Path(path).parent)
    try:
        module = load_config_file(path)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise ValueError("there is no function get_config in it")
        given = [variant] if colon else []
        try:
            inspect.signature(get_config).bind(*given)
        except TypeError:
            needs = "takes no variant; leave out the colon" if colon else "needs a variant"
            raise ValueError(f"its get_config {needs}") from None
        config = get_config(*given)
    except ValueError as error:
        raise ValueError(f"--config={spec}: {error}") from error
    except Exception as error:  # whatever may be wrong with somebody's file
        said = failure(error, path)
        raise ValueError(f"--config={spec}: the file fails with {said}") from error
    if not isinstance(config, ConfigDict | Mapping):
        raise ValueError(
            f"--config={spec}: get_config gives {type(config).__name__}, not a ConfigDict; is there a "
            f"return?"
        )
    return ConfigDict(config)


def change_settings(cls: type, config: ConfigDict, changes: Iterable[str]) -> ConfigDict:
    """A config with some settings changed.

    Args:
      cls: the dataclass of the settings.
      config: that is left as it is.
      changes: texts such as `model.width=64`.

    Raises:
      SettingError: for a text that is none, and for a key that is no setting, with the nearest.
    """
    values = config.to_dict()
    rows = {row.key: row for row in describe(cls)}
    for text in changes:
        key, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"{text} has no value; write {text}=VALUE")
        hint = _hint(rows, key)
        *sections, name = key.split(".")
        inner = values
        for section in sections:
            if inner.get(section) is None:
                inner[section] = {}  # a section that was off
            inner = inner[section]
            if not isinstance(inner, dict):
                raise SettingError(f"{key}: the config has no section there, but {inner!r}")
        inner[name] = parse(hint, value)
    return ConfigDict(values)


def parse(hint: Any, text: str) -> Any:
    """The value that a text is for a setting of some type; what does not fit is refused later.

    Example:
      >>> parse(float | None, "none"), parse(tuple[int, ...] | None, "3"), parse(str, "3")
      (None, (3,), '3')
    """
    kinds = (
        typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    )
    if type(None) in kinds and text.lower() == "none":
        return None
    if str in kinds or any(typing.get_origin(kind) is Literal for kind in kinds):
        return text
    value: Any = text
    with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = ast.literal_eval(text)
    if text.lower() in ("true", "false", "none"):
        value = {"true": True, "false": False, "none": None}[text.lower()]
    if isinstance(value, str) and (float in kinds or hint is Any):
        with contextlib.suppress(ValueError):  # nan and inf, to be refused as such
            return float(value)
    others = [kind for kind in kinds if kind is not type(None)]
    if all(typing.get_origin(kind) is tuple for kind in others) and not isinstance(
        value, tuple | list
    ):
        given = value.split(",") if isinstance(value, str) else [value]
        return tuple(
            part.strip() if isinstance(part, str) else part for part in given if part != ""
        )
    return value


def config_table(cls: type, config: ConfigDict) -> str:
    """All settings with value, meaning, type and range."""
    values = config.to_dict()
    lines = []
    for row in describe(cls):
        *sections, name = row.key.split(".")
        inner: Any = values
        for section in sections:
            inner = None if inner is None else inner[section]
        about = f"# {row.meaning}; {row.allowed}"
        if row.section is not None and inner[name] is not None:
            lines += ["", f"# {row.key}: {row.meaning}"]
        elif inner is None:  # of a section that is off
            default = "" if row.default is dataclasses.MISSING else repr(row.default)
            lines.append(f"{f'#   {row.key} = {default}':<48} {about}")
        else:
            lines.append(f"{f'{row.key} = {inner[name]!r}':<48} {about}")
    return "\n".join(lines).strip() + "\n"


def _hint(rows: Mapping[str, Row], key: str) -> Any:
    """The type of a setting, or Any below a mapping that holds what it will."""
    if key in rows:
        return rows[key].hint
    parts = key.split(".")
    for end in range(1, len(parts)):
        row = rows.get(".".join(parts[:end]))
        if row is not None and row.section is None and typing.get_origin(row.hint) is Mapping:
            return Any
    raise unknown_key(key, rows)
