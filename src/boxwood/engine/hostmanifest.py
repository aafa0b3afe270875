"""What an agent says of the files below a directory: lines of JSON, each of which is checked."""

from __future__ import annotations

import io
import json
import re
from typing import Any

from boxwood.engine.api import ManifestEntry
from boxwood.engine.frames import FrameError
from boxwood.engine.link import integer, text

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_NOT_A_NAME = frozenset({"", ".", ".."})


def entries(lines: bytes | bytearray, limit: int) -> tuple[ManifestEntry, ...]:
    """At most so many; whatever else there is, is not looked at. FrameError."""
    found = []
    for number, line in enumerate(io.BytesIO(lines)):
        if number == limit:
            break
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FrameError(f"a line that is not JSON: {type(error).__name__}") from None
        if not isinstance(fields, dict):
            raise FrameError("a line that is no object")
        entry = ManifestEntry(
            path(fields, "path"), integer(fields, "size"), integer(fields, "mode"), text(fields, "hash", 64)
        )
        if not _DIGEST.match(entry.hash) or not _NOT_A_NAME.isdisjoint(entry.path.split("/")):
            raise FrameError("a manifest entry that makes no sense")
        found.append(entry)
    return tuple(found)


def path(fields: dict[str, Any], field_name: str) -> str:
    """A path that can be said to clients: UTF-8 without NUL. FrameError."""
    value = text(fields, field_name)
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raise FrameError(f"{field_name} is not UTF-8") from None
    if len(raw) > 4096 or 0 in raw:
        raise FrameError(f"{field_name} is no path")
    return value
