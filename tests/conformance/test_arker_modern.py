"""The present generation's client, unchanged, against a real server; two older ones in passing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

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
    "twenty_at_once",
]


@pytest.mark.parametrize("case", CASES)
def test_present_generation(case: str, client_case: Callable[[str, str, str], None]) -> None:
    client_case("1.3.0", "modern", case)


@pytest.mark.parametrize("version", ["0.9.0", "1.0.0"])
def test_generations_between(version: str, client_case: Callable[[str, str, str], None]) -> None:
    client_case(version, "modern", "fork_older")
