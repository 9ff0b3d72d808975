"""A compiled program's text, XLA's HLO, as operations."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_RESULT = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_KIND = re.compile(r"\s*([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_PARENTHESES = re.compile(r"[()]")
_NOT_ARRAYS = ("token", "opaque")


class Operation(NamedTuple):
    """One line of a program.

    Attributes:
      name: of its result.
      result: the result's type, as it is written.
      kind: such as `dot` or `fusion`.
      operands: names of what it takes; of a constant its value.
      rest: what is written behind them.
    """

    name: str
    result: str
    kind: str
    operands: tuple[str, ...]
    rest: str

    def attribute(self, name: str) -> str | None:
        """What is written behind `name=`, up to the next comma outside of braces, or None."""
        found = re.search(rf"(?:^|[ ,]){name}=(\{{[^}}]*\}}|[^\s,]+)", self.rest)
        return found[1] if found else None

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations that stand behind attributes."""
        texts = [self.attribute(name) or "" for name in attributes]
        return [name for text in texts for name in re.findall(r"[\w.\-]+", text)]


class Module(NamedTuple):
    """A program.

    Attributes:
      computations: operations of each, by name.
      entry: name of the one that is run.
    """

    computations: dict[str, list[Operation]]
    entry: str


def parse(text: str) -> Module:
    """Reads a program, as `compiled.as_text()` writes it."""
    computations: dict[str, list[Operation]] = {}
    operations: list[Operation] | None = None
    entry = ""
    for line in text.splitlines():
        if operations is None:
            head = _HEAD.match(line)
            if head:
                operations = computations[head[2]] = []
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            operations = None
        else:
            operation = _read(line)
            if operation is not None:
                operations.append(operation)
    return Module(computations, entry)


def arrays(result: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Element type and sizes of each array in a type.

    Example:
      >>> list(arrays("(f32[8,128]{1,0:T(8,128)}, u32[])"))
      [('f32', (8, 128)), ('u32', ())]
    """
    for kind, sizes in _ARRAY.findall(result):
        if kind not in _NOT_ARRAYS:
            yield kind, tuple(int(size) for size in sizes.split(",") if size)


def num_bytes(kind: str, sizes: tuple[int, ...]) -> int:
    """Bytes of an array.

    Example:
      >>> num_bytes("bf16", (2, 3)), num_bytes("pred", (4,)), num_bytes("s4", (4,))
      (12, 4, 2)
    """
    width = re.search(r"\d+", kind)
    bits = int(width[0]) if width else 8  # pred
    return math.ceil(math.prod(sizes) * bits / 8)


def _read(line: str) -> Operation | None:
    head = _RESULT.match(line)
    if head is None:
        return None
    start = head.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    kind = _KIND.match(line, end)
    if kind is None:
        return None
    last = _closing(line, kind.end() - 1)
    inner = re.sub(r"/\*.*?\*/", "", line[kind.end() : last - 1])
    return Operation(head[1], line[start:end], kind[1], _operands(inner), line[last:])


def _operands(text: str) -> tuple[str, ...]:
    named = re.findall(r"%([\w.\-]+)", text)  # types may stand before them
    return tuple(named) if named else tuple(part.strip() for part in text.split(",") if part)


def _closing(line: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for found in _PARENTHESES.finditer(line, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    return len(line)
