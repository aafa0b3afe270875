"""ARL: the published clients of its first generation, unchanged, and our face play the same scenario; and all methods
of the published clients of both generations, for docs/compatibility.md. What they do is seen to in test_arl_*.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from scenarios.play import FACE, check_differences, expected

VERSIONS = ("0.1.4", "0.1.5")


@pytest.mark.parametrize("version", [pytest.param("0.1.4", marks=pytest.mark.full), "0.1.5", FACE])
def test_scenario(version: str, played: Callable[[str, str, str], dict[str, Any]]) -> None:
    assert played("arl_crd", "arl-env", version) == expected("arl_crd", version)


def test_differences() -> None:
    check_differences("arl_crd", {*VERSIONS, FACE})


@pytest.mark.parametrize(("version", "case"), [("0.1.5", "shell"), ("0.27.0", "sessions"), ("0.27.0", "routes")])
def test_surface(version: str, case: str, published: Callable[[str, str, str, str], str]) -> None:
    published("arl-env", version, "arl_surface", case)


def test_terminal(published: Callable[..., str]) -> None:
    published("arl-env", "0.27.0", "arl_surface", "terminal", "websockets>=12")


def test_the_tables_are_true(check_tables: Callable[[str], None]) -> None:
    check_tables("arl")
