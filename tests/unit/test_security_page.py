"""docs/security.md promises: what it says is tested is, and what is tested is said."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs/security.md").read_text()
LISTS = ["Defended", "Out of scope", "Your responsibility"]
NAMED = re.compile(r"`((?:api|attack|chaos|engine|fuzz|unit)/[\w./]*)(?:::(\w+))?`")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows() -> list[list[str]]:
    """The cells of each boundary's row."""
    lines = [line for line in section("Defended").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return [row for row in cells if row[0] != "boundary"]


@cache
def those_of(file: Path) -> frozenset[str]:
    made = ast.parse(file.read_text()).body
    named = [node.name for node in made if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(name for name in named if name.startswith("test_"))


def test_it_has_three_lists():
    assert [title for title in re.findall(r"^## (.+)$", PAGE, re.MULTILINE) if title in LISTS] == LISTS
    for title in LISTS[1:]:
        assert len(re.findall(r"^\* ", section(title), re.MULTILINE)) > 5


def test_each_boundary_says_how_and_where_it_is_proved():
    assert len(rows()) > 30 and len({row[0] for row in rows()}) == len(rows())
    for row in rows():
        assert len(row) == 3 and all(row), row
        assert NAMED.search(row[2]), f"{row[0]}: no test is named"
        assert not NAMED.sub("", row[2]).strip(" ,"), f"{row[0]}: {row[2]}"


@pytest.mark.parametrize(("place", "name"), sorted(set(NAMED.findall(PAGE))))
def test_every_test_that_is_named_is_there(place: str, name: str):
    file = TESTS / place
    assert file.is_file() and those_of(file), f"{place} is no file of tests"
    assert not name or name in those_of(file), f"{place} has no {name}"


def test_every_attack_is_named():
    """A test that shows an attack failing belongs to some boundary."""
    named = {place for place, _ in NAMED.findall(section("Defended"))}
    there = {f"attack/{file.name}" for file in (TESTS / "attack").glob("test_*.py")}
    assert there - named == set()
