"""docs/attention.md cannot go stale: its snippets run, its quoted lines and pictures exist, its tables are complete."""

import re
from pathlib import Path

import pytest
import torch

from mtattn.attention import IMPLS, MASKS, POSITIONS, SCORES
from mtattn.attention import __file__ as package

DOCS = Path(__file__).parent.parent.parent / "docs"
TEXT = (DOCS / "attention.md").read_text(encoding="utf-8")


def test_the_snippets_run_in_order(capsys):
    snippets = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    assert len(snippets) > 10
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        for number, snippet in enumerate(snippets, 1):
            exec(compile(snippet, f"docs/attention.md, snippet {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert "of reference sdpa" in printed


def test_quoted_lines_stand_in_their_files():
    quotes = re.findall(r"^> `(\w+\.py)`: `(.+)`$", TEXT, flags=re.M)
    tables = re.split(r"^## ", TEXT, flags=re.M)
    for table in tables:
        if heading := re.search(r"its line in `(\w+\.py)`", table):
            rows = re.findall(r"^\| `\w+` \|.*\| `(.+)` \|$", table, flags=re.M)
            assert rows
            quotes += [(heading[1], row.replace("\\|", "|")) for row in rows]
    assert len(quotes) >= 25
    for file, line in quotes:
        assert line in (Path(package).parent / file).read_text(encoding="utf-8"), f"{file} has no line {line}"


def test_pictures_exist_and_are_small():
    pictures = re.findall(r"!\[.+\]\((.+)\)", TEXT)
    assert len(pictures) == len(set(pictures)) == len(list((DOCS / "attention").glob("*.png")))
    assert all((DOCS / picture).stat().st_size < 100_000 for picture in pictures)


@pytest.mark.parametrize("names", [IMPLS, MASKS, POSITIONS, SCORES], ids=["IMPLS", "MASKS", "POSITIONS", "SCORES"])
def test_every_name_has_its_row(names):
    for name in names:
        assert f"| `{name}` |" in TEXT


def test_every_file_of_the_package_is_listed():
    for path in Path(package).parent.glob("*.py"):
        assert path.name == "__init__.py" or f"`{path.name}`" in TEXT
