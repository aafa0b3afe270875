"""What this protocol's callers may write: names, images, paths, durations, … BadRequest says what is wrong with it."""

from __future__ import annotations

import re
import uuid

from boxwood.core.errors import BadRequest
from boxwood.core.ids import ALPHABET, is_id

NAME_CHARACTERS = 63
WORKDIR_CHARACTERS = 1024
RESERVED = frozenset({"by-uuid", "import-config"})  # routes have these names
REFUSED_PLACES = ("/proc", "/sys", "/dev", "/etc/passwd", "/etc/shadow", "/etc/sudoers", "/root/.ssh")
MOST_SECONDS = 366 * 86400

_NAME = re.compile(r"[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*")
_IMAGE = re.compile(r"[A-Za-z0-9._/:@-]{1,256}")
_DURATION = re.compile(r"(?:[0-9]{1,9}[smhdw])+")
_LABEL = re.compile(r"[A-Za-z0-9._-]{1,63}")
_LABEL_TEXT = re.compile(r"[A-Za-z0-9._/-]{1,255}")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def is_name(value: str) -> bool:
    return len(value) <= NAME_CHARACTERS and _NAME.fullmatch(value) is not None and value not in RESERVED


def name(value: str) -> str:
    if not is_name(value):
        raise BadRequest(
            f"Invalid sandbox name: 1 to {NAME_CHARACTERS} letters, digits, single '-' or '_' between them, and not "
            + " or ".join(sorted(RESERVED))
        )
    return value


def image(value: str) -> str:
    if not _IMAGE.fullmatch(value):
        raise BadRequest("Invalid image: 1 to 256 letters, digits, and . - _ / : @")
    return value


def command(argv: list[str]) -> list[str]:
    if not argv:
        raise BadRequest("Command cannot be empty")
    for argument in argv:
        if "\0" in argument:
            raise BadRequest("Invalid command: an argument cannot contain NUL")
    return argv


def file_path(value: str) -> str:
    """Absolute, of a file that may be asked for."""
    if not value.startswith("/"):
        raise BadRequest("Invalid path: must be absolute")
    if ".." in value:
        raise BadRequest("Invalid path: must not contain '..'")
    if "\0" in value:
        raise BadRequest("Invalid path: must not contain NUL")
    clean = "/" + "/".join(part for part in value.split("/") if part not in ("", "."))
    for place in REFUSED_PLACES:
        if clean.startswith(place):
            raise BadRequest(f"Invalid path: {place} cannot be accessed")
    return clean


def workdir(value: str | None) -> str | None:
    if value is None:
        return None
    if not value.startswith("/") or len(value) > WORKDIR_CHARACTERS or re.search(r"[\0\r\n]", value):
        raise BadRequest(f"Invalid workdir: an absolute path of at most {WORKDIR_CHARACTERS} characters in one line")
    if ".." in value.split("/"):
        raise BadRequest("Invalid workdir: must not contain '..'")
    return value


def environment(pairs: list[str] | None) -> dict[str, str] | None:
    """From `K=V` entries; of several with one name the last counts."""
    found = {}
    for pair in pairs or []:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise BadRequest("Invalid env: each entry is KEY=VALUE")
        found[key] = value
    return found or None


def seconds(duration: str) -> int:
    """Of `30m`, `1h`, `1d`, `1h30m`."""
    text = duration.strip()
    if not _DURATION.fullmatch(text):
        raise BadRequest("Invalid duration: a number and s, m, h, d or w, such as 30m, 2h or 1d")
    total = sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9]+)([smhdw])", text))
    if not 0 < total <= MOST_SECONDS:
        raise BadRequest("Invalid duration: more than nothing, and at most 366 days")
    return total


def labels(given: dict[str, str] | None) -> dict[str, str]:
    for key, text in (given or {}).items():
        if not _LABEL.fullmatch(key) or not _LABEL_TEXT.fullmatch(text):
            raise BadRequest(
                "Invalid label: a key of 1 to 63, a value of 1 to 255 letters, digits and . _ - (values: /)"
            )
    return given or {}


def uuid_of(vm_id: str) -> str:
    """The same 128 bits as the VM's id."""
    value = 0
    for character in vm_id:
        value = value << 5 | ALPHABET.index(character)
    return str(uuid.UUID(int=value))


def vm_id_of(text: str) -> str:
    try:
        value = uuid.UUID(text).int
    except ValueError:
        raise BadRequest("Invalid UUID") from None
    found = "".join(ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))
    assert is_id(found)
    return found
