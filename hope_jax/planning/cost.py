"""What a compiled program costs: FLOPs, the compiler's own estimate of time, and collectives."""

import collections
import re
from typing import NamedTuple

from hope_jax.planning.hlo import Module, Operation, arrays, num_bytes, parse
from hope_jax.planning.products import product_flops

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
    "collective-permute",
)
# What moves nothing and takes no time of its own.
_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "iota",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "add-dependency",
)
_MOVES = (
    "copy",
    "copy-start",
    "transpose",
    "reshape",
    "slice",
    "slice-start",
    "dynamic-slice",
    "concatenate",
)
# Of a gather that is cut up to hide behind products, the pieces share a channel; one of them begins it.
_BEGINS = "AsyncCollectiveStart"


class Share(NamedTuple):
    """What operations of one kind cost.

    Attributes:
      cycles: by the compiler's estimate.
      operations: how many are run.
    """

    cycles: float
    operations: int


class Collective(NamedTuple):
    """A collective in the program.

    Attributes:
      kind: such as `all-gather`.
      sizes: of the array it forms on each device, or takes where it scatters; of the largest of several.
      bytes: of all of them, in all runs.
      runs: how often it is done in a step.
      source: what in the traced program it is of.
    """

    kind: str
    sizes: tuple[int, ...]
    bytes: int
    runs: int
    source: str


class Cost(NamedTuple):
    """The cost of one run of a program on one device; loops count as often as they turn.

    Attributes:
      flops: of matrix products.
      kinds: cycles and operations, of `products`, `moves`, `other fusions` and others.
      parts: the same, by the part of the model that the operations are of.
      collectives: all of them.
      unpriced: operations that the compiler gives no time for, by kind.
      endless: loops of which it cannot be told how often they turn; they count once.
    """

    flops: int
    kinds: dict[str, Share]
    parts: dict[str, Share]
    collectives: list[Collective]
    unpriced: dict[str, int]
    endless: int

    @property
    def cycles(self) -> float:
        """Of all operations, one after the other."""
        return sum(share.cycles for share in self.kinds.values())


def program_cost(text: str) -> Cost:
    """The cost of a program.

    Args:
      text: as `compiled.as_text()` gives it.
    """
    walk = _Walk(parse(text))
    walk.visit(walk.module.entry, 1)
    return Cost(
        walk.flops,
        _shares(walk.kinds),
        _shares(walk.parts),
        walk.collectives,
        dict(walk.unpriced),
        walk.endless,
    )


def _shares(found: dict[str, list]) -> dict[str, Share]:
    dearest = sorted(found, key=lambda name: -found[name][0])
    return {name: Share(*found[name]) for name in dearest}


def _part(operation: Operation) -> str:
    """The part of the model that an operation is of, by the modules that it was traced in."""
    name = _source(operation)
    found = re.search(r"/blocks/(\w+)", name) or re.search(r"LanguageModel\._?(\w+)[^.]*$", name)
    return found[1] if found else "the rest"


def _source(operation: Operation) -> str:
    found = re.search(r'op_name="([^"]*)"', operation.rest)
    return found[1] if found else ""


# What the program calls a kernel of Pallas, and what is called so here.
_KERNEL = 'custom_call_target="tpu_custom_call"'
KERNEL = "kernel"


class _Walk:
    """Adds up a program from its entry."""

    def __init__(self, module: Module):
        self.module = module
        self.flops = self.endless = 0
        self.kinds: dict[str, list] = collections.defaultdict(lambda: [0.0, 0])
        self.parts: dict[str, list] = collections.defaultdict(lambda: [0.0, 0])
        self.collectives: list[Collective] = []
        self.unpriced: collections.Counter[str] = collections.Counter()
        self._within: dict[str, int] = {}
        self._begun = self._channels_that_begin()

    def visit(self, name: str, times: int) -> None:
        """Counts a computation that is run so often."""
        operations = self.module.computations[name]
        results = {operation.name: operation.result for operation in operations}
        for operation in operations:
            if operation.kind == "while":
                turns = _turns(self.module, operation, operations)
                self.endless += turns is None
                (body,) = operation.called("body")
                self.visit(body, times * (1 if turns is None else turns))
            elif operation.kind == "conditional":
                branches = operation.called(
                    "branch_computations", "true_computation", "false_computation"
                )
                self.visit(max(branches, key=self._flops_within), times)
            elif operation.kind == "call":
                (called,) = operation.called("to_apply")
                self.visit(called, times)
            else:
                self._count(operation, product_flops(operation, results), times)

    def _count(self, operation: Operation, flops: int, times: int) -> None:
        for name in operation.called("calls"):
            flops += self._flops_within(name)
            for inner in self.module.computations[name]:
                self._note(inner, times, self.module.computations[name])
        self._note(operation, times, None)
        self.flops += flops * times
        if operation.kind in _FREE or operation.kind.endswith(("-done", "-update")):
            return
        priced = re.search(r'"estimated_cycles":"(\d+)"', operation.rest)
        kind = operation.kind
        if priced is None:
            own = _KERNEL in operation.rest
            self.unpriced[KERNEL if own else kind.removesuffix("-start")] += times
        if flops:
            kind = "products"
        elif kind in _MOVES:
            kind = "moves"
        elif kind == "fusion":
            kind = "other fusions"
        else:
            kind = "others"
        for share in (self.kinds[kind], self.parts[_part(operation)]):
            share[0] += float(priced[1]) * times if priced else 0.0
            share[1] += times

    def _flops_within(self, name: str) -> int:
        """FLOPs of a computation and of all that it calls, loops once."""
        if name not in self._within:
            operations = self.module.computations[name]
            results = {operation.name: operation.result for operation in operations}
            self._within[name] = sum(
                product_flops(operation, results)
                + sum(map(self._flops_within, operation.called("calls", "to_apply", "body")))
                for operation in operations
            )
        return self._within[name]

    def _note(self, operation: Operation, times: int, fusion: list[Operation] | None) -> None:
        kind = operation.kind.removesuffix("-start")
        if kind not in COLLECTIVES:
            return
        channel = operation.attribute("channel_id")
        if fusion is not None and channel in self._begun and not _begins(fusion):
            return  # a further piece of one that is counted where it begins
        if fusion is not None and kind == "all-reduce" and _is_cut(operation, fusion):
            kind = "reduce-scatter"  # what a TPU's compiler makes of it
        found = list(arrays(operation.result))
        if operation.kind.endswith("-start"):  # what is sent stands there too
            found = [max(found, key=lambda item: num_bytes(*item))]
        size = sum(num_bytes(*item) for item in found)
        if operation.kind.startswith("reduce-scatter"):
            size *= _group(operation)
        largest = max(found, key=lambda item: num_bytes(*item))
        self.collectives.append(
            Collective(kind, largest[1], size * times, times, _source(operation))
        )

    def _channels_that_begin(self) -> set[str | None]:
        return {
            operation.attribute("channel_id")
            for operations in self.module.computations.values()
            if _begins(operations)
            for operation in operations
            if operation.kind in COLLECTIVES
        }


def _begins(operations: list[Operation]) -> bool:
    return any(_BEGINS in operation.rest for operation in operations)


def _is_cut(operation: Operation, around: list[Operation]) -> bool:
    """Whether each device keeps its own piece of a result alone."""
    users = [user for user in around if operation.name in user.operands]
    return len(users) == 1 and users[0].kind == "dynamic-slice"


def _group(operation: Operation) -> int:
    """Devices among which a collective runs."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", operation.rest)
    if listed:
        return len(listed[1].split(","))
    grid = re.search(r"replica_groups=\[\d+,(\d+)\]", operation.rest)
    if grid:
        return int(grid[1])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", operation.rest)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        number = 1
        for axis in re.findall(r"'(\w+)'", mesh[2]):
            number *= int(sizes[axis])
        return number
    return 1


def _turns(module: Module, loop: Operation, around: list[Operation]) -> int | None:
    """How often a loop turns, or None if it does not say."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    (condition,) = loop.called("condition")
    found = list(_all_within(module, condition))
    compares = [operation for operation in found if operation.kind == "compare"]
    limits = [
        int(operation.operands[0])
        for operation in found
        if operation.kind == "constant"
        and operation.result.startswith(("s32[]", "s64[]", "u32[]"))
        and operation.operands
    ]
    if len(compares) != 1 or len(limits) != 1:
        return None
    direction = compares[0].attribute("direction")
    if direction not in ("LT", "LE"):
        return None
    return max(0, limits[0] + (direction == "LE") - _first(module, loop, around, condition))


def _first(module: Module, loop: Operation, around: list[Operation], condition: str) -> int:
    """The counter's value before the first turn: 0, where the compiler has taken none out of the loop."""
    by_name = {operation.name: operation for operation in around}
    counters = [
        operation
        for operation in module.computations[condition]
        if operation.kind == "get-tuple-element"
    ]
    state = by_name.get(loop.operands[0])
    if len(counters) != 1 or state is None or state.kind != "tuple":
        return 0
    value = by_name.get(state.operands[int(counters[0].attribute("index"))])
    while value is not None and value.kind in ("copy", "bitcast"):
        value = by_name.get(value.operands[0])
    return int(value.operands[0]) if value is not None and value.kind == "constant" else 0


def _all_within(module: Module, name: str):
    for operation in module.computations[name]:
        yield operation
        for called in operation.called("calls", "to_apply"):
            yield from _all_within(module, called)
