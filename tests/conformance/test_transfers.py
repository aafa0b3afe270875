"""Files: the published clients of all of Arker's generations, each with its own way of sending them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

FIRST = "0.2.1"  # inline, and by signed URL
STREAMS = "1.0.0"  # sync-stream alone
BETWEEN = pytest.param("0.9.0", marks=pytest.mark.full)
VERSIONS = (FIRST, BETWEEN, STREAMS, "1.3.0")
Drive = Callable[[str, str, str, str], str]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", ["lengths", "names", "not_there"])
def test_files(case: str, version: str, published: Drive) -> None:
    published("arker", version, "transfers", case)


@pytest.mark.parametrize("version", [FIRST, BETWEEN, pytest.param(STREAMS, marks=pytest.mark.full), "1.3.0"])
def test_a_large_file(version: str, published: Drive) -> None:
    published("arker", version, "transfers", "large")


@pytest.mark.parametrize("version", [BETWEEN, pytest.param(STREAMS, marks=pytest.mark.full), "1.3.0"])
def test_a_tree(version: str, published: Drive) -> None:
    published("arker", version, "transfers", "tree")
