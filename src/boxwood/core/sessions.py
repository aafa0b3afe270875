"""Sessions: shells that keep directory, environment and variables between runs, forks and boxes."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import replace

from boxwood.core import clock, durable, words
from boxwood.core.access import Access
from boxwood.core.boxes import Boxes
from boxwood.core.errors import NotFound, ResourceBusy, Unavailable
from boxwood.core.ids import is_id, new_id
from boxwood.core.lanes import Lanes
from boxwood.core.model import Caller, Page, Session
from boxwood.core.refusals import clean
from boxwood.core.signing import Signer
from boxwood.core.tasks import Tasks
from boxwood.engine.api import EngineError
from boxwood.store import sessions as rows
from boxwood.store.database import Database
from boxwood.store.memo import Memo
from boxwood.store.sessions import SessionRow
from boxwood.store.vms import VMRow

SESSIONS = 1000  # of one VM
STATES = ("idle", "pending", "running")


class Sessions:
    def __init__(
        self, database: Database, boxes: Boxes, access: Access, lanes: Lanes, signer: Signer, tasks: Tasks
    ) -> None:
        self._database = database
        self._boxes = boxes
        self._access = access
        self._lanes = lanes
        self._signer = signer
        self._tasks = tasks
        self._at: Memo[tuple[str, int], SessionRow] = Memo(database, lambda near, at: rows.by_index(near, *at))
        self._places: Memo[str, list[SessionRow]] = Memo(
            database, lambda near, vm_id: rows.of_vm(near, vm_id, rows.BESIDE - 1)
        )
        self._closing: set[str] = set()
        # Whose deletion has failed: hidden until somebody deletes them again, or the server ends; the next one shows
        # them, and what is left in them, as it was.
        self._half_gone: set[str] = set()

    async def create(
        self,
        caller: Caller,
        vm: str,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        kind: str = "shell",
    ) -> Session:
        """A new session with the next free index (from 1 on). Its shell, or with `kind` python its interpreter, starts
        with its first run.
        BadRequest (env names and values, cwd not absolute), NotFound, Forbidden, InvalidState (immutable),
        ResourceBusy (too many)."""
        given = words.environment(env)
        place = words.path(cwd, "cwd") if cwd else ""
        row = self._access.usable(caller, vm)
        made = await self._made(row, None, given, place, kind=kind)
        await durable.secure(self._database, row)
        return self._access.session(made)

    async def at(self, vm: VMRow, index: int) -> SessionRow:
        """The row of the session with this index, made if there is none. Unavailable, ResourceBusy."""
        row = self._at.get((vm.id, index))
        if row is None:
            row = await self._made(vm, index, None, "")
        if row.id in self._half_gone:
            raise Unavailable("the session's deletion did not come to its end: delete it again", not_started=True)
        if row.id in self._closing:
            raise Unavailable("the session is being deleted: try again", not_started=True)
        return row

    async def beside(self, vm: VMRow) -> SessionRow:
        """A place for a run that is to wait for no other one. Whoever uses it does so before he awaits anything."""
        while True:
            for row in self._places.get(vm.id) or ():
                if not self._is_hidden(row.id) and self._lanes.free(row.id):
                    return row
            await self._made(vm, None, None, "", beside=True)

    def known(self, vm: VMRow, session_id: str) -> SessionRow:
        """The row of a session that is there and stays. NotFound."""
        row = rows.by_id(self._database.near, vm.id, session_id) if is_id(session_id) else None
        if row is None or self._is_hidden(row.id):
            raise _no_session()
        return row

    def _is_hidden(self, session_id: str) -> bool:
        return session_id in self._closing or session_id in self._half_gone

    async def _made(
        self,
        vm: VMRow,
        index: int | None,
        env: dict[str, str] | None,
        cwd: str,
        *,
        beside: bool = False,
        kind: str = "shell",
    ) -> SessionRow:
        def make(connection: sqlite3.Connection) -> SessionRow:
            if index is not None and (found := rows.by_index(connection, vm.id, index)) is not None:
                return found
            if rows.count(connection, vm.id) >= SESSIONS:
                raise ResourceBusy("session", f"the VM has {SESSIONS} sessions already: delete some")
            at = rows.next_index(connection, vm.id, beside=beside) if index is None else index
            if at >= rows.BESIDE and not beside:
                raise ResourceBusy("session", "no higher index is left: delete the session with the highest one")
            row = SessionRow(new_id(), vm.id, at, cwd, rows.env_text(env), None, clock.now(), None, kind)
            try:
                rows.insert(connection, row)
            except sqlite3.IntegrityError as error:  # the VM has gone meanwhile
                raise NotFound("vm", "the VM is not there any more") from error
            return row

        return await self._database.write(make, small=True)

    async def get(self, caller: Caller, vm: str, session_id: str) -> Session:
        """As its last run has left it, if nothing runs in it. NotFound (vm, session)."""
        row = self._access.own(caller, vm)
        session = self._access.session(self.known(row, session_id))
        if session.state != "idle" or not self._boxes.live(row.id):
            return session
        said = await self._boxes.directory(self._boxes.slot(row.id), session_id)
        return session if said is None else replace(session, cwd=said)

    async def directory(self, caller: Caller, vm: str, session_id: str) -> str:
        """Where a session is after its last run; "" where nobody knows yet. NotFound."""
        row = self._access.own(caller, vm)
        said = await self._boxes.directory(self._boxes.slot(row.id), session_id)
        return self.known(row, session_id).cwd if said is None else said

    async def list(
        self, caller: Caller, vm: str, state: str | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page[Session]:
        """By index. `state`: idle, pending or running. BadRequest, NotFound."""
        words.limit(limit)
        if state is not None and state not in STATES:
            raise words.refuse("state", f"one of {', '.join(STATES)}")
        row = self._access.own(caller, vm)
        scope = f"sessions:{row.id}"
        position = self._signer.position(scope, cursor)
        found = rows.of_vm(self._database.near, row.id, -1 if position is None else int(position))
        mine = [session for session in found if not self._is_hidden(session.id) and session.idx < rows.BESIDE]
        items = [self._access.session(session) for session in mine]
        chosen = [item for item in items if state in (None, item.state)]
        page = tuple(chosen[:limit])
        return Page(page, self._signer.cursor(scope, str(page[-1].index)) if len(chosen) > limit else None)

    async def delete(self, caller: Caller, vm: str, session_id: str) -> None:
        """End all its runs as cancelled and kill what they started. NotFound, also the second time. Unavailable: not
        all of it has ended; nobody sees the session any more, until another server starts, and it is to be deleted
        again."""
        row = self._access.usable(caller, vm)
        again = session_id in self._half_gone and rows.by_id(self._database.near, row.id, session_id) is not None
        ident = session_id if again else self.known(row, session_id).id
        await self._tasks.finish(self._delete(row.id, ident))
        await durable.secure(self._database, row)

    async def _delete(self, vm_id: str, session_id: str) -> None:
        self._closing.add(session_id)
        self._half_gone.discard(session_id)
        try:
            await self._lanes.end_session(vm_id, session_id)
            await self._database.write(lambda connection: rows.delete(connection, session_id))
        except (EngineError, Unavailable) as error:
            self._half_gone.add(session_id)
            said = f"the session is not all gone, delete it again: {clean(str(error))}"
            raise Unavailable(said, not_started=False) from error
        finally:
            self._closing.discard(session_id)


def _no_session() -> NotFound:
    return NotFound("session", "there is no such session")
