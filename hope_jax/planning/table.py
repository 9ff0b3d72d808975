"""Plans as a table, one beside the other, and what is to be said of them."""

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hope_jax.counts import count
from hope_jax.planning.cost import KERNEL
from hope_jax.planning.plan import Plan
from hope_jax.planning.topology import GIB

PARTS = 4  # of each model whose times are told, the dearest


class Cell(NamedTuple):
    """What stands in a row.

    Attributes:
      text: as it is printed.
      number: that it is of, to be compared; None if there is none.
    """

    text: str
    number: float | None = None


def as_markdown(plans: Mapping[str, Plan]) -> str:
    """The table of some plans, with a column for the first over each of the others.

    Args:
      plans: by their name.
    """
    costs = [plan.cost for plan in plans.values() if plan.cost is not None]
    parts = list(dict.fromkeys(part for cost in costs for part in list(cost.parts)[:PARTS]))
    columns = [_column(plan, parts) for plan in plans.values()]
    labels = _merged([list(column) for column in columns])
    first, *others = plans
    head = ["", *plans, *(f"{first} / {other}" for other in others)]
    lines = [head, ["---"] * len(head)]
    for label in labels:
        cells = [column.get(label, Cell("none")) for column in columns]
        ratios = [_ratio(cells[0], cell) for cell in cells[1:]]
        lines.append([label, *(cell.text for cell in cells), *ratios])
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    return "".join(
        "| "
        + " | ".join(
            cell.ljust(width, "-" if cell == "---" else " ")
            for cell, width in zip(line, widths, strict=True)
        )
        + " |\n"
        for line in lines
    )


def _merged(columns: list[list[str]]) -> list[str]:
    """The labels of all columns, each behind the one that it follows in its own."""
    labels: list[str] = []
    for column in columns:
        place = 0
        for label in column:
            if label not in labels:
                labels.insert(place, label)
            place = labels.index(label) + 1
    return labels


def notes(plan: Plan) -> list[str]:
    """What is to be known of a plan beside its table, a sentence or two each."""
    lines = []
    memory = plan.memory
    if not memory.fits:
        lines.append(
            f"does not fit: a chip needs {_gib(memory.total)} and has {_gib(memory.limit)}"
        )
    if plan.seconds is not None:
        lines.append(_left_out(plan))
    if plan.whole and plan.mesh["fsdp"] * plan.mesh["tensor"] == 1:
        lines.append(
            f"every chip holds all {count(len(plan.whole), 'array')} of parameter size whole, since "
            f"mesh.fsdp and mesh.tensor are 1"
        )
    elif plan.whole:
        lines.append(f"left whole on every chip: {', '.join(plan.whole)}")
    if plan.formed:
        lines.append(f"formed whole on every chip within the step: {', '.join(plan.formed)}")
    if plan.cost is not None and plan.cost.endless:
        lines.append(
            f"{count(plan.cost.endless, 'loop')} of which it is not known how often they turn count once"
        )
    return lines


def _left_out(plan: Plan) -> str:
    unpriced = collections.Counter(plan.cost.unpriced)
    most = ", ".join(f"{number:,} {kind}" for kind, number in unpriced.most_common(5))
    kernels = ""
    if unpriced[KERNEL]:
        kernels = (
            f". Among these are {count(unpriced[KERNEL], 'run')} of the memories' kernels, FLOPs and "
            f"all: with model.titans.memory_form=xla they are operations with a time, and take longer"
        )
    return (
        f"the compiler's estimate adds up its cycles for each operation, at "
        f"{plan.devices.chip.clock / 1e9:.2f} GHz; it is no measurement. It leaves out "
        f"{count(sum(unpriced.values()), 'operation')} that have none (the most: {most}), all "
        f"collectives, waits for data, evaluation and checkpoints{kernels}"
    )


def _column(plan: Plan, parts: Sequence[str]) -> dict[str, Cell]:
    config, memory, cost = plan.config, plan.memory, plan.cost
    tokens = config.steps * plan.tokens
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    rows = {
        "parameters": Cell(f"{plan.parameters:,}", plan.parameters),
        "devices": Cell(f"{plan.chips} {plan.devices.devices[0].device_kind}"),
        "mesh": Cell(mesh),
        "tokens of a step": Cell(
            f"{plan.tokens:,} ({config.data.batch_size} x {config.data.sequence_length:,}, "
            f"in {count(config.accumulate, 'part')})",
            plan.tokens,
        ),
        "memory of a chip": Cell(memory_of(plan), memory.total),
        "- parameters": Cell(_gib(memory.parameters), memory.parameters),
        "- optimiser": Cell(_gib(memory.optimizer), memory.optimizer),
        "- batch and padding": Cell("not told"),
        "- temporaries": Cell("not told"),
    }
    if memory.temporaries is not None:
        rows["- batch and padding"] = Cell(_gib(memory.batch), memory.batch)
        rows["- temporaries"] = Cell(_gib(memory.temporaries), memory.temporaries)
    useful, inner = (flops * plan.tokens for flops in plan.useful)
    rows["useful FLOPs of a step"] = Cell(_flops(useful), useful)
    rows["- of inner loops"] = Cell(_flops(inner), inner)
    if memory.limit is not None:
        rows["fits"] = Cell("yes" if memory.fits else "no")
    if cost is None:
        return rows
    rows["FLOPs as compiled"] = Cell(_flops(cost.flops * plan.chips), cost.flops * plan.chips)
    kinds: dict[str, list[int]] = {}
    for one in cost.collectives:
        sums = kinds.setdefault(one.kind, [0, 0])
        sums[0] += one.runs
        sums[1] += one.bytes
    for kind in sorted(kinds):
        runs, size = kinds[kind]
        rows[f"{kind} of a step"] = Cell(f"{runs:,}, {size / 1e9:.3g} GB", size)
    operations = sum(share.operations for share in cost.kinds.values())
    rows["operations of a step"] = Cell(f"{operations:,}", operations)
    rows["compiled in"] = Cell(f"{plan.compiled_in:.0f} s")
    if plan.seconds is None:
        return {**rows, "compiler's estimate": Cell("none is made for these devices")}
    return rows | _estimate(plan, parts, tokens)


def _estimate(plan: Plan, parts: Sequence[str], tokens: int) -> dict[str, Cell]:
    cost, clock = plan.cost, plan.devices.chip.clock
    rows = {"compiler's estimate of a step": Cell(_time(plan.seconds), plan.seconds)}
    for name, share in cost.kinds.items():
        rows[f"- {name}"] = Cell(
            f"{_time(share.cycles / clock)} in {share.operations:,}", share.cycles
        )
    for name in parts:
        if name in cost.parts:
            cycles = cost.parts[name].cycles
            rows[f"- of {name}"] = Cell(_time(cycles / clock), cycles)
    links = sum(one.bytes for one in cost.collectives) / plan.devices.chip.links
    rows["collectives, at the links' peak"] = Cell(_time(links), links)
    days = plan.seconds * plan.config.steps / 86400
    speed = plan.tokens / plan.seconds
    if plan.mfu is not None:
        rows["MFU by the estimate"] = Cell(f"{plan.mfu:.2%}", plan.mfu)
    rows["tokens/s"] = Cell(f"{speed:,.0f}", speed)
    rows["days for all tokens"] = Cell(f"{days:.3g} ({tokens:,})", days)
    rows["chip-hours"] = Cell(f"{days * 24 * plan.chips:,.3g}", days * 24 * plan.chips)
    return rows


def memory_of(plan: Plan) -> str:
    """What a chip needs, of what it has."""
    total, limit = plan.memory.total, plan.memory.limit
    return _gib(total) + (f" of {_gib(limit)}" if limit else "")


def _ratio(first: Cell, other: Cell) -> str:
    if first.number is None or not other.number:
        return ""
    return f"{first.number / other.number:.2f}"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / GIB * 1024:.1f} MiB"


def _flops(number: float) -> str:
    return f"{number / 1e12:.3g} T"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
