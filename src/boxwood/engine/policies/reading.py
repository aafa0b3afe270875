"""Reading a policy's JSON: every value of the right kind, of a bounded size, and no member that nobody knows."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

MOST_ITEMS = 256  # of one list
MOST_TEXT = 4096  # characters of one text
_T = TypeVar("_T")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Malformed(ValueError):
    """`field`: the path of the member, such as `rules.web.match.ports[0]`; `problem` says how to put it right."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


def members(at: str, value: Any, known: Collection[str]) -> dict[str, Any]:
    """An object's members that are not null."""
    if not isinstance(value, Mapping):
        raise Malformed(at, f"must be an object, not {kind(value)}")
    for name in value:
        if name not in known:
            raise Malformed(f"{at}.{shown(name)}", f"there is no such member; there are {', '.join(sorted(known))}")
    return {name: inner for name, inner in value.items() if inner is not None}


def items(at: str, value: Any, read: Callable[[str, Any], _T], most: int = MOST_ITEMS) -> tuple[_T, ...]:
    """A list's entries, each read by itself. An empty list would match nothing, where its author may think that it
    matches everything: it is refused."""
    if not isinstance(value, list | tuple):
        raise Malformed(at, f"must be a list, not {kind(value)}")
    if not value:
        raise Malformed(at, "must not be empty: leave it out to match whatever comes, or take the rule away")
    if len(value) > most:
        raise Malformed(at, f"has {len(value)} entries; at most {most}")
    return tuple(dict.fromkeys(read(f"{at}[{index}]", entry) for index, entry in enumerate(value)))


def text(at: str, value: Any, most: int = MOST_TEXT) -> str:
    """Valid Unicode without NUL."""
    if not isinstance(value, str):
        raise Malformed(at, f"must be a text, not {kind(value)}")
    if len(value) > most:
        raise Malformed(at, f"has {len(value)} characters; at most {most}")
    if "\0" in value:
        raise Malformed(at, "must not contain NUL")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Malformed(at, "is not valid Unicode text") from None
    return value


def line(at: str, value: Any, most: int = MOST_TEXT) -> str:
    """A text that can stand in the head of a request: no control characters."""
    found = text(at, value, most)
    if any(character < " " or character == "\x7f" for character in found):
        raise Malformed(at, "must not contain control characters, such as line ends")
    return found


def filled(at: str, value: Any) -> str:
    found = text(at, value)
    if not found:
        raise Malformed(at, "must not be empty: it would be in everything")
    return found


def word(at: str, value: Any, known: Collection[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise Malformed(at, f"must be {' or '.join(known)}, not {shown(value)}")
    return value


def number(at: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Malformed(at, f"must be a whole number, not {kind(value)}")
    if not least <= value <= most:
        raise Malformed(at, f"must be between {least} and {most}, not {shown(value)}")
    return value


def flag(at: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise Malformed(at, f"must be true or false, not {kind(value)}")
    return value


def token(at: str, value: Any) -> str:
    """A name of a header or a method, as HTTP has them."""
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise Malformed(at, f"must be 1 to 128 letters, digits or any of !#$%&'*+.^_`|~-, not {shown(value)}")
    return value


def method(at: str, value: Any) -> str:
    found = token(at, value).upper()
    if found == "CONNECT":
        raise Malformed(at, "CONNECT makes a tunnel, which is never let through")
    return found


def path(at: str, value: Any) -> str:
    """The beginning of a path in whole segments, as `plain_path` spells one; without a slash at its end."""
    found = line(at, value)
    if not found.startswith("/"):
        raise Malformed(at, f"must begin with a slash, not {shown(found)}")
    if "?" in found or "#" in found:
        raise Malformed(at, "must be a path alone; the query goes into query_params")
    plain = plain_path(found.replace(" ", "%20"))
    if plain is None:
        raise Malformed(
            at, "must have one reading: no '.' or '..' segments, no '//', no backslash, no percent sign but before two"
            " hexadecimal digits, and none of these encoded",
        )  # fmt: skip
    return plain.rstrip("/") or "/"


def plain_path(path: str) -> str | None:
    """The path of a request (without its query) with everything that needs no escape unescaped, so that each path has
    one spelling. None: servers read it each in another way, so it cannot be judged."""
    if not path.startswith("/") or "\\" in path or "#" in path or any(not " " < c < "\x7f" for c in _escaped(path)):
        return None
    if re.search(r"%(?![0-9A-Fa-f]{2})", path):
        return None
    decoded = urllib.parse.unquote_to_bytes(_escaped(path))
    if any(byte < 0x20 or byte == 0x7F for byte in decoded) or re.search(r"%(2f|5c|25)", path, re.IGNORECASE):
        return None
    segments = decoded.split(b"/")[1:]
    # `a;x` is `a` to servers that take what is behind a semicolon for parameters: `..;` is `..` to them.
    if any(part.partition(b";")[0] in (b".", b"..") for part in segments) or b"" in segments[:-1]:
        return None
    return "/" + "/".join(urllib.parse.quote(part, safe="!$&'()*+,;=:@~") for part in segments)


def _escaped(path: str) -> str:
    return urllib.parse.quote(path, safe="/%!$&'()*+,;=:@~\\ \"<>[]^`{|}", errors="surrogatepass")


def network(at: str, value: Any) -> Network:
    """An address, or a network in CIDR form, in the one spelling that everybody reads alike."""
    found = text(at, value)
    address, slash, length = found.partition("/")
    if "%" in found or (slash and not (length.isascii() and length.isdigit())):
        raise Malformed(at, f"must be an address or a network such as 192.0.2.0/24, not {shown(found)}")
    try:
        made = ipaddress.ip_network(found)
    except ValueError as error:
        if "host bits" in str(error):
            meant = ipaddress.ip_network(found, strict=False)
            raise Malformed(at, f"has bits behind the network's: {shown(address)} or {meant}?") from None
        hint = "; names of hosts go into hosts" if not set(found) <= set("0123456789abcdefxABCDEFX.:/") else ""
        raise Malformed(at, f"must be an address or a network such as 192.0.2.0/24, not {shown(found)}{hint}") from None
    if made.version == 6 and made.network_address.ipv4_mapped is not None and made.prefixlen >= 96:
        raise Malformed(at, "is IPv4 written as IPv6: give the IPv4 address")
    return made


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    for types, name in ((bool, "true or false"), (int | float, "a number"), (str, "a text"), (Mapping, "an object")):
        if isinstance(value, types):
            return name
    return "a list" if isinstance(value, list | tuple) else type(value).__name__


def shown(value: Any) -> str:
    """A value in a message: short, and in printable ASCII."""
    if not isinstance(value, str | int | float | bool):
        return kind(value)
    made = ascii(value) if isinstance(value, str) else str(value)[:64]
    return made if len(made) <= 64 else f"{made[:60]}…{made[-1]}"
