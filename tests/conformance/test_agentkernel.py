"""agentkernel: the published clients, unchanged, and our face play the same scenarios against a real server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scenarios.play import FACE, check_differences, expected

VERSIONS = ("0.4.0", "0.18.1", "0.21.0")
SHORT = (
    "0.4.0",
    pytest.param("0.18.1", marks=pytest.mark.full),
    "0.21.0",
)  # the oldest and the newest; all in `make test-full`
SCENARIOS = [f"agentkernel_{name}" for name in ("async", "basic", "files", "sandboxes", "stream")]
CASES = ["keys", "logs", "surface"]
NEWER = ["exec_options", "bulk_files", "detached", "ttl", "by_uuid"]
PACKAGE = "agentkernel-sdk"
Drive = Callable[[str, str, str, str], str]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("version", [*SHORT, FACE])
def test_scenarios(version: str, scenario: str, played: Callable[[str, str, str], dict[str, Any]]) -> None:
    assert played(scenario, PACKAGE, version) == expected(scenario, version)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_differences(scenario: str) -> None:
    check_differences(scenario, {*VERSIONS, FACE})


# --- what the published clients have and our face has not


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", SHORT)
def test_what_all_have(version: str, case: str, published: Drive) -> None:
    published(PACKAGE, version, "agentkernel_sdk", case)


@pytest.mark.parametrize("case", NEWER)
@pytest.mark.parametrize("version", SHORT[1:])
def test_what_newer_ones_have(version: str, case: str, published: Drive) -> None:
    published(PACKAGE, version, "agentkernel_sdk", case)


def test_a_ttl_is_kept(published: Drive) -> None:
    published(PACKAGE, "0.21.0", "agentkernel_sdk", "ttl_is_kept")


@pytest.mark.parametrize("case", ["run", "stream", "sandboxes", "files", "detached", "refusals", "surface"])
def test_node(case: str, agentkernel_node: Callable[[str], None]) -> None:
    agentkernel_node(case)


def test_the_tables_are_true(check_tables: Callable[[str], None]) -> None:
    check_tables("agentkernel")
