"""What of a directory is left out: patterns as those of a .dockerignore (wire/arker.md 3.2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

Ignore = Callable[[str], bool]


def compiled(patterns: Iterable[str]) -> Ignore:
    """Is a path, relative and with slashes, left out? The last pattern that fits it, or a directory above it, decides;
    one that begins with `!` takes it in again."""
    rules = [rule for line in patterns if (rule := _rule(line)) is not None]

    def ignored(path: str) -> bool:
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        out = False
        for pattern, leaves_out in rules:
            if leaves_out != out and any(pattern.fullmatch(one) for one in above):
                out = leaves_out
        return out

    return ignored


def _rule(line: str) -> tuple[re.Pattern[str], bool] | None:
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    leaves_out = not text.startswith("!")
    text = text.removeprefix("!").strip().strip("/")
    return (re.compile(_pattern(text), re.DOTALL), leaves_out) if text else None


def _pattern(text: str) -> str:
    found, at = "", 0
    while at < len(text):
        if text.startswith("**/", at):
            found, at = found + "(?:.*/)?", at + 3
        elif text.startswith("**", at):
            found, at = found + ".*", at + 2
        else:
            found += {"*": "[^/]*", "?": "[^/]"}.get(text[at], re.escape(text[at]))
            at += 1
    return found
