"""Who may do what with which VM. Everything that names a VM comes through here."""

from __future__ import annotations

import json
from collections.abc import Sequence

from boxwood.core import clock, sshkeys
from boxwood.core.boxes import Boxes
from boxwood.core.errors import BadRequest, Forbidden, InvalidState, NotFound
from boxwood.core.hostnames import label
from boxwood.core.ids import has_id_shape, is_id
from boxwood.core.model import PUBLIC_ORG, VM, Caller, Resources, Session
from boxwood.engine.api import CopyReport
from boxwood.store import keys as key_rows
from boxwood.store import sessions as session_rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.memo import Memo
from boxwood.store.sessions import SessionRow
from boxwood.store.vms import VMRow

_REFERENCE_CHARACTERS = 256


class Access:
    """`domain`: below which VMs' ports are shown; empty: they are not."""

    def __init__(self, database: Database, boxes: Boxes, domain: str = "") -> None:
        self._database = database
        self._boxes = boxes
        self._domain = domain
        self._rows = Memo(database, vm_rows.by_id)  # whoever works on the files of a VM makes few commits

    def seen(self, caller: Caller, vm: str) -> VMRow:
        """One's own or a public one, by id or name (public names first). NotFound."""
        row = self._found((PUBLIC_ORG, caller.org_id), vm)
        if row is None or not _may_see(caller, row):
            raise _no_vm(vm)
        return row

    def own(self, caller: Caller, vm: str) -> VMRow:
        """To be changed or deleted. NotFound, Forbidden."""
        row = self.seen(caller, vm)
        if row.org_id != caller.org_id:
            raise Forbidden("this VM is not yours: a public VM can be looked at and forked, nothing else")
        return row

    def named(self, caller: Caller, name: str) -> VMRow:
        """The caller's own of this name, and no public one that has it too. NotFound."""
        row = vm_rows.by_name(self._database.near, caller.org_id, name) if name.isascii() else None
        if row is None:
            raise _no_vm(name)
        return row

    def row(self, vm_id: str) -> VMRow:
        """As it is now. NotFound."""
        row = vm_rows.by_id(self._database.near, vm_id)
        if row is None:
            raise _no_vm(vm_id)
        return row

    def usable(self, caller: Caller, vm: str) -> VMRow:
        """To be run in, read and written. NotFound, Forbidden, InvalidState (immutable, stopped)."""
        return _not_stopped(self.mutable(caller, vm))

    def still_usable(self, vm_id: str) -> None:
        """A VM that was usable when it was asked for, before a body came, say: now that its box is in use it stays so
        until that ends. NotFound, InvalidState."""
        row = self._rows.get(vm_id)
        if row is None:
            raise _no_vm(vm_id)
        _not_stopped(_not_immutable(row))

    def mutable(self, caller: Caller, vm: str) -> VMRow:
        """To be changed. NotFound, Forbidden, InvalidState."""
        return _not_immutable(self.own(caller, vm))

    def source(self, caller: Caller, source_id: str | None, name: str | None, org: str | None) -> VMRow:
        """Of a fork: by id, or by name in an organisation, without one first in the caller's. BadRequest, NotFound."""
        if (source_id is None) == (name is None):
            raise BadRequest("give exactly one source: an id or a name")
        row = self._found((), source_id) if source_id is not None else None
        if name is not None:
            row = self._found(self._orgs(caller, org), name)
        if row is None or not _may_see(caller, row):
            raise NotFound("source", f"there is no VM {_quoted(source_id or name or '')} to fork")
        return row

    def _orgs(self, caller: Caller, org: str | None) -> tuple[str, ...]:
        if org is None:
            return (caller.org_id, PUBLIC_ORG)
        if len(org) > _REFERENCE_CHARACTERS or not org.isprintable():
            raise NotFound("organization", "there is no such organisation")
        found = key_rows.org_by_id_or_name(self._database.near, org)
        if found is None:
            raise NotFound("organization", f"there is no organisation {_quoted(org)}")
        return (found,)

    def _found(self, orgs: tuple[str, ...], reference: str) -> VMRow | None:
        near = self._database.near
        if has_id_shape(reference):
            ident = reference.upper()
            row = self._rows.get(ident) if is_id(ident) else None
            return None if row is None or (row.hidden and row.pool_id is not None) else row  # it waits in a pool
        if len(reference) > _REFERENCE_CHARACTERS or not reference.isascii():
            return None
        rows = (vm_rows.by_name(near, org, reference) for org in orgs)
        return next((row for row in rows if row is not None), None)

    # Shapes

    def shown(self, row: VMRow) -> VM:
        """As it is now, with its sessions."""
        return self.vm(row, session_rows.of_vm(self._database.near, row.id))

    def vm(self, row: VMRow, sessions: Sequence[SessionRow], copied: CopyReport | None = None) -> VM:
        return VM(
            vm_id=row.id,
            org_id=row.org_id,
            name=row.name,
            description=row.description,
            public=bool(row.public),
            immutable=bool(row.immutable),
            state="running" if self._boxes.running(row.id) else "idle",
            live=self._boxes.live(row.id),
            resources=resources_of(row),
            network=self._boxes.making.network(row),
            address=self._boxes.address(row.id),
            root_source_id=row.root_source_id,
            root_source_name=row.root_source_name,
            created_at=clock.shown(row.created_at),
            last_active_at=clock.shown_or_none(row.last_active_at),
            depth=row.depth,
            sessions=tuple(self.session(session) for session in sessions if session.idx < session_rows.BESIDE),
            copied=copied,
            expires_at=clock.shown_or_none(row.end),
            stopped=bool(row.stopped),
            labels=json.loads(row.labels) if row.labels else {},
            pool_id=row.pool_id,
            read_only=bool(row.read_only),
            durable=bool(row.durable),
            ssh_keys=sshkeys.stored(row.ssh_keys),
            hostname=f"{label(row.id)}.{self._domain}" if self._domain else None,
        )

    def session(self, row: SessionRow) -> Session:
        return Session(
            session_id=row.id,
            vm_id=row.vm_id,
            index=row.idx,
            state=self._boxes.session_state(row.vm_id, row.id),
            cwd=row.cwd,
            env=session_rows.env_of(row.env),
            started_at=clock.shown_or_none(row.started_at),
            kind=row.kind,
        )


def resources_of(row: VMRow) -> Resources:
    cores = row.vcpu
    if cores is not None and cores == int(cores):
        cores = int(cores)
    return Resources(cores, row.memory_mib, row.disk_mib, row.pids, row.nofile)


def _may_see(caller: Caller, row: VMRow) -> bool:
    return row.org_id == caller.org_id or bool(row.public)


def _not_immutable(row: VMRow) -> VMRow:
    if row.immutable:
        raise InvalidState("vm", "mutable", "the VM is immutable: fork it and use the fork", row.id)
    return row


def _not_stopped(row: VMRow) -> VMRow:
    if row.stopped:
        raise InvalidState("vm", "running", "the VM has been stopped: start it", row.id)
    return row


def _no_vm(vm: str) -> NotFound:
    return NotFound("vm", f"there is no VM {_quoted(vm)}")


def _quoted(reference: str) -> str:
    return json.dumps(reference[:80])
