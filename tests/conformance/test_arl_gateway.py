"""arl-env's published clients of the gateway, unchanged, against a real server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

CASES = [
    "session", "files", "streams", "long_command", "recovery", "idempotent", "back", "forks", "attached", "logs", "pools",
    "experiments", "devbox", "network", "not_there", "keys", "asynchronous", "twenty_at_once",
]  # fmt: skip
Drive = Callable[..., str]


def later(*values: str) -> list[Any]:
    """In `make test-full`: the same again, by other releases."""
    return [pytest.param(value, marks=pytest.mark.full) for value in values]


@pytest.mark.parametrize("case", CASES)
def test_newest(case: str, arl_gateway_case: Drive) -> None:
    arl_gateway_case("0.27.0", case)


@pytest.mark.parametrize(
    "case", ["session", "recovery", *later("files", "streams", "long_command", "back", "forks", "pools")]
)
def test_with_iroh(case: str, arl_gateway_case: Drive) -> None:
    arl_gateway_case("0.20.0", case)


@pytest.mark.parametrize("case", ["session", "files_by_url", *later("streams", "back", "pools", "experiments")])
def test_files_by_url(case: str, arl_gateway_case: Drive) -> None:
    """They send ids of operations, but know no answer 202: the server holds their requests longer."""
    arl_gateway_case("0.19.8", case, hold=True)


@pytest.mark.parametrize("version", ["0.2.0", *later("0.14.1", "0.9.0")])
def test_sessions_by_pool(version: str, arl_gateway_case: Drive) -> None:
    arl_gateway_case(version, "by_pool")
