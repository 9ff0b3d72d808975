"""What the documentation names is there, and what it shows runs."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_equations_name_functions_and_tests_that_exist():
    text = (ROOT / "docs" / "equations.md").read_text()
    names = re.findall(r"`((?:hope_jax|tests)/[\w/.]+\.py)(?:::(\w+))`", text)
    rows = [line for line in text.splitlines() if "| `hope_jax/" in line]
    assert len(rows) > 15 and len(names) == 2 * len(rows)
    for path, name in names:
        source = (ROOT / path).read_text()
        assert re.search(rf"(def|class) {name}\b", source), f"{path}::{name}"


@pytest.mark.parametrize(
    "page",
    ["README.md", "docs/learning.md", "docs/sleep.md", "docs/from_optax.md", "docs/suites.md"],
)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def cells_of(notebook):
    return json.loads(notebook.read_text())["cells"]


def test_links_exist():
    texts = {page: page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
    for notebook in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        written = [cell for cell in cells_of(notebook) if cell["cell_type"] == "markdown"]
        texts[notebook] = "\n".join("".join(cell["source"]) for cell in written)
    for page, text in texts.items():
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page}: {link}"


def test_notebooks_lie_without_outputs_and_are_on_the_site():
    """Their outputs are made with the site (docs/conf.py), so that they are those of this code."""
    notebooks = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
    index = (ROOT / "docs" / "index.md").read_text()
    assert re.findall(r"^notebooks/(\w+)$", index, re.MULTILINE)
    for notebook in notebooks:
        assert f"\nnotebooks/{notebook.stem}\n" in index
        for cell in cells_of(notebook):
            assert not cell.get("outputs") and not cell.get("execution_count"), notebook.name
