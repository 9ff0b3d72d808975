"""Settings: dataclasses whose fields have a type, a default, a meaning and a range, written once.

>>> @dataclasses.dataclass(frozen=True)
... class Walk:
...     steps: int = setting("how many", least=1)
...     length: float = setting("of a step, in metres", 0.7, above=0)
...
...     def __post_init__(self):
...         check_fields(self)
>>> read_settings(Walk, {"steps": 3})
Walk(steps=3, length=0.7)
>>> read_settings(Walk, {"steps": 3, "length": -1})
Traceback (most recent call last):
hope_jax.settings.SettingError: length=-1 must be a finite number above 0; the default is 0.7
"""

import contextlib
import dataclasses
import difflib
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, Union

from hope_jax.named import find, name_of

T = TypeVar("T")


class SettingError(ValueError):
    """A setting does not fit; the message begins with its dotted key."""


class Row(NamedTuple):
    """What there is to say of one setting.

    Attributes:
      key: dotted.
      hint: its type, as annotated.
      default: `dataclasses.MISSING` if it must be given.
      allowed: type and range, in words.
      meaning: in words.
      section: dataclass of the settings it holds, if it does; they have rows of their own.
    """

    key: str
    hint: Any
    default: Any
    allowed: str
    meaning: str
    section: type | None


class _Unfit(Exception):
    """A value is of another type, or out of range."""


class _NotFound(Exception):
    """A name names nothing, or a thing has no name."""


def setting(
    meaning: str,
    default: Any = dataclasses.MISSING,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    also: float | None = None,
    section: type | None = None,
    derived: Collection[str] = (),
) -> Any:
    """A field of a dataclass of settings.

    Its annotation says its type. `Callable` is a function or class of whoever writes the config; its
    value is the dotted name by which `hope_jax.named.find` finds it.

    Args:
      meaning: in words, without a full stop.
      default: if it need not be given.
      least: smallest value, of a number and of each number in a tuple.
      most: largest value.
      above: what it must be greater than.
      below: what it must be less than.
      also: a number that is allowed although it lies outside.
      section: dataclass of the settings that a mapping in this field holds.
      derived: fields of `section` that whoever makes it knows, and that the mapping does not hold.
    """
    limits = {"above": above, "least": least, "below": below, "most": most}
    metadata = {
        "meaning": meaning,
        "limits": {name: limit for name, limit in limits.items() if limit is not None},
        "also": also,
        "section": section,
        "derived": frozenset(derived),
    }
    return dataclasses.field(default=default, metadata=metadata)


def read_settings(cls: type[T], values: Any) -> T:
    """Makes a dataclass of settings from a mapping such as a `ConfigDict`.

    Args:
      cls: the dataclass.
      values: fields by name, sections as mappings; those left out take their defaults.

    Raises:
      SettingError: for a key that is none (with the nearest ones), one that is missing, and values
        that are of another type, out of range, or do not fit each other.
    """
    return cls(**_converted(cls, values))


def complete(cls: type, values: Any, derived: Collection[str] = ()) -> dict[str, Any]:
    """The settings of a section, each checked by itself, with the defaults of those left out."""
    defaults = {field.name: field.default for field in _fields(cls, derived)}
    return {**defaults, **_converted(cls, values, derived)}


def check_fields(instance: Any) -> None:
    """Checks and converts each field in place; `__post_init__` calls it first.

    An int becomes a float where that is wanted, a list a tuple, and sections are completed.
    """
    values = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
    for name, value in _converted(type(instance), values).items():
        object.__setattr__(instance, name, value)


def as_values(instance: Any) -> dict[str, Any]:
    """All settings as nested dicts, as `read_settings` takes them."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return as_values(value)
        return {name: plain(value[name]) for name in value} if _is_mapping(value) else value

    fields = dataclasses.fields(instance)
    return {field.name: plain(getattr(instance, field.name)) for field in fields}


def describe(cls: type, derived: Collection[str] = (), within: str = "") -> Iterator[Row]:
    """A row for every setting; a section's comes before those of what it holds."""
    hints = _hints(cls)
    for field in _fields(cls, derived):
        hint, key = hints[field.name], within + field.name
        section = _section(field, hint)
        allowed, meaning = _allowed(field, hint), _about(field, "meaning", "")
        yield Row(key, hint, field.default, allowed, meaning, section)
        if section is not None:
            yield from describe(section, _about(field, "derived", ()), key + ".")


def unknown_key(key: str, known: Iterable[str]) -> SettingError:
    """The error for a key that is no setting, with the nearest of those that are."""
    known = list(known)
    # First those whose section was forgotten or mistaken.
    last = key.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == last]
    near += [name for name in difflib.get_close_matches(key, known) if name not in near]
    hint = f"nearest: {', '.join(near[:3])}" if near else f"there are {', '.join(known)}"
    return SettingError(f"{key} is no setting; {hint}")


@contextlib.contextmanager
def located(section: str) -> Iterator[None]:
    """Puts a section's name before the errors of what is read within."""
    try:
        yield
    except SettingError as error:
        raise SettingError(f"{section}.{error}") from error
    except ValueError as error:
        raise SettingError(f"{section}: {error}") from error


def _fields(cls: type, derived: Collection[str] = ()) -> list[Any]:
    return [field for field in dataclasses.fields(cls) if field.name not in derived]


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _about(field: Any, what: str, otherwise: Any) -> Any:
    """What `setting` has noted; fields of somebody's own module may be plain ones."""
    return field.metadata.get(what, otherwise)


def _section(field: Any, hint: Any) -> type | None:
    return (
        hint
        if isinstance(hint, type) and dataclasses.is_dataclass(hint)
        else _about(field, "section", None)
    )


def _converted(cls: type, values: Any, derived: Collection[str] = ()) -> dict[str, Any]:
    """The given settings, each checked by itself."""
    fields, hints = {field.name: field for field in _fields(cls, derived)}, _hints(cls)
    for name in values:
        if name not in fields:
            raise unknown_key(name, fields)
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in values:
            raise SettingError(
                f"{name} must be given: {_about(field, 'meaning', _allowed(field, hints[name]))}"
            )
    return {name: _value(fields[name], hints[name], values[name]) for name in values}


def _value(field: Any, hint: Any, value: Any) -> Any:
    section = _section(field, hint)
    if section is not None and isinstance(value, section):
        return value
    if section is not None and _is_mapping(value):
        with located(field.name):
            if section is hint:
                return read_settings(section, value)
            return complete(section, value, _about(field, "derived", ()))
    try:
        return _fit(hint, value, field)
    except _NotFound as error:
        raise SettingError(f"{field.name}={_short(value)}: {error}") from error
    except _Unfit:
        default = field.default
        mend = f"; the default is {default!r}" if not _is_mapping(default) else ""
        mend = "" if default is dataclasses.MISSING else mend
        raise SettingError(
            f"{field.name}={_short(value)} must be {_allowed(field, hint)}{mend}"
        ) from None


def _fit(hint: Any, value: Any, field: Any) -> Any:
    """The value as the type has it."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        for option in options:
            with contextlib.suppress(_Unfit):
                return _fit(option, value, field)
    elif origin is tuple and isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return tuple(_fit(options[0], item, field) for item in items)
    elif origin is Literal and isinstance(value, str) and value in options:
        return value
    elif hint is type(None) and value is None:
        return None
    elif hint in (bool, str) and isinstance(value, hint):
        return value
    elif origin is Callable and (callable(value) or (isinstance(value, str) and "." in value)):
        try:
            if not isinstance(value, str):
                return name_of(value)
            find(value)
        except ValueError as error:
            raise _NotFound(error) from error
        return value
    elif origin is not None and _is_mapping(value) and issubclass(origin, Mapping):
        return {name: value[name] for name in value}
    elif hint in (int, float) and not isinstance(value, bool):
        kind = numbers.Integral if hint is int else numbers.Real
        if isinstance(value, kind):
            with contextlib.suppress(OverflowError):  # a whole number beyond every float
                number = hint(value)
                if _lies_within(number, field):
                    return number
    raise _Unfit


def _lies_within(number: float, field: Any) -> bool:
    limits = _about(field, "limits", {})
    inside = (
        number >= limits.get("least", -math.inf)
        and number <= limits.get("most", math.inf)
        and number > limits.get("above", -math.inf)
        and number < limits.get("below", math.inf)  # which infinity is not, nor nan
    )
    return inside or number == _about(field, "also", None)


def _allowed(field: Any, hint: Any) -> str:
    """Type and range in words."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if _section(field, hint) is not None:
        return "a section" + (" or None" if type(None) in options else "")
    if origin in (Union, types.UnionType):
        return " or ".join(_allowed(field, option) for option in options)
    if origin is tuple:
        item = _allowed(field, options[0])
        return f"a tuple, each {item}"
    if origin is Literal:
        return f"one of {', '.join(options)}"
    if origin is Callable:
        return "what is your own by its name, such as my_file.my_name"
    if origin is not None:
        return "a mapping"
    if hint is type(None):
        return "None"
    if hint in (bool, str):
        return "True or False" if hint is bool else "text"
    words = {"least": "at least", "most": "at most", "above": "above", "below": "below"}
    limits = _about(field, "limits", {})
    noun = "a whole number" if hint is int else "a number"
    if hint is float and not limits.keys() & {"most", "below"}:
        noun = "a finite number"
    text = " and ".join(f"{words[name]} {_number(limit)}" for name, limit in limits.items())
    also = _about(field, "also", None)
    return f"{noun} {text}".rstrip() + (f", or {_number(also)}" if also is not None else "")


def _number(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "to_dict")  # a ConfigDict is no Mapping


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
