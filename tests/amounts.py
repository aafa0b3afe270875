"""How much of the same: what `make test` does a few times, `make test-full` does many times."""

from __future__ import annotations

import os
from typing import TypeVar

FULL = os.environ.get("BOXWOOD_TEST_FULL") == "1"
T = TypeVar("T")


def amount(usual: T, full: T) -> T:
    """Rounds, examples, sizes: `full` in `make test-full`, which sets BOXWOOD_TEST_FULL=1."""
    return full if FULL else usual
