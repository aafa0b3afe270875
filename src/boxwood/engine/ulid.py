"""Ids of boxes, VMs and layers: 26 characters of Crockford's base 32, nothing that means anything to a path."""

from __future__ import annotations

import os
import re
import time
from typing import Any

_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}\Z")


_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_ulid() -> str:
    value = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    return "".join([_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5)])


def is_ulid(text: Any) -> bool:
    return isinstance(text, str) and _ULID.match(text) is not None


def checked(text: Any) -> str:
    """The id itself, or ValueError."""
    if not is_ulid(text):
        raise ValueError("an id must be a ULID")
    return str(text)
