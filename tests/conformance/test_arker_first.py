"""The first generation's clients, unchanged, against a real server."""

from __future__ import annotations

from collections.abc import Callable

import pytest

CASES = [
    "fork_and_run",
    "shell_state_persists",
    "small_file",
    "large_file",
    "list_with_filter",
    "child_sees_the_parents_files",
    "missing_is_not_found",
    "bad_paths_are_bad_requests",
    "delete",
    "fork_by_name",
    "key_is_needed",
    "twenty_at_once",
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", ["0.1.0", "0.2.1"])
def test_first_generation(version: str, case: str, client_case: Callable[[str, str, str], None]) -> None:
    client_case(version, "first", case)
