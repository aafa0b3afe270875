"""What part of a file a client wants, and which state of the file: Range, If-Range, If-None-Match (RFC 9110)."""

from __future__ import annotations

import os
import re
import time
from email.utils import formatdate
from typing import NamedTuple

FRESH_SECONDS = 0.1  # after a change, within which another one may leave the same times: the kernel's clock ticks
_RANGE = re.compile(r"bytes[ \t]*=[ \t]*([0-9]{0,18})[ \t]*-[ \t]*([0-9]{0,18})", re.IGNORECASE)


class Part(NamedTuple):
    """Bytes `start`…`end` of a file."""

    start: int
    end: int


class Unsatisfiable(Exception):
    """The file has no such part."""


def validator(found: os.stat_result) -> str:
    """The ETag of a file as it is now: strong once it has been left alone so long that times tell its states apart."""
    tag = f'"{found.st_size:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}"'
    return f"W/{tag}" if time.time() - found.st_ctime < FRESH_SECONDS else tag


def headers(found: os.stat_result, tag: str) -> dict[str, str]:
    return {
        "accept-ranges": "bytes",
        "etag": tag,
        "last-modified": formatdate(max(0, found.st_mtime), usegmt=True),
        "x-boxwood-mode": f"{found.st_mode & 0o7777:04o}",
    }


def unchanged(if_none_match: str | None, tag: str) -> bool:
    """Does the client have this state already?"""
    if if_none_match is None:
        return False
    known = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return "*" in known or tag.removeprefix("W/") in known


def part(wanted: str | None, if_range: str | None, tag: str, size: int) -> Part | None:
    """None: the whole. Several parts at once, and what is no range, get the whole too. Unsatisfiable."""
    if wanted is None or (if_range is not None and (if_range.strip() != tag or tag.startswith("W/"))):
        return None
    found = _RANGE.fullmatch(wanted.strip())
    if found is None:
        return None
    first, last = found.groups()
    if first:
        start = int(first)
        if last and int(last) < start:
            return None
        end = min(int(last) + 1, size) if last else size
    elif last:
        start, end = max(0, size - int(last)), size
    else:
        return None
    if start >= end:
        raise Unsatisfiable
    return Part(start, end)
