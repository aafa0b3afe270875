"""Names of hosts in rules and requests: one spelling for each, or none.

Whatever two parsers may read differently is refused: NUL, spaces, percent signs, addresses in any spelling, dots that
are not ASCII's, and letters that the two editions of IDNA turn into different names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from boxwood.engine.policies.reading import Malformed, shown, text

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as a last label: an address, in a spelling that C libraries take
_ADDRESS = re.compile(r"\[?[0-9A-Fa-f]*[:/][0-9A-Fa-f:/]*\]?")  # a part of one, or of a network
_DEVIATING = frozenset(
    "\N{LATIN SMALL LETTER SHARP S}\N{LATIN CAPITAL LETTER SHARP S}\N{GREEK SMALL LETTER FINAL SIGMA}\u200c\u200d"
)
_MOST = 253


@dataclass(frozen=True, slots=True)
class HostPattern:
    """`name` and every name below it; without itself if `below`."""

    name: str
    below: bool = False

    def matches(self, host: str) -> bool:
        """`host`: as `canonical` returns it."""
        return host.endswith(f".{self.name}") or (host == self.name and not self.below)

    def __str__(self) -> str:
        return f"*.{self.name}" if self.below else self.name


def pattern(at: str, value: Any) -> HostPattern:
    """`example.com` (it, and what is below it) or `*.example.com` (what is below it)."""
    found = text(at, value)
    if found.startswith("*."):
        found, below = found[2:], True
    else:
        below = False
    if "*" in found:
        raise Malformed(at, "a '*' stands for whole labels in front ('*.example.com'); leave hosts out to match all")
    return HostPattern(canonical(at, found), below)


def canonical(at: str, value: Any, *, local: bool = False) -> str:
    """A name in small letters without the last dot, its labels as DNS has them (A-labels). `local`: it may be
    localhost, since nobody goes there by it. Malformed."""
    found = text(at, value, 1024)
    labels = [_label(at, label) for label in found.removesuffix(".").split(".")]
    name = ".".join(labels)
    if len(name) > _MOST:
        raise Malformed(at, f"has more than {_MOST} characters")
    if _NUMBER.fullmatch(labels[-1]):
        raise Malformed(at, f"{shown(found)} can be read as an address: addresses go into ips")
    if labels[-1] == "localhost" and not local:
        raise Malformed(at, "localhost is the VM itself: no rule applies to it")
    return name


def _label(at: str, label: str) -> str:
    made = label.lower()
    if not label.isascii():
        if _DEVIATING & set(label):
            raise Malformed(at, "has letters for which there are two encodings: write the one that is meant (xn--…)")
        try:
            made = label.encode("idna").decode().lower()
        except UnicodeError:
            made = ""
    if not _LABEL.fullmatch(made):
        hint = "addresses go into ips" if _ADDRESS.fullmatch(label) else "no scheme, port, path or empty label"
        raise Malformed(at, f"{shown(label)} is not part of a host's name ({hint})")
    return made
