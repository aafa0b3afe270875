"""Requests that may come twice: the same key with the same request is answered with what was made the first time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from boxwood.core import clock, words
from boxwood.core.errors import IdempotencyConflict, Unavailable
from boxwood.core.signing import fingerprint
from boxwood.store import idempotency as rows
from boxwood.store.database import Database

_NOT_THE_REQUEST = {"queueing_timeout", "wait"}  # how long the client waits: changes from try to try


class Claim:
    """The right to work on a request. `made` is what an earlier one made, else None; then `record` the outcome."""

    def __init__(self, scope: str, key: str, mark: bytes, made: str | None) -> None:
        self._scope, self._key, self._mark = scope, key, mark
        self.made = made

    def record(self, connection: sqlite3.Connection, target: str) -> None:
        """In the transaction that makes `target`."""
        rows.insert(connection, self._scope, self._key, self._mark, target, clock.now())


class Idempotency:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._working: dict[tuple[str, str], bytes] = {}

    @contextmanager
    def claim(self, scope: str, key: str | None, request: Any) -> Iterator[Claim | None]:
        """`request`: a dataclass. IdempotencyConflict, Unavailable (still worked on), BadRequest (key)."""
        if key is None:
            yield None
            return
        words.idempotency_key(key)
        mark = fingerprint({name: value for name, value in asdict(request).items() if name not in _NOT_THE_REQUEST})
        found = rows.find(self._database.near, scope, key)
        working = self._working.get((scope, key))
        if (found is not None and found[0] != mark) or (working is not None and working != mark):
            raise IdempotencyConflict("this Idempotency-Key was used for another request")
        if found is not None:
            yield Claim(scope, key, mark, found[1])
            return
        if working is not None:
            raise Unavailable("the first request with this Idempotency-Key is still being worked on", not_started=False)
        self._working[scope, key] = mark
        try:
            yield Claim(scope, key, mark, None)
        finally:
            del self._working[scope, key]
