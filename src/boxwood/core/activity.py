"""What organisations have asked for, one entry for each run, fork and sync: a log to look things up in.

It is written behind the requests, some at a time: the last second of it may be lost with the machine.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import Any

from boxwood.core import clock, words
from boxwood.core.access import Access
from boxwood.core.errors import BadRequest, CoreError
from boxwood.core.ids import is_id
from boxwood.core.model import ActivityFilter, Caller
from boxwood.store import activity as rows
from boxwood.store.activity import ActivityRow, Known
from boxwood.store.database import Database

WRITE_SECONDS = 1.0
MOST_WAITING = 1000  # entries, which are written at once then
MOST_KEPT = 1_000_000
COMMAND_CHARACTERS = 2000
PATH_CHARACTERS = 4096
ENDPOINTS = ("run", "fork", "sync")
PAGE, LITE_PAGE = 200, 20_000
STATUS_CLASSES = {f"{n}xx": (100 * n, 100 * n + 99) for n in range(1, 6)}
log = logging.getLogger(__name__)


class Activity:
    def __init__(self, database: Database, access: Access) -> None:
        self._database = database
        self._access = access
        self._waiting: list[ActivityRow] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, caller: Caller, entry: ActivityRow) -> None:
        """`entry.vm_id`: an id or a name."""
        vm_id = self._vm_id(caller, entry.vm_id)
        command, path = entry.command[:COMMAND_CHARACTERS], entry.path[:PATH_CHARACTERS]
        if (vm_id, command, path) != (entry.vm_id, entry.command, entry.path):
            entry = replace(entry, vm_id=vm_id, command=command, path=path)
        self._waiting.append(entry)
        if len(self._waiting) >= MOST_WAITING:
            self.write()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WRITE_SECONDS, self.write)

    def _vm_id(self, caller: Caller, vm: str) -> str:
        if not vm or is_id(vm):
            return vm
        try:
            return self._access.own(caller, vm).id
        except CoreError:
            return ""  # there is none

    def write(self) -> None:
        """Hand what waits to the store."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._database.post(partial(rows.insert, rows=waiting))

    async def list(self, caller: Caller, where: ActivityFilter) -> list[tuple[ActivityRow, Known]]:
        """The caller's organisation's own, also of VMs that are not there any more. BadRequest."""
        conditions, params = _conditions(caller.org_id, where)
        await asyncio.sleep(0)  # what has been answered just now is added in the same turn
        self.write()
        return await self._database.read(
            lambda connection: rows.page(
                connection, conditions, params, where.sort, where.descending, where.limit, where.offset
            )
        )

    async def forget(self, seconds: float) -> None:
        """What is older than that, and more than is kept."""
        before = clock.now() - int(seconds * 1e6)
        await self._database.write(lambda connection: rows.expire(connection, before, MOST_KEPT))


def _conditions(org_id: str, where: ActivityFilter) -> tuple[list[str], dict[str, Any]]:
    conditions = ["a.org_id = :org", "a.at >= :since", "a.at < :until"]
    params: dict[str, Any] = {"org": org_id, "since": where.since * 1_000_000, "until": where.until * 1_000_000}

    def any_of(what: list[str]) -> None:
        conditions.append(f"({' OR '.join(what) or '0'})")

    def one_of(column: str, values: tuple[str, ...]) -> None:
        names = [f"p{len(params) + at}" for at in range(len(values))]
        params.update(zip(names, values, strict=True))
        conditions.append(f"{column} IN ({', '.join(':' + name for name in names)})")

    if where.vms:
        one_of("a.vm_id", where.vms)
    if where.endpoints:
        for one in where.endpoints:
            if one not in ENDPOINTS:
                raise _refused("actions", f"each one of {', '.join(ENDPOINTS)}")
        one_of("a.endpoint", where.endpoints)
    if where.runtime is not None:
        one_of("a.kind", (where.runtime,))
    if where.statuses:
        any_of([f"a.status BETWEEN {low:d} AND {high:d}" for low, high in map(_status, where.statuses)])
    for name, sign, value in (("low", ">=", where.status_min), ("high", "<=", where.status_max)):
        if value is not None:
            conditions.append(f"a.status {sign} :{name}")
            params[name] = value
    if where.search:
        columns = ("command", "path", "vm_id", "run_id", "request_id", "source_vm_id")
        any_of([f"instr(lower(a.{column}), :search)" for column in columns])
        params["search"] = words.text("search", where.search).decode().lower()
    return conditions, params


def _status(text: str) -> tuple[int, int]:
    if text in STATUS_CLASSES:
        return STATUS_CLASSES[text]
    if text.isascii() and text.isdigit() and len(text) == 3:
        return int(text), int(text)
    raise _refused("status", "each a number, or 2xx, 4xx, …")


def _refused(field: str, said: str) -> BadRequest:
    return BadRequest(f"{field}: {said}", [(field, said)])
