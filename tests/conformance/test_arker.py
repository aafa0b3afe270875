"""Arker: the published clients of all generations, unchanged, and our face against a real server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scenarios.play import FACE, check_differences, expected

SCENARIOS = {"arker_first": ("0.1.0", "0.2.1"), "arker_later": ("1.3.0",)}
CASES = [
    "fork_and_run",
    "shell_state_persists",
    "files",
    "directory",
    "list_with_filter",
    "child_sees_the_parents_files",
    "missing_is_not_found",
    "refusals",
    "background",
    "cancel_and_kill",
    "signal",
    "sessions",
    "idempotency",
    "delete",
    "placement",
    "e2b_surface",
    "policies",
    "run_log",
    "surface",
    "twenty_at_once",
]
Drive = Callable[[str, str, str, str], str]


@pytest.mark.parametrize(
    ("scenario", "version"),
    [
        pytest.param(name, version, marks=[pytest.mark.full] if version == "0.1.0" else [])
        for name, told in SCENARIOS.items()
        for version in (*told, FACE)
    ],
)
def test_scenarios(scenario: str, version: str, played: Callable[[str, str, str], dict[str, Any]]) -> None:
    assert played(scenario, "arker", version) == expected(scenario, version)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_differences(scenario: str) -> None:
    check_differences(scenario, {*SCENARIOS[scenario], FACE})


@pytest.mark.parametrize("case", CASES)
def test_present_generation(case: str, published: Drive) -> None:
    published("arker", "1.3.0", "modern", case)


@pytest.mark.parametrize("version", ["0.9.0", "1.0.0"])
def test_generations_between(version: str, published: Drive) -> None:
    published("arker", version, "modern", "fork_older")


@pytest.mark.parametrize("version", ["0.5.1", "0.9.0", "1.0.0", "1.2.8", "1.3.0"])
def test_runs(version: str, published: Callable[..., str]) -> None:
    """Run, background, poll, cancel, signal, sessions: by one client of each kind that is still about."""
    published("arker", version, "runs", "")


@pytest.mark.parametrize(
    "version",
    ["0.5.1", pytest.param("0.9.0", marks=pytest.mark.full), pytest.param("1.0.0", marks=pytest.mark.full), "1.3.0"],
)
def test_filesystems(version: str, published: Drive) -> None:
    published("arker", version, "modern", "filesystems")


@pytest.mark.parametrize(
    "version",
    ["0.9.0", pytest.param("1.0.0", marks=pytest.mark.full), pytest.param("1.2.8", marks=pytest.mark.full), "1.3.0"],
)
def test_terminals(version: str, published: Callable[..., str]) -> None:
    published("arker", version, "modern", "terminal")


def test_the_tables_are_true(check_tables: Callable[[str], None]) -> None:
    check_tables("arker")
