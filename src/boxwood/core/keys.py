"""API keys. At rest only their SHA-256; the first one lies in DATA/root.key (0600) for the local SDK and CLI."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from boxwood.core import clock, words
from boxwood.core.config import ConfigError
from boxwood.core.errors import BadRequest, Conflict, Forbidden, NotFound, Unauthorized
from boxwood.core.ids import new_id
from boxwood.core.model import PUBLIC_ORG, ApiKey, Caller
from boxwood.core.signing import secret_file
from boxwood.store import keys as rows
from boxwood.store.database import Database
from boxwood.store.keys import KeyRow

ORG_NAME = "default"
PREFIX = "bxw_"
ROLES = ("admin", "member")
NAME_CHARACTERS = 255
_RANDOM_BYTES = 32  # 43 URL-safe characters
_SHOWN = len(PREFIX) + 6
_LEAST_CHARACTERS, _LEAST_DISTINCT = 32, 12
_MOST_CHARACTERS = 512  # as in a request's header
_PLACEHOLDER = re.compile(r"change[-_ ]?me|placeholder|replace[-_ ]?(me|this)|example|your[-_ ]?(api[-_ ]?)?key", re.I)
KEYS_MOST = 10_000  # of one organisation: they are all in memory


class Keys:
    """All keys are in memory, by hash: there are few, and every request asks for one. `revoked_hooks` are called with
    the id of one that has become nobody's."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._callers: dict[bytes, tuple[KeyRow, Caller]] = {}
        self.revoked_hooks: list[Callable[[str], None]] = []
        self.changed_hook: Callable[[], None] = lambda: None  # a key was made that is to expire

    @classmethod
    async def open(cls, database: Database, root: Path) -> Keys:
        """Makes the organisations and the first key if they are not there. ConfigError: the first key, which somebody
        else has written there, can be guessed."""
        keys = cls(database)
        raw = secret_file(root, (PREFIX + secrets.token_urlsafe(_RANDOM_BYTES) + "\n").encode())
        key = raw.decode(errors="replace").strip()
        if (wrong := _weakness(key)) is not None:
            raise ConfigError(f"{root}: the key {wrong}; remove the file, and the next start makes a good one")
        await database.write(lambda connection: rows.insert_org(connection, PUBLIC_ORG, PUBLIC_ORG, clock.now()))
        names = rows.orgs(database.near)
        org_id = next((org for org, name in names.items() if name == ORG_NAME), None) or new_id()
        await database.write(lambda connection: rows.insert_org(connection, org_id, ORG_NAME, clock.now()))
        names = rows.orgs(database.near)
        for row in rows.all_keys(database.near):
            keys._remember(row, names[row.org_id])
        if _hash(key) not in keys._callers:
            row = KeyRow(new_id(), org_id, _hash(key), key[:_SHOWN], "admin", "root", clock.now())
            await database.write(lambda connection: rows.insert(connection, row))
            keys._remember(row, ORG_NAME)
        return keys

    def _remember(self, row: KeyRow, org_name: str) -> None:
        self._callers[row.hash] = (row, _caller(row, org_name))

    async def authenticate(self, key: str) -> Caller:
        """Whose key is this? Unauthorized."""
        mark = _hash(key)
        found = self._callers.get(mark)
        # Looking a hash up tells nobody about the key; it is compared once more in constant time all the same.
        if found is None or not hmac.compare_digest(found[0].hash, mark):
            raise Unauthorized("this API key is not valid here")
        if _is_over(found[0]):
            raise Unauthorized("this API key has expired")
        return found[1]

    def known(self, key: str) -> Caller | None:
        """Whose this is, if it is somebody's. For what may be a key, or something of another's."""
        found = self._callers.get(_hash(key))
        return None if found is None or _is_over(found[0]) else found[1]

    def caller(self, key_id: str) -> Caller | None:
        """Whose the key with this id is, unless it has been revoked or its time is over."""
        found = next((found for found in self._callers.values() if found[0].id == key_id), None)
        return None if found is None or _is_over(found[0]) else found[1]

    async def create(
        self,
        caller: Caller,
        name: str | None = None,
        role: str = "admin",
        *,
        ttl_default: float | None = None,
        ttl_most: float | None = None,
        expires_in: float | None = None,
    ) -> ApiKey:
        """A new key of the caller's organisation; the answer alone holds the key itself.
        `role`: admin, or member (may not manage keys). `ttl_default`, `ttl_most`: seconds that VMs made with it live,
        unless it is said otherwise and at most; `expires_in`: seconds until the key is nobody's. None: without end, but
        within the bounds of the caller's own key. Forbidden, BadRequest (name over 255 characters, role, times),
        Conflict (too many)."""
        _admin(caller)
        if role not in ROLES:
            raise words.refuse("role", f"one of {', '.join(ROLES)}")
        if name is not None:
            words.text("name", name)
            if len(name) > NAME_CHARACTERS:
                raise BadRequest(f"name: at most {NAME_CHARACTERS} characters")
        if sum(row.org_id == caller.org_id for row, _ in self._callers.values()) >= KEYS_MOST:
            raise Conflict("api_key", f"there are {KEYS_MOST} keys already: revoke some")
        key = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        now = clock.now()
        most, default = _times(caller, ttl_default, ttl_most)
        ends = _end(caller, expires_in, now)
        row = KeyRow(
            new_id(), caller.org_id, _hash(key), key[:_SHOWN], role, name or None, now, default, most, ends
        )  # fmt: skip
        await self._database.write(lambda connection: rows.insert(connection, row))
        self._remember(row, caller.org_name)
        if ends is not None:
            self.changed_hook()
        return _shown(row, key)

    async def list(self, caller: Caller) -> tuple[ApiKey, ...]:
        """The organisation's keys, oldest first. Forbidden."""
        _admin(caller)
        mine = (row for row, _ in self._callers.values() if row.org_id == caller.org_id)
        return tuple(_shown(row) for row in sorted(mine, key=lambda row: row.id))

    async def revoke(self, caller: Caller, key_id: str) -> None:
        """From now on the key is nobody's. NotFound (api_key), Forbidden. The root key comes back with the next
        start, unless DATA/root.key is removed: then another one is made."""
        _admin(caller)
        row = next((row for row, _ in self._callers.values() if row.id == key_id and row.org_id == caller.org_id), None)
        if row is None:
            raise NotFound("api_key", "there is no such API key")
        await self._forget(row)

    async def expire(self, key_id: str) -> None:
        """The key's time is over: it is forgotten, and its streams end."""
        row = next((row for row, _ in self._callers.values() if row.id == key_id), None)
        if row is not None and _is_over(row):
            await self._forget(row)

    async def _forget(self, row: KeyRow) -> None:
        await self._database.write(lambda connection: rows.delete(connection, row.id))
        self._callers.pop(row.hash, None)
        for hook in self.revoked_hooks:
            hook(row.id)


def _is_over(row: KeyRow) -> bool:
    return row.expires_at is not None and row.expires_at <= clock.now()


def _caller(row: KeyRow, org_name: str) -> Caller:
    return Caller(row.org_id, org_name, row.id, row.role, row.ttl_default, row.ttl_most, row.expires_at)


def _times(caller: Caller, default: float | None, most: float | None) -> tuple[float | None, float | None]:
    """The ceiling and the default of a new key: the ceiling of its maker's holds for it too. BadRequest."""
    words.seconds("ttl_default", default)
    words.seconds("ttl_most", most)
    if caller.ttl_most is not None:
        if most is not None and most > caller.ttl_most:
            raise words.refuse("ttl_most", f"at most {caller.ttl_most:g} seconds, as of the key that makes it")
        most = caller.ttl_most if most is None else most
    if default is not None and most is not None and default > most:
        raise words.refuse("ttl_default", f"at most ttl_most, {most:g} seconds")
    return most, default


def _end(caller: Caller, expires_in: float | None, now: int) -> int | None:
    """When a new key expires: not after its maker. BadRequest."""
    words.seconds("expires_in", expires_in)
    end = None if expires_in is None else now + int(expires_in * 1e6)
    if caller.expires_at is not None:
        if end is not None and end > caller.expires_at:
            raise words.refuse("expires_in", "the key that makes it expires earlier")
        end = caller.expires_at if end is None else end
    return end


def _admin(caller: Caller) -> None:
    if caller.role != "admin":
        raise Forbidden("only a key with the role admin may manage keys")


def _weakness(key: str) -> str | None:
    """Why nobody should rely on this key; None: it is long enough, and looks random."""
    if not _LEAST_CHARACTERS <= len(key) <= _MOST_CHARACTERS:
        return f"has {len(key)} characters, and needs {_LEAST_CHARACTERS} to {_MOST_CHARACTERS}"
    if not all("!" <= character <= "~" for character in key):
        return "has other characters than printable ASCII ones without spaces"
    if len(set(key)) < _LEAST_DISTINCT or _PLACEHOLDER.search(key):
        return "looks like a placeholder"
    return None


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def _shown(row: KeyRow, key: str | None = None) -> ApiKey:
    return ApiKey(
        row.id, row.name, row.role, clock.shown(row.created_at), row.prefix, row.ttl_default, row.ttl_most,
        clock.shown_or_none(row.expires_at), key,
    )  # fmt: skip
