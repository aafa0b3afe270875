"""Ports of VMs that the world may see: who may come in, and connections to what listens there.

Whoever comes in has a key of the VM's organisation, or a ticket or cookie that stands for one, unless a rule of the
VM's policies opens the port to everybody. The first connection boots the VM's box; one that is open keeps it.
"""

from __future__ import annotations

import errno
import re
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NoReturn, TypedDict

from boxwood.core.access import Access
from boxwood.core.boxes import Boxes
from boxwood.core.errors import CoreError, Forbidden, InvalidState, NotFound, NotListening, ResourceBusy, Unauthorized
from boxwood.core.hostnames import Place
from boxwood.core.ids import is_id, new_id
from boxwood.core.keys import Keys
from boxwood.core.model import Caller
from boxwood.core.refusals import of_engine
from boxwood.core.signing import Signer
from boxwood.core.slot import Resident, Slot
from boxwood.engine.api import Engine, EngineError, GuestError
from boxwood.engine.policies import (
    Answer,
    Policies,
    Request,
    RequestVerdict,
    Rule,
    inbound_verdict,
    stays_open,
    takes_strangers,
)
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow

OF_VM, OF_ALL = 512, 8192  # connections at once
TICKET_SECONDS = 60
COOKIE_SECONDS = 3600
Purpose = Literal["port-ticket", "port-cookie"]
_SECONDS: Mapping[Purpose, int] = {"port-ticket": TICKET_SECONDS, "port-cookie": COOKIE_SECONDS}
_TOKEN = re.compile(r"([0-9]{1,12})\.([0-9A-Za-z]{1,40})\.([A-Za-z0-9_-]{20,80})")


class _Terms(TypedDict):
    """What rules are judged by beside the request."""

    vm_state: str
    now: datetime
    is_key: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Entry:
    """Somebody may come in. `state`: the VM's at that time; `rule`: that lets him in, None where none is about ports;
    `needs_body`: that is not decided yet, and `rule` the first that asks for the request's body."""

    state: str
    rule: Rule | None
    needs_body: bool


class Connection(Resident):
    """To a port in a VM's box. `lost_hook` is called once, with a reason, when the box goes before it is closed.
    `request`: what has opened it, if rules were asked; `refused`: they let it be no longer."""

    def __init__(self, sock: socket.socket, slot: Slot, left: Callable[[Connection], None]) -> None:
        self.id = new_id()
        self.sock = sock
        self.slot = slot
        self.lost_hook: Callable[[str], None] = lambda reason: None
        self.request: Request | None = None
        self.refused = False
        self._left = left
        self._over = False

    def lost(self, reason: str) -> None:
        self.lost_hook(reason)

    async def make_way(self) -> None:
        self.lost("the VM was suspended")

    def leave(self) -> None:
        """Nobody uses it any more; whoever has the socket closes it. Twice is once."""
        if not self._over:
            self._over = True
            self.slot.runs.pop(self.id, None)
            self._left(self)


class Ports:
    """`policies_of`: the policies of a VM, by its id."""

    def __init__(
        self,
        database: Database,
        engine: Engine,
        boxes: Boxes,
        access: Access,
        keys: Keys,
        signer: Signer,
        policies_of: Callable[[str], Policies],
    ) -> None:
        self._database = database
        self._engine = engine
        self._boxes = boxes
        self._access = access
        self._keys = keys
        self._signer = signer
        self._open: Counter[str] = Counter()  # by VM, those on their way too
        self.policies_of = policies_of

    # Who may come in

    def may_enter(self, row: VMRow, request: Request, caller: Caller | None, state: str = "") -> Entry:
        """Forbidden, Unauthorized, InvalidState. `request`: with the caller's address and the VM's port. `state`: the
        VM's, as it was told to whoever asks once more: whoever comes in changes it."""
        state = state or self._state(row)
        verdict = self._verdict(row, request, state)
        if verdict is not None and verdict.answer is Answer.DENY:
            self._refuse(row, request, verdict)
        entry = Entry(state, None, needs_body=False)
        if verdict is not None:
            entry = Entry(state, verdict.rule, verdict.answer is Answer.READ_BODY)
        if caller is not None and caller.org_id == row.org_id:
            return entry
        if entry.rule is None or not (
            takes_strangers(self.policies_of(row.id), request, **self._terms(row, state))
            if entry.needs_body
            else entry.rule.auth == "open"
        ):
            raise Unauthorized("this port takes nobody without an API key")
        return entry

    def _refuse(self, row: VMRow, request: Request, verdict: RequestVerdict) -> NoReturn:
        if verdict.rule is None and self._would_enter(row, request):
            raise InvalidState("vm", "running", "a rule lets this in while the VM runs only", row.id)
        by = f"the rule {verdict.rule.ident}" if verdict.rule is not None else "its policies"
        raise Forbidden(f"{by} of this VM refuses this{f': {verdict.reason}' if verdict.reason else ''}")

    def judge_again(self, vm_id: str) -> None:
        """The VM's rules have changed: what is open, and what rules about open connections refuse, is ended."""
        row = vm_rows.by_id(self._database.near, vm_id)
        if row is None:
            return
        rules, terms = self.policies_of(vm_id), self._terms(row, self._state(row))
        for one in list(self._boxes.slot(vm_id).runs.values()):
            if isinstance(one, Connection) and one.request is not None and not stays_open(rules, one.request, **terms):
                one.refused = True
                one.lost("its rules let it be no longer")

    def _state(self, row: VMRow) -> str:
        return "running" if self._boxes.running(row.id) else "idle"

    def _verdict(self, row: VMRow, request: Request, state: str) -> RequestVerdict | None:
        return inbound_verdict(self.policies_of(row.id), request, **self._terms(row, state))

    def _terms(self, row: VMRow, state: str) -> _Terms:
        return _Terms(vm_state=state, now=datetime.now(UTC), is_key=lambda key: self._is_key_of(row.org_id, key))

    def _would_enter(self, row: VMRow, request: Request) -> bool:
        found = self._verdict(row, request, "running")
        return found is not None and found.answer is Answer.ALLOW

    def _is_key_of(self, org_id: str, key: str) -> bool:
        caller = self._keys.known(key)
        return caller is not None and caller.org_id == org_id

    def row(self, place: Place, caller: Caller | None) -> VMRow:
        """The VM that a name of a host stands for: the caller's own, or one that may be open to everybody, which an id
        alone stands for. NotFound, Forbidden, InvalidState, Unauthorized."""
        refused: CoreError | None = None
        if caller is not None:
            try:
                return self._access.usable(caller, place.vm)
            except (NotFound, Forbidden) as error:
                refused = error
        row = vm_rows.by_id(self._database.near, place.vm) if is_id(place.vm) else None
        if row is None or row.hidden or (refused is not None and not self.policies_of(row.id).inbound):
            raise refused or Unauthorized("there is no port of a VM here that takes whoever has no API key")
        return row

    # Tickets and cookies: what stands for a key at one port of one VM

    def token(self, purpose: Purpose, caller: Caller, row: VMRow, port: int) -> str:
        signed = self._signer.sign(purpose, row.id, str(port), caller.key_id, seconds=_SECONDS[purpose])
        return f"{signed.expires}.{caller.key_id}.{signed.signature}"

    def ticket(self, caller: Caller, vm: str, port: int) -> tuple[VMRow, str]:
        """NotFound, Forbidden, InvalidState."""
        row = self._access.usable(caller, vm)
        return row, self.token("port-ticket", caller, row, port)

    def redeem(self, purpose: Purpose, token: str, place: Place) -> tuple[Caller, int] | None:
        """Whose it is, and when it ends (seconds since 1970). None: nobody's, or of another port."""
        found = _TOKEN.fullmatch(token)
        caller = self._keys.caller(found[2]) if found is not None else None
        if found is None or caller is None:
            return None
        try:
            row = self._access.own(caller, place.vm)
            self._signer.verify(
                purpose, row.id, str(place.port), caller.key_id, expires=int(found[1]), signature=found[3]
            )  # fmt: skip
        except CoreError:
            return None
        return caller, int(found[1])

    # Connections

    async def own(self, caller: Caller, vm: str, port: int) -> Connection:
        """To a port of one's own VM, whatever listens there and whatever rules say of requests. NotFound, Forbidden,
        InvalidState, and as `connect`."""
        return await self.connect(self._access.usable(caller, vm), port)

    async def connect(self, row: VMRow, port: int) -> Connection:
        """`Connection.leave` must follow, and its socket be closed. NotListening, InvalidState (stopped),
        ResourceBusy (too many), Unavailable, …"""
        self._check_room(row)
        if row.stopped:
            raise InvalidState("vm", "running", "the VM has been stopped: start it", row.id)
        self._open[row.id] += 1
        try:
            async with self._boxes.using(row.id) as (slot, box):
                sock = await self._engine.dial(box, port)
                if slot.box is not box:
                    sock.close()
                    raise NotListening(port, "the VM's box has just been put down")
                made = Connection(sock, slot, self._left)
                slot.runs[made.id] = made
                return made
        except BaseException as error:
            self._count_down(row.id)
            if isinstance(error, GuestError) and error.errno in (errno.ECONNREFUSED, errno.ETIMEDOUT):
                raise NotListening(port, error.message) from None
            if isinstance(error, EngineError):
                raise of_engine(error, "vm") from error
            raise

    def _check_room(self, row: VMRow) -> None:
        if self._open[row.id] >= OF_VM:
            said = f"{OF_VM} connections to the VM's ports are open: close some"
            raise ResourceBusy("vm", said, retry_after=1)
        if self._open.total() >= OF_ALL:
            said = f"{OF_ALL} connections to VMs' ports are open: close some"
            raise ResourceBusy("vm", said, retry_after=1)

    def _left(self, connection: Connection) -> None:
        self._count_down(connection.slot.vm_id)
        self._boxes.parking.touch(connection.slot)

    def _count_down(self, vm_id: str) -> None:
        self._open[vm_id] -= 1
        if not self._open[vm_id]:
            del self._open[vm_id]
