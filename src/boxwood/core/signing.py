"""What is handed out and comes back unchanged: signed URLs and cursors. One secret, a purpose for each use."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwood.core import clock
from boxwood.core.errors import BadRequest, Expired, Forbidden

SECRET_BYTES = 32
_CURSOR_MAC_BYTES = 12


@dataclass(frozen=True, slots=True)
class Signature:
    """What a signed URL carries: `expires` in seconds since 1970, `signature` in URL-safe characters."""

    expires: int
    signature: str


class Signer:
    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def of(cls, path: Path) -> Signer:
        """With the secret in this file, made (0600) if it is not there."""
        return cls(secret_file(path, secrets.token_bytes(SECRET_BYTES)))

    def _mac(self, purpose: str, *words: str) -> bytes:
        message = json.dumps([purpose, *words]).encode()  # a list cannot be cut differently than it was made
        return hmac.new(self._secret, message, hashlib.sha256).digest()

    def sign(self, purpose: str, *words: str, seconds: int) -> Signature:
        expires = clock.now() // 1_000_000 + seconds
        return Signature(expires, _text(self._mac("url", purpose, str(expires), *words)))

    def verify(self, purpose: str, *words: str, expires: int, signature: str) -> None:
        """Forbidden if these words were not signed here, Expired (upload) if it is too late."""
        expected = _text(self._mac("url", purpose, str(expires), *words))
        if not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
            raise Forbidden("this URL was not made by this server, or has been changed")
        if clock.now() // 1_000_000 >= expires:
            raise Expired("upload", "this URL has expired: ask for another one")

    def cursor(self, scope: str, position: str) -> str:
        """Where a list goes on, for the same list only."""
        return _text(self._mac("cursor", scope, position)[:_CURSOR_MAC_BYTES] + position.encode())

    def position(self, scope: str, cursor: str | None) -> str | None:
        """BadRequest if this is no cursor of this list."""
        if cursor is None:
            return None
        raw = _bytes(cursor)
        mac, position = raw[:_CURSOR_MAC_BYTES], raw[_CURSOR_MAC_BYTES:].decode(errors="replace")
        if not hmac.compare_digest(mac, self._mac("cursor", scope, position)[:_CURSOR_MAC_BYTES]):
            raise BadRequest("cursor: not one of this list", [("cursor", "not one of this list")])
        return position


def secret_file(path: Path, fresh: bytes) -> bytes:
    """What the file holds; a new one, readable by its owner only, appears with all of `fresh` or not at all."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    part = path.with_name(f".{path.name}.new")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(fresh)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    return fresh


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""


def fingerprint(request: Any) -> bytes:
    """Of a request, for idempotency: JSON of its members, in order of their names."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, default=str).encode()).digest()
