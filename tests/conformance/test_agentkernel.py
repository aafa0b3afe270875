"""agentkernel's published clients, unchanged, against a real server; and docs/compatibility.md, which tells of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

COMPATIBILITY = Path(__file__).parents[2] / "docs/compatibility.md"
VERSIONS = ("0.4.0", "0.18.1", "0.21.0")
CASES = [
    "health", "run", "argv_is_what_arrives", "runs_share_nothing", "sandboxes", "session", "execs", "files", "logs", "batch",
    "asynchronous",
    "documented", "keys", "twenty_at_once",
]  # fmt: skip
NEWER = ["exec_options", "bulk_files", "detached", "ttl", "by_uuid"]
Drive = Callable[[str, str], str]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", VERSIONS)
def test_what_all_have(version: str, case: str, agentkernel_case: Drive) -> None:
    agentkernel_case(version, case)


@pytest.mark.parametrize("case", NEWER)
@pytest.mark.parametrize("version", VERSIONS[1:])
def test_what_newer_ones_have(version: str, case: str, agentkernel_case: Drive) -> None:
    agentkernel_case(version, case)


def test_streams(agentkernel_case: Drive) -> None:
    agentkernel_case("0.21.0", "streams")


@pytest.mark.parametrize("version", VERSIONS[:2])
def test_streams_that_are_broken_in_the_client(version: str, agentkernel_case: Drive) -> None:
    agentkernel_case(version, "streams_are_broken_there")


@pytest.mark.parametrize("case", ["run", "stream", "sandboxes", "files", "detached", "refusals"])
def test_node(case: str, agentkernel_node: Callable[[str], None]) -> None:
    agentkernel_node(case)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_table_of_methods_is_true(version: str, agentkernel_case: Drive) -> None:
    found = json.loads(agentkernel_case(version, "surface"))
    told = table()[f"agentkernel-sdk {version}"]
    assert {method: cell for method, cell in told.items() if cell != "—"} == found


def table() -> dict[str, dict[str, str]]:
    """Client and version → method → cell."""
    tables: dict[str, dict[str, str]] = {}
    methods: list[str] = []
    for line in COMPATIBILITY.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| client"):
            methods = [cell.strip("`") for cell in cells[1:]]
        elif line.startswith("| agentkernel-sdk "):
            tables.setdefault(cells[0], {}).update(zip(methods, cells[1:], strict=True))
    return tables
