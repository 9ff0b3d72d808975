"""The table and the figure of what measure.py and needle.py have read.

    python experiments/retrofit/report.py --rows=experiments/retrofit/rows.jsonl --length=4096 \
        --needles=experiments/retrofit/needles.jsonl --picture=experiments/retrofit/position.png

prints the tables in Markdown. Of each run and setting the reporting documents are taken, with the step
that the tuning documents chose; differences are to --against, document by document, with standard errors
over documents.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from measure import BIN, Rows

QUARTERS = 4
Name = tuple[str, str]  # run and setting


def chosen(rows: Rows, length: int) -> dict[Name, list[dict[str, Any]]]:
    """The reporting rows of each run and setting, in the order in which they were begun.

    A setting that is not whole, since its run was stopped, is left out.
    """
    found: dict[tuple[Name, float | None], list[dict[str, Any]]] = {}
    for row in rows.found:
        if row["part"] == "reporting" and row["length"] == length:
            found.setdefault(((row["run"], row["setting"]), row["step"]), []).append(row)
    most = max(map(len, found.values()), default=0)
    return {name: group for (name, _), group in found.items() if len(group) == most}


def by_document(group: Sequence[dict[str, Any]], parts: int) -> dict[str, np.ndarray]:
    """Mean loss of each part of the positions, by document."""
    losses = lambda row: np.asarray(row["losses"], np.float64)
    return {row["document"]: losses(row).reshape(parts, -1).mean(1) for row in group}


def paired(
    group: Sequence[dict[str, Any]], against: Sequence[dict[str, Any]], parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean difference of each part of the positions over documents, and its standard error."""
    ours, theirs = by_document(group, parts), by_document(against, parts)
    differences = np.stack([ours[name] - theirs[name] for name in theirs if name in ours])
    error = differences.std(0, ddof=1) / len(differences) ** 0.5
    return differences.mean(0), error


def table(groups: dict[Name, list[dict[str, Any]]], against: Name) -> list[str]:
    """Losses, and differences to one setting, in Markdown."""
    length = len(groups[against][0]["losses"]) * BIN
    cuts = [f"{length * part // QUARTERS:,} on" for part in range(QUARTERS)]
    lines = [
        "| run | setting | step | nats | difference | " + " | ".join(cuts) + " |",
        "|---|---|---|---|---|" + "---|" * QUARTERS,
    ]
    for (run, setting), group in groups.items():
        whole = np.mean([np.mean(row["losses"]) for row in group])
        cells = [run, setting, str(group[0]["step"] or ""), f"{whole:.3f}"]
        if (run, setting) == against:
            parts = np.mean(list(by_document(group, QUARTERS).values()), axis=0)
            cells += ["", *(f"{loss:.3f}" for loss in parts)]
        else:
            for count in (1, QUARTERS):
                cells += [
                    f"{mean:+.3f} ± {error:.3f}"
                    for mean, error in zip(*paired(group, groups[against], count), strict=True)
                ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def needle_table(needles: Rows, length: int) -> list[str]:
    """How many nats likelier the number is that was said, in Markdown."""
    found: dict[Name, list[np.ndarray]] = {}
    for row in needles.found:
        if row["length"] == length:
            name = (row["run"], row["setting"])
            found.setdefault(name, []).append(np.asarray(row["answers"]))
    lines = []
    for (run, setting), answers in found.items():
        stack = np.stack(answers)
        gains = stack[:, :, 2] - stack[:, :, 1]
        error = gains.std(0, ddof=1) / len(gains) ** 0.5
        if not lines:
            distances = " | ".join(f"{distance:,.0f}" for distance in stack[0, :, 0])
            lines = [f"| run | setting | {distances} |", "|---|---|" + "---|" * len(error)]
        cells = (f"{mean:+.2f} ± {e:.2f}" for mean, e in zip(gains.mean(0), error, strict=True))
        lines.append(f"| {run} | {setting} | " + " | ".join(cells) + " |")
    return lines


def draw(groups: dict[Name, list[dict[str, Any]]], against: Name, path: Path) -> None:
    """Differences to one setting by position: dots, with two standard errors."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    others = [name for name in groups if name != against]
    runs = {run for run, _ in groups}
    length = len(groups[against][0]["losses"]) * BIN
    middles = (np.arange(QUARTERS) + 0.5) * length / QUARTERS
    for index, name in enumerate(others):
        mean, error = paired(groups[name], groups[against], QUARTERS)
        aside = (index - (len(others) - 1) / 2) * 0.7 * length / QUARTERS / max(1, len(others))
        label = ": ".join(name) if len(runs) > 1 else name[1]
        color, marker = f"C{index % 10}", "os^Dv"[index // 10]
        axes.errorbar(middles + aside, mean, 2 * error, fmt=marker, ms=4, color=color, label=label)
    axes.axhline(0, color="grey", lw=0.8)
    axes.set_xticks(np.linspace(0, length, QUARTERS + 1))
    axes.set(
        xlabel="position in the document (tokens)",
        ylabel=f"nats a token, minus those of {against[1]!r}",
    )
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=Path, required=True, help="readings of measure.py")
    parser.add_argument("--needles", type=Path, help="answers of needle.py")
    parser.add_argument("--length", type=int, default=4096, help="of the readings")
    parser.add_argument("--against", nargs=2, metavar=("RUN", "SETTING"), help="the first, if none")
    parser.add_argument("--leave_out", nargs="+", default=[], metavar="SETTING", help="not drawn")
    parser.add_argument("--picture", type=Path, help="file to draw to")
    given = parser.parse_args()
    groups = chosen(Rows(given.rows), given.length)
    if not groups:
        parser.error(f"{given.rows} has no reporting rows of {given.length} tokens")
    against = tuple(given.against or next(iter(groups)))
    if against not in groups:
        parser.error(f"--against={against} is none of {', '.join(map(str, groups))}")
    print("\n".join(table(groups, against)))
    if given.needles:
        print("\n" + "\n".join(needle_table(Rows(given.needles), given.length)))
    if given.picture:
        shown = {name: rows for name, rows in groups.items() if name[1] not in given.leave_out}
        draw(shown, against, given.picture)


if __name__ == "__main__":
    main()
