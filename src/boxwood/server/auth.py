"""Who asks: the API key of the Authorization header, and whether it is the operator's."""

from __future__ import annotations

import hmac

from boxwood.core.core import Core
from boxwood.core.errors import Forbidden, Unauthorized
from boxwood.core.model import Caller

KEY_BYTES = 512
HOW = "send an API key: Authorization: Bearer KEY"


def bearer(header: bytes | None) -> str:
    """The key itself. Unauthorized."""
    if header is None:
        raise Unauthorized(f"no API key: {HOW}")
    scheme, _, key = header.partition(b" ")
    key = key.strip()
    if scheme.lower() != b"bearer" or not key or len(key) > KEY_BYTES or not key.isascii():
        raise Unauthorized(f"this is no API key: {HOW}")
    return key.decode("ascii")


async def caller(core: Core, header: bytes | None) -> Caller:
    """Unauthorized."""
    return await core.keys.authenticate(bearer(header))


async def operator(core: Core, header: bytes | None) -> Caller:
    """Who can read the data directory, for its root.key was shown: what is asked here reaches the machine itself,
    which other keys, admins' too, do not. Unauthorized, Forbidden."""
    key = bearer(header)
    found = await core.keys.authenticate(key)
    try:
        root = (core.config.data / "root.key").read_text("ascii").strip()
    except FileNotFoundError:
        root = ""
    if not root or not hmac.compare_digest(key, root):
        raise Forbidden("only the key in the server's data directory (root.key) may do this")
    return found
