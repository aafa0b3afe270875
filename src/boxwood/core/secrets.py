"""Secrets: values that rules of policies name, and that nobody is ever told again.

At rest they are encrypted (AES-256-GCM) with a key that lies in DATA/secrets.key (0600), each for its name and for whom
it is: a row that is moved to another place cannot be read there. What leaves this module in the clear goes to the proxy
and nowhere else.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from boxwood.core import clock
from boxwood.core.errors import Conflict, Forbidden, Internal, NotFound
from boxwood.core.model import Caller
from boxwood.core.refusals import of_malformed
from boxwood.core.signing import SECRET_BYTES, secret_file
from boxwood.engine.policies import Malformed, secret_name, secret_value
from boxwood.store import secrets as rows
from boxwood.store.database import Database
from boxwood.store.secrets import SecretRow

MOST = 1000  # of one organisation
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class Secret:
    """All that is ever told of one."""

    name: str
    created_at: datetime
    updated_at: datetime


class Secrets:
    def __init__(self, database: Database, path: Path) -> None:
        self._database = database
        key = secret_file(path, secrets.token_bytes(SECRET_BYTES))
        if len(key) != SECRET_BYTES:
            raise Internal(f"{path} does not hold {SECRET_BYTES} bytes: put the right one back")
        self._cipher = AESGCM(key)

    # --- of organisations

    def list(self, caller: Caller) -> tuple[Secret, ...]:
        """Those for all VMs of the caller's organisation, by name."""
        found = rows.of_scope(self._database.near, caller.org_id)
        return tuple(Secret(row.name, clock.shown(row.created_at), clock.shown(row.updated_at)) for row in found)

    async def set(self, caller: Caller, name: str, value: str, check: Callable[[sqlite3.Connection], None]) -> Secret:
        """Make or replace one; `check` is called in the transaction that has done so, and what it raises undoes it.
        BadRequest, Forbidden, Conflict (there are too many)."""
        _admin(caller)
        try:
            secret_name("name", name)
            secret_value("value", value)
        except Malformed as error:
            raise of_malformed(error) from None
        known = {row.name for row in rows.of_scope(self._database.near, caller.org_id)}
        if name not in known and len(known) >= MOST:
            raise Conflict("resource", f"there are {MOST} secrets already: remove some")

        def write(connection: sqlite3.Connection) -> None:
            self.put(connection, org_id=caller.org_id, vm_id=None, name=name, value=value)
            check(connection)

        await self._database.write(write)
        return next(secret for secret in self.list(caller) if secret.name == name)

    async def remove(self, caller: Caller, name: str) -> None:
        """NotFound, Forbidden."""
        _admin(caller)
        if not await self._database.write(lambda connection: rows.delete(connection, caller.org_id, name)):
            raise NotFound("resource", "there is no such secret")

    # --- of VMs, in a transaction of the caller's

    def put(self, connection: sqlite3.Connection, *, org_id: str, vm_id: str | None, name: str, value: str) -> None:
        now = clock.now()
        sealed = self._seal(vm_id or org_id, name, value.encode())
        rows.put(connection, SecretRow(org_id, vm_id, name, sealed, now, now))

    def names(self, connection: sqlite3.Connection, scope: str) -> frozenset[str]:
        """Of a VM's own, or of an organisation's."""
        return frozenset(row.name for row in rows.of_scope(connection, scope))

    def drop(self, connection: sqlite3.Connection, vm_id: str, name: str) -> None:
        rows.delete(connection, vm_id, name)

    def copy(self, connection: sqlite3.Connection, source_id: str, vm_id: str) -> None:
        """Of a fork within one organisation."""
        for row in rows.of_scope(connection, source_id):
            sealed = self._seal(vm_id, row.name, self._open(row))
            rows.put(connection, replace(row, vm_id=vm_id, sealed=sealed))

    def values(self, connection: sqlite3.Connection, org_id: str, vm_id: str, names: frozenset[str]) -> dict[str, str]:
        """For the proxy alone: what these names stand for in a VM, as far as they are set."""
        found = [*rows.of_scope(connection, org_id), *rows.of_scope(connection, vm_id)]  # a VM's own goes first
        return {row.name: self._open(row).decode() for row in found if row.name in names}

    def _seal(self, scope: str, name: str, value: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, value, _place(scope, name))

    def _open(self, row: SecretRow) -> bytes:
        nonce, sealed = row.sealed[:_NONCE_BYTES], row.sealed[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, sealed, _place(row.scope, row.name))
        except InvalidTag:
            raise Internal(f"the secret {row.name} cannot be read: is DATA/secrets.key the right one?") from None


def _place(scope: str, name: str) -> bytes:
    return f"{scope}/{name}".encode()


def _admin(caller: Caller) -> None:
    if caller.role != "admin":
        raise Forbidden("only a key with the role admin may change secrets")
