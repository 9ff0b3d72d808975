"""What the documentation names is there, and what it shows runs."""

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
    "page", ["README.md", "docs/learning.md", "docs/from_optax.md", "docs/suites.md"]
)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def test_links_of_the_readme_exist():
    for page in ("README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))):
        folder = (ROOT / page).parent
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            if "://" not in link:
                assert (folder / link).exists(), f"{page}: {link}"
