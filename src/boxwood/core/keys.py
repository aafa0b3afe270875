"""API keys. At rest only their SHA-256; the first one lies in DATA/root.key (0600) for the local SDK and CLI."""

from __future__ import annotations

from boxwood.core.model import ApiKey, Caller


class Keys:
    async def authenticate(self, key: str) -> Caller:
        """Whose key is this? Unauthorized."""
        raise NotImplementedError

    async def create(self, caller: Caller, name: str | None = None, role: str = "admin") -> ApiKey:
        """A new key of the caller's organisation; the answer alone holds the key itself.
        `role`: admin, or member (may not manage keys). Forbidden, BadRequest (name over 255 characters, role)."""
        raise NotImplementedError

    async def list(self, caller: Caller) -> tuple[ApiKey, ...]:
        """The organisation's keys, oldest first. Forbidden."""
        raise NotImplementedError

    async def revoke(self, caller: Caller, key_id: str) -> None:
        """From now on the key is nobody's. NotFound (api_key), Forbidden."""
        raise NotImplementedError
