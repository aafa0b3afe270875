"""The address of a mirror or a proxy as an image may hold it: without a user, a password or a token."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from boxwood.images.omissions import LeftOut

_PLAIN = re.compile(r"[\w.:/@%?&=#!*'()+,;~\[\]-]{1,2000}", re.ASCII)  # no blanks, no quotes, no ${VARIABLE}
_PLACE = re.compile(r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_INSTANT = re.compile(r"[0-9]{8}T[0-9]{6}Z")  # of a snapshot of an archive
_LONG = 16  # letters and digits in a row, both of them, are a key and no name from here on


def harmless(text: str, schemes: tuple[str, ...] = ("http", "https")) -> tuple[str, bool]:
    """The address, and whether something was taken out of it that gives access.

    Stricter than any client: what could be read in two ways (an @ in a path) is not taken at all.

    :raises LeftOut: no such address, one that is this host itself, or one with a key in its path.
    """
    if not _PLAIN.fullmatch(text):
        raise LeftOut("no plain address")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise LeftOut("no plain address") from None
    user, at, place = parts.netloc.rpartition("@")
    if parts.scheme not in schemes or not _PLACE.fullmatch(place):
        raise LeftOut("no plain address")
    if "@" in user + parts.path + parts.query + parts.fragment or ";" in parts.path:
        raise LeftOut("no plain address")
    if _is_here(place):
        raise LeftOut("an address of this host itself")
    if any(map(_is_key, re.split(r"[^A-Za-z0-9]+", parts.path))):
        raise LeftOut("its path holds what looks like a key")
    return f"{parts.scheme}://{place}{parts.path}", bool(at or parts.query or parts.fragment)


def proxy(text: str) -> tuple[str, bool]:
    """The same for a proxy, whose scheme may be missing."""
    return harmless(text if "://" in text else f"http://{text}", ("http", "https", "socks5", "socks5h"))


def _is_here(place: str) -> bool:
    """Is it an address that means a box where a box uses it?"""
    host = re.sub(r":[0-9]+$", "", place).strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def _is_key(word: str) -> bool:
    if len(word) < _LONG or _INSTANT.fullmatch(word):
        return False
    return any(c.isdigit() for c in word) and any(c.isalpha() for c in word)
