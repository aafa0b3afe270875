"""Records: documents of the dialects' own, about things that the core has no word for, kept where the VMs are kept.

A record has a kind (its dialect's word), a namespace and a name, which together are unique in its organisation, and a
body, which is a JSON object. One that belongs to a VM goes when the VM goes, whoever deletes it.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from boxwood.core import clock, words
from boxwood.core.changes import Change, Changes
from boxwood.core.config import Config
from boxwood.core.errors import AlreadyExists, CapacityUnavailable, Conflict, NotFound, PayloadTooLarge
from boxwood.core.expiry import Expiry
from boxwood.core.ids import new_id
from boxwood.core.model import Caller, Record
from boxwood.core.tasks import Tasks
from boxwood.store import records as rows
from boxwood.store.database import SMALL_BYTES, Database
from boxwood.store.records import RecordRow

T = TypeVar("T")
Body = dict[str, Any]
BODY_BYTES = 8 << 20
NAME_CHARACTERS = 253
MOST = 100_000  # of one organisation, with `records_bytes` in all
AT_ONCE = 200  # that give way to new ones
SOON_SECONDS = 2 * 86400.0  # what goes by itself within this time may go at once, should there be too many


class Records:
    def __init__(self, database: Database, changes: Changes, config: Config, tasks: Tasks) -> None:
        self._database = database
        self._config = config
        self._changes = changes
        self._tasks = tasks
        self._counts: Counter[str] = Counter()  # by organisation
        self._bytes: Counter[str] = Counter()  # … of their bodies
        self._giving_way = asyncio.Lock()
        self.expiry = Expiry(database, tasks, "record", rows.expired, rows.next_expiry, self._expire)

    def start(self) -> None:
        for org_id, count, size in rows.totals(self._database.near):
            self._counts[org_id], self._bytes[org_id] = count, size
        self._changes.begin_after(rows.newest_revision(self._database.near))
        self.expiry.start()

    async def create(
        self,
        caller: Caller,
        kind: str,
        namespace: str,
        name: str,
        body: Mapping[str, Any],
        *,
        ttl: float | None = None,
    ) -> Record:
        """`ttl`: seconds until it is deleted by itself. BadRequest (namespace, name), AlreadyExists, PayloadTooLarge,
        CapacityUnavailable (the organisation has too many, none of which is to go soon)."""
        for field, value in (("namespace", namespace), ("name", name)):
            words.text(field, value)
            if not 1 <= len(value) <= NAME_CHARACTERS:
                raise words.refuse(field, f"1 to {NAME_CHARACTERS} characters")
        text, size = _encoded(body)
        await self._need_room(caller.org_id, size)
        at = clock.now()
        row = RecordRow(new_id(), caller.org_id, kind, namespace, name, text, None, 0, at, _ends(at, ttl), size)

        def insert(connection: sqlite3.Connection) -> RecordRow:
            made = replace(row, revision=self._changes.next())
            try:
                rows.insert(connection, made)
            except sqlite3.IntegrityError:
                raise AlreadyExists("resource", f"there is a {kind} {namespace}/{name} already") from None
            return made

        return await self._tasks.finish(self._change("added", insert, row.body))

    async def _need_room(self, org_id: str, size: int) -> None:
        """For one more of so many bytes. CapacityUnavailable."""
        if self._lacks(org_id, size):
            await self._tasks.finish(self._make_room(org_id, size))
            if lacks := self._lacks(org_id, size):
                raise CapacityUnavailable(lacks)

    def _lacks(self, org_id: str, size: int) -> str:
        if self._counts[org_id] >= MOST:
            return f"there are {MOST} objects already: delete some"
        return self._too_many_bytes(org_id) if self._bytes[org_id] + size > self._config.records_bytes else ""

    def _too_many_bytes(self, org_id: str) -> str:
        has, most = self._bytes[org_id], self._config.records_bytes
        return f"the objects that are there have {has} bytes, and {most} may be kept (records_bytes): delete some"

    async def _make_room(self, org_id: str, size: int) -> None:
        """Of those that are to go by themselves the soonest go now."""

        def remove(connection: sqlite3.Connection) -> list[RecordRow]:
            before = clock.now() + int(SOON_SECONDS * 1e6)
            gone = rows.delete_soonest(connection, org_id, before, AT_ONCE)
            return [replace(row, revision=self._changes.next()) for row in gone]

        async with self._giving_way:
            gone: Sequence[RecordRow] = ()
            while self._lacks(org_id, size) and (gone := await self._database.write(remove)):
                self.are_gone(map(shown, gone))

    def get(self, caller: Caller, kind: str, namespace: str, name: str) -> Record:
        """NotFound."""
        row = rows.by_name(self._database.near, caller.org_id, kind, namespace, name)
        if row is None:
            raise _none(kind, namespace, name)
        return shown(row)

    async def list(
        self,
        caller: Caller,
        kind: str,
        namespace: str | None = None,
        *,
        prefix: str = "",
        limit: int = 1000,
        after: tuple[str, str] | None = None,
        most_bytes: int | None = None,
    ) -> tuple[Record, ...]:
        """Those whose name begins with `prefix`, at most `limit`, by namespace and name: those behind `after`
        (namespace and name), ending with the one that makes it `most_bytes` of bodies."""

        def page(connection: sqlite3.Connection) -> tuple[Record, ...]:
            found = rows.page(
                connection, caller.org_id, kind, namespace, prefix, limit, after=after,
                most_bytes=most_bytes,
            )  # fmt: skip
            return tuple(map(shown, found))

        return await self._database.read(page)

    async def update(
        self,
        caller: Caller,
        kind: str,
        namespace: str,
        name: str,
        change: Callable[[Body], Body],
        *,
        vm_id: str | None = None,
        ttl: float | None = None,
        record_id: str | None = None,
    ) -> Record:
        """`change` makes the new body of the old one; it is called in the transaction, and what it raises is raised
        here, with nothing changed. `vm_id`, `ttl`: set if given. `record_id`: only this one, not another that has got
        its name since. NotFound, PayloadTooLarge, CapacityUnavailable (the organisation's have too many bytes)."""

        grown = 0

        def alter(connection: sqlite3.Connection) -> RecordRow:
            nonlocal grown
            row = rows.by_name(connection, caller.org_id, kind, namespace, name)
            if row is None or record_id not in (None, row.id):
                raise _none(kind, namespace, name)
            text, size = _encoded(change(json.loads(row.body)))
            grown = size - row.size
            if grown > 0 and self._bytes[row.org_id] + grown > self._config.records_bytes:
                raise CapacityUnavailable(self._too_many_bytes(row.org_id))
            made = replace(
                row,
                body=text,
                size=size,
                vm_id=row.vm_id if vm_id is None else vm_id,
                expires_at=row.expires_at if ttl is None else _ends(clock.now(), ttl),
                revision=self._changes.next(),
            )
            rows.replace(connection, made)
            return made

        async def work() -> Record:
            now = rows.by_name(self._database.near, caller.org_id, kind, namespace, name)
            record = await self._change("modified", alter, "" if now is None else now.body)
            self._bytes[caller.org_id] += grown
            return record

        return await self._tasks.finish(work())

    async def delete(self, caller: Caller, kind: str, namespace: str, name: str) -> Record:
        """The record as it was; its VM stays. NotFound."""

        def remove(connection: sqlite3.Connection) -> RecordRow:
            row = rows.by_name(connection, caller.org_id, kind, namespace, name)
            if row is None:
                raise _none(kind, namespace, name)
            rows.delete(connection, row.id)
            return replace(row, revision=self._changes.next())

        return await self._tasks.finish(self._change("deleted", remove, ""))

    # For what takes up its work again when the server has been started

    async def of_kind(self, kind: str, *, lasting: bool = False) -> tuple[Record, ...]:
        """Of every organisation, the oldest first. `lasting`: only those that are not to go by themselves."""
        return await self._database.read(
            lambda connection: tuple(map(shown, rows.of_kind(connection, kind, lasting=lasting)))
        )

    def caller_of(self, record: Record) -> Caller:
        """Whoever the record belongs to."""
        return Caller(record.org_id, "", "")

    # For the core

    def bind(self, connection: sqlite3.Connection, org_id: str, record_id: str, vm_id: str) -> RecordRow:
        """Give a record its VM, in a transaction of somebody else's, who then calls `is_bound`. NotFound, Conflict: it
        has one."""
        row = rows.by_id(connection, org_id, record_id)
        if row is None:
            raise NotFound("resource", f"there is no record {record_id}")
        if row.vm_id is not None:
            raise Conflict("resource", f"the {row.kind} {row.namespace}/{row.name} has a VM already")
        made = replace(row, vm_id=vm_id, revision=self._changes.next())
        rows.replace(connection, made)
        return made

    def is_bound(self, row: RecordRow) -> None:
        self._tell("modified", shown(row))

    def delete_of(self, connection: sqlite3.Connection, vm_id: str) -> Sequence[Record]:
        """The records of a VM, in the transaction that deletes it; whoever does calls `are_gone` afterwards."""
        return [shown(replace(row, revision=self._changes.next())) for row in rows.delete_of_vm(connection, vm_id)]

    def are_gone(self, records: Iterable[Record]) -> None:
        for record in records:
            self._counts[record.org_id] -= 1
            self._bytes[record.org_id] -= record.size
            self._changes.tell(Change(record.kind, "deleted", record, record.revision, record.size))

    # Changing

    async def _change(self, kind: str, work: Callable[[sqlite3.Connection], RecordRow], body: str) -> Record:
        """Listeners hear of changes in the order in which they were committed."""
        done = self._database.submit(lambda connection: shown(work(connection)), small=len(body) < SMALL_BYTES)
        done.add_done_callback(lambda task: self._committed(kind, task))
        return await done

    def _committed(self, kind: str, task: asyncio.Future[Record]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._tell(kind, task.result())

    def _tell(self, kind: str, record: Record) -> None:
        if kind == "deleted":
            self.are_gone([record])
            return
        if kind == "added":
            self._counts[record.org_id] += 1
            self._bytes[record.org_id] += record.size
        type_: Literal["added", "modified"] = "added" if kind == "added" else "modified"
        self._changes.tell(Change(record.kind, type_, record, record.revision, record.size))
        if record.expires_at is not None:
            self.expiry.changed()

    async def _expire(self, record_id: str) -> None:
        def remove(connection: sqlite3.Connection) -> RecordRow | None:
            row = rows.delete_expired(connection, record_id, clock.now())
            return None if row is None else replace(row, revision=self._changes.next())

        gone = await self._database.write(remove, small=True)
        if gone is not None:
            self.are_gone([shown(gone)])


def shown(row: RecordRow) -> Record:
    return Record(
        record_id=row.id,
        org_id=row.org_id,
        kind=row.kind,
        namespace=row.namespace,
        name=row.name,
        body=json.loads(row.body),
        vm_id=row.vm_id,
        revision=row.revision,
        created_at=clock.shown(row.created_at),
        expires_at=clock.shown_or_none(row.expires_at),
        size=row.size,
    )


def _encoded(body: Mapping[str, Any]) -> tuple[str, int]:
    """Its text, and how many bytes that has."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    size = len(text.encode(errors="surrogatepass"))
    if size > BODY_BYTES:
        raise PayloadTooLarge(f"the object has {size} bytes; at most {BODY_BYTES} are kept", BODY_BYTES, size)
    kept = text.encode(errors="replace")
    return kept.decode(), len(kept)


def _ends(now: int, ttl: float | None) -> int | None:
    return None if ttl is None else now + int(ttl * 1e6)


def _none(kind: str, namespace: str, name: str) -> NotFound:
    return NotFound("resource", f"there is no {kind} {namespace}/{name}")
