"""Rows that are kept in memory until the next commit that may have changed them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from boxwood.store.database import Database

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_MOST = 1024


class Memo(Generic[K, V]):
    """`read(connection, key)` asks the database, on the event loop's own connection; for None it is asked again."""

    def __init__(self, database: Database, read: Callable[[sqlite3.Connection, K], V | None]) -> None:
        self._database = database
        self._read = read
        self._known: dict[K, V] = {}
        self._version = -1

    def get(self, key: K) -> V | None:
        if self._version != self._database.version or len(self._known) >= _MOST:
            self._known.clear()
            self._version = self._database.version
        found = self._known.get(key)
        if found is None and (found := self._read(self._database.near, key)) is not None:
            self._known[key] = found
        return found
