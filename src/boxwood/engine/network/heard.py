"""What the server hears of a router and of a proxy: both parse what boxes send, and so are believed in nothing."""

from __future__ import annotations

import json
from typing import Any

Senseless = (ValueError, KeyError, TypeError)  # of what is read out of it


def heard(line: bytes) -> dict[str, Any]:
    """An object, from a line of JSON. ValueError."""
    try:
        found = json.loads(line)
    except RecursionError:
        raise ValueError("it is too deep") from None
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    return found
