"""Rooms import only from the rooms below them, and no files import each other in a circle."""

import ast
import graphlib
import pathlib

ROOT = pathlib.Path(__file__).parents[1] / "hope_jax"
# Files beside the rooms, which import none; every room may import them, and itself.
BESIDE = {"settings.py", "named.py", "counts.py", "absent_tpus.py", "exit_codes.py"}
# What else a room may import.
BELOW: dict[str, set[str]] = {
    "memory": set(),
    "optim": set(),
    "data": set(),
    "layers": {"memory"},
    "models": {"layers", "optim"},
    "inference": {"models", "layers", "data"},
    "runs": {"data"},
    "evaluation": {"inference", "models", "layers", "data"},
    "training": {"runs", "inference", "models", "layers", "data", "optim"},
}
BELOW["sleep"] = {"inference", "models", "layers", "optim", "data"}
BELOW["comparison"] = {"training", "evaluation", "runs", "models", "layers", "data"}
BELOW["planning"] = {"training", "runs", "models", "layers", "data", "optim"}
BELOW["commands"] = set(BELOW)


def imports() -> dict[pathlib.Path, set[pathlib.Path]]:
    """The files of the package that each of its files imports, within functions too."""
    found = {}
    for path in ROOT.rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        files = set()
        for name in names:
            place = ROOT.parent.joinpath(*name.split("."))
            files |= {file for file in (place.with_suffix(".py"),) if file.is_file()}
            if (place / "__init__.py").is_file() and place != ROOT:
                files.add(place / "__init__.py")
        found[path] = {file for file in files if ROOT in file.parents} - {path}
    return found


def test_every_room_imports_from_below_only():
    wrong = []
    for path, files in imports().items():
        room = path.relative_to(ROOT).parts[0]
        if path.parent == ROOT:
            continue
        for file in files:
            other = file.relative_to(ROOT).parts[0]
            if other not in {room, *BESIDE, *BELOW[room]}:
                wrong.append(f"{path.relative_to(ROOT)} imports {file.relative_to(ROOT)}")
    assert not wrong


def test_no_circles():
    # A package's own __init__ collects its files, and is imported with each of them.
    graph = {
        path: {file for file in files if file.name != "__init__.py"}
        for path, files in imports().items()
    }
    list(graphlib.TopologicalSorter(graph).static_order())
