"""What callers may write: names, descriptions, paths, environments, … BadRequest says what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from boxwood.core.config import NETWORKS
from boxwood.core.errors import BadRequest
from boxwood.core.ids import has_id_shape

NAME_CHARACTERS = 64
DESCRIPTION_CHARACTERS = 1024
PATH_BYTES = 4096
ENV_BYTES = 1 << 20
LABELS_BYTES = 16 << 10
JSON_BYTES = 1 << 20
RESERVED = frozenset({"list", "fork"})  # first generation's clients have routes of these names

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_POOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,31}(:[A-Za-z0-9_][A-Za-z0-9._-]{0,31})?")
_UPLOAD = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_KEY = re.compile(r"[ -~]{1,64}")


def refuse(field: str, message: str) -> BadRequest:
    return BadRequest(f"{field}: {message}", [(field, message)])


def text(field: str, value: str) -> bytes:
    """UTF-8 without NUL."""
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise refuse(field, "is not valid Unicode text") from None
    if b"\0" in encoded:
        raise refuse(field, "must not contain NUL")
    return encoded


def name(value: str) -> str:
    if not 1 <= len(value) <= NAME_CHARACTERS or not _NAME.fullmatch(value):
        raise refuse("name", f"1 to {NAME_CHARACTERS} letters, digits, '.', '_' or '-', a letter or digit first")
    if value.lower() in RESERVED:
        raise refuse("name", f"{value} is reserved")
    if has_id_shape(value):
        raise refuse("name", "must not look like the id of a VM")
    return value


def pool_name(field: str, value: str) -> str:
    """Of a pool, or of the namespace that it is in."""
    if not _POOL.fullmatch(value):
        raise refuse(field, "1 to 63 letters, digits, '.', '_' or '-', a letter or digit first")
    return value


def json_text(field: str, value: Mapping[str, Any] | None) -> str | None:
    """A JSON object as text."""
    if value is None:
        return None
    made = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(text(field, made)) > JSON_BYTES:
        raise refuse(field, f"at most {JSON_BYTES} bytes")
    return made


def description(value: str | None) -> str | None:
    """Blank is none."""
    if value is None or not value.strip():
        return None
    text("description", value)
    if len(value) > DESCRIPTION_CHARACTERS:
        raise refuse("description", f"at most {DESCRIPTION_CHARACTERS} characters")
    return value


def network(value: str | None) -> str | None:
    if value is not None and value not in NETWORKS:
        raise refuse("network", f"must be {' or '.join(NETWORKS)}")
    return value


def labels(value: Mapping[str, str] | None) -> dict[str, str] | None:
    if not value:
        return None
    if sum(len(text("labels", key)) + len(text("labels", said)) for key, said in value.items()) > LABELS_BYTES:
        raise refuse("labels", f"at most {LABELS_BYTES} bytes in all")
    return dict(value)


def path(value: str, field: str = "path") -> str:
    """Absolute; `.` and repeated or final slashes are taken out. `..` stays: only the box knows what it leads to."""
    encoded = text(field, value)
    if not value.startswith("/"):
        raise refuse(field, "must be absolute")
    if len(encoded) > PATH_BYTES:
        raise refuse(field, f"at most {PATH_BYTES} bytes")
    return "/" + "/".join(part for part in value.split("/") if part not in ("", "."))


def file_path(value: str) -> str:
    """A path that can name a file."""
    clean = path(value)
    if clean == "/" or value.endswith(("/", "/.", "/..")):
        raise refuse("path", "names a directory, not a file")
    return clean


def mode(value: int | None) -> int | None:
    """Permission bits. Those that make a program run as somebody else are no permission."""
    if value is not None and not 0 <= value <= 0o1777:
        raise refuse("mode", "permission bits in octal, 0 to 1777")
    return value


def environment(env: Mapping[str, str] | None) -> dict[str, str] | None:
    if env is None:
        return None
    total = 0
    for key, value in env.items():
        if not key or "=" in key:
            raise refuse("env", f"{key!r} is no name of a variable")
        total += len(text("env", key)) + len(text("env", value)) + 2
    if total > ENV_BYTES:
        raise refuse("env", f"at most {ENV_BYTES} bytes in all")
    return dict(env)


def user(value: str | None) -> str | None:
    """A name or number, with or without a group behind a colon."""
    if value is not None and not _USER.fullmatch(value):
        raise refuse("user", "a user's name or number, with or without ':group'")
    return value


def upload_id(value: str) -> str:
    if not _UPLOAD.fullmatch(value):
        raise refuse("upload_id", "1 to 64 letters, digits, '.', '_', ':' or '-'")
    return value


def sha256(value: str | None) -> str | None:
    if value is None:
        return None
    if not _SHA256.fullmatch(value):
        raise refuse("sha256", "64 hexadecimal digits")
    return value.lower()


def idempotency_key(value: str) -> str:
    if not _KEY.fullmatch(value):
        raise refuse("Idempotency-Key", "1 to 64 printable ASCII characters")
    return value


def limit(value: int, most: int = 1000) -> int:
    if not 1 <= value <= most:
        raise refuse("limit", f"1 to {most}")
    return value


def seconds(field: str, value: float | None, most: float = 1e9) -> float | None:
    """Not negative, not NaN; more than `most` is refused."""
    if value is not None and not 0 <= value <= most:
        raise refuse(field, f"0 to {most:g} seconds")
    return value


def session_index(value: int) -> int:
    if not 0 <= value < 1 << 32:
        raise refuse("session_idx", "0 to 4294967295")
    return value


def raw_path(value: bytes, field: str = "path") -> bytes:
    """As `path`, of bytes as the kernel has them: also such as are no UTF-8. A final slash stays."""
    if b"\0" in value:
        raise refuse(field, "must not contain NUL")
    if not value.startswith(b"/"):
        raise refuse(field, "must be absolute")
    if len(value) >= PATH_BYTES:
        raise refuse(field, f"at most {PATH_BYTES - 1} bytes")
    return value
