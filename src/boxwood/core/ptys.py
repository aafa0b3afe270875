"""Terminals of sessions that somebody looks at, and those that he may come back to.

A terminal lives in the VM's box, with its scrollback; here is who looks at it, how many there are, and what is on the
way. One that lives keeps its VM's box, looked at or not. Both windows are bounded: whoever reads slowly stops the
programs on the terminal, and a program that does not read stops whoever types.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
from collections.abc import Callable, Mapping, Sequence

from boxwood.core import words
from boxwood.core.access import Access
from boxwood.core.boxes import Boxes
from boxwood.core.errors import CoreError, QuotaExceeded, ResourceBusy, Unauthorized, Unsupported
from boxwood.core.ids import new_id
from boxwood.core.keys import Keys
from boxwood.core.model import Caller
from boxwood.core.refusals import clean, of_engine
from boxwood.core.sessions import Sessions
from boxwood.core.signing import Signer
from boxwood.core.slot import Resident, Slot
from boxwood.core.tasks import Tasks
from boxwood.engine.api import Box, BoxGone, EngineError, GuestError
from boxwood.engine.ptyapi import PTY_WINDOW, PtyEnd, PtySpec
from boxwood.store import sessions as session_rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow

OF_VM, OF_ORG = 16, 256  # terminals at once
TICKET_SECONDS = 60
CELLS = 1000  # the most columns, and rows
ARGUMENTS, ARGUMENT_BYTES = 1000, 64 << 10
IDLE_SECONDS = 1e8
MOST_LEFT = 10_000
LEAVING_SECONDS = 1.0
_INPUT = 16 << 10  # bytes handed over at once
_TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_TICKET = re.compile(r"([0-9]{1,12})\.([0-9A-Za-z]{1,40})\.([A-Za-z0-9_-]{20,80})")


class Pty(Resident):
    """A look at a terminal, kept until the next one when it is `detach`ed: what is on the way, and the end. Hears of
    it from the terminal's box (`api.PtySink`), and of the box's own end (`slot.Resident`)."""

    def __init__(self, vm_id: str, org_id: str, session_id: str, on_over: Callable[[Pty], None]) -> None:
        self.id = ""
        self.vm_id = vm_id
        self.org_id = org_id
        self.session_id = session_id
        self._on_over = on_over
        self.slot: Slot | None = None
        self.box: Box | None = None
        self.looked_at = False
        self.left = asyncio.Event()  # nobody looks any more
        self.sent_away = False  # whoever looked: the VM was suspended
        self.end: PtyEnd | None = None
        self.reason: str | None = None  # why it was lost
        self._output: list[bytes] = []
        self._shown = 0  # bytes handed to whoever looks, who has not asked for more yet
        self._waiting = 0  # bytes of input that have not been taken
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def over(self) -> bool:
        return self.end is not None or self.reason is not None

    def output(self, data: bytes) -> None:
        if self.looked_at:
            self._output.append(data)
            self._news.set()

    def taken(self, size: int) -> None:
        self._waiting = max(0, self._waiting - size)
        self._room.set()

    def ended(self, end: PtyEnd) -> None:
        self.end = end
        self._leave()

    async def make_way(self) -> None:
        """It stays, and nobody looks."""
        if not self.looked_at or self.over or self.box is None:
            return
        self.looked_at, self.sent_away = False, True
        self.left.set()
        self._news.set()
        self._room.set()
        with contextlib.suppress(EngineError):
            await self.box.ptys.detach(self.id)

    def lost(self, reason: str) -> None:
        if not self.over:
            self.reason = reason
            self._leave()

    def _leave(self) -> None:
        self._news.set()
        self._room.set()
        self._on_over(self)

    # Whoever looks

    async def read(self) -> bytes:
        """What it shows next; b"": it is over, or is to be looked at no longer (`sent_away`). To ask again says that
        the last piece has arrived."""
        if self._shown and self.box is not None and not self.over and not self.sent_away:
            with contextlib.suppress(BoxGone):
                self.box.ptys.ack(self.id, self._shown)
        self._shown = 0
        while not self._output and not self.over and not self.sent_away:
            self._news.clear()
            await self._news.wait()
        data, self._output = b"".join(self._output), []
        self._shown = len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Type this, as fast as it is read. Nothing happens if it is over."""
        for at in range(0, len(data), _INPUT):
            piece = data[at : at + _INPUT]
            while self._waiting + len(piece) > PTY_WINDOW and not self.over and not self.sent_away:
                self._room.clear()
                await self._room.wait()
            if self.over or self.sent_away or self.box is None:
                return
            self._waiting += len(piece)
            with contextlib.suppress(BoxGone):
                self.box.ptys.write(self.id, piece)

    async def resize(self, columns: int, rows: int) -> None:
        """BadRequest."""
        size(columns, rows)
        if self.box is not None and not self.over:
            with contextlib.suppress(EngineError):
                await self.box.ptys.resize(self.id, columns, rows)

    async def signal(self, signum: int) -> None:
        """To what is in its foreground."""
        if self.box is not None and not self.over:
            with contextlib.suppress(EngineError):
                await self.box.ptys.signal(self.id, signum)

    async def kill(self) -> None:
        if self.box is not None and not self.over:
            with contextlib.suppress(EngineError):
                await self.box.ptys.kill(self.id)


class Ptys:
    def __init__(
        self,
        database: Database,
        boxes: Boxes,
        access: Access,
        sessions: Sessions,
        keys: Keys,
        signer: Signer,
        tasks: Tasks,
    ) -> None:
        self._database = database
        self._boxes = boxes
        self._access = access
        self._sessions = sessions
        self._keys = keys
        self._signer = signer
        self._tasks = tasks
        self._ptys: dict[str, Pty] = {}  # by session
        self._next: dict[str, tuple[tuple[int, int] | None, float | None]] = {}  # what `change` has left for the next

    # Tickets

    def ticket(self, caller: Caller, vm: str, session_id: str) -> str:
        """Stands for the caller's key at one session's terminal, for TICKET_SECONDS, as often as it is shown, as long
        as the key is good. NotFound, Forbidden, InvalidState."""
        row = self._access.usable(caller, vm)
        session = self._sessions.known(row, session_id)
        signed = self._signer.sign("pty", row.id, session.id, caller.key_id, seconds=TICKET_SECONDS)
        return f"{signed.expires}.{caller.key_id}.{signed.signature}"

    def redeem(self, ticket: str, vm: str, session_id: str) -> Caller:
        """Whose it is. Unauthorized."""
        found = _TICKET.fullmatch(ticket)
        caller = self._keys.caller(found[2]) if found is not None else None
        try:
            if found is None or caller is None:
                raise _bad_ticket()
            row = self._access.own(caller, vm)
            self._signer.verify(
                "pty", row.id, session_id, caller.key_id, expires=int(found[1]), signature=found[3]
            )  # fmt: skip
        except CoreError:
            raise _bad_ticket() from None
        return caller

    # Looking

    async def attach(
        self,
        caller: Caller,
        vm: str,
        session_id: str,
        *,
        columns: int | None = None,
        rows: int | None = None,
        argv: Sequence[str] | None = None,
        persist: bool = True,
        idle_seconds: float | None = None,
        term: str | None = None,
    ) -> Pty:
        """Look at the session's terminal, made if there is none; `detach` must follow. For one that is there all but
        its size stays as it was made with. BadRequest, NotFound, Forbidden, InvalidState, ResourceBusy (somebody
        looks), QuotaExceeded."""
        row = self._access.usable(caller, vm)
        session = self._sessions.known(row, session_id)
        given = _arguments(argv)
        kept_size, kept_idle = self._next.get(session.id, (None, None))
        wanted = kept_size or (80, 24)
        wanted = size(columns or wanted[0], rows or wanted[1])
        if term is not None and not _TERM.fullmatch(term):
            raise words.refuse("term", "the name of a kind of terminal, like xterm-256color")
        idle = words.seconds("cancel_ttl_secs", idle_seconds, IDLE_SECONDS)
        created = session_rows.env_of(session.env) or {}
        spec = PtySpec(
            new_id(), session.id, *wanted, given, None if "TERM" in created else term or "xterm-256color", persist,
            (kept_idle if idle is None else idle) or 0.0,
        )  # fmt: skip
        before = await self._last_look(session.id)
        if before is not None and before.looked_at:
            raise ResourceBusy("session", "somebody looks at this session's terminal already: detach there first")
        if before is None:
            self._check_quota(row)
        pty = self._ptys[session.id] = Pty(row.id, row.org_id, session.id, self._over)
        pty.looked_at = True
        self._next.pop(session.id, None)
        return await self._tasks.finish(self._open(pty, spec, before))

    async def _last_look(self, session_id: str) -> Pty | None:
        """The client may know before we do that the last one has looked away."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVING_SECONDS):
                while (pty := self._ptys.get(session_id)) is not None and pty.looked_at:
                    await pty.left.wait()
        return self._ptys.get(session_id)

    def _check_quota(self, vm: VMRow) -> None:
        of_vm = sum(pty.vm_id == vm.id for pty in self._ptys.values())
        if of_vm >= OF_VM:
            said = f"the VM has {of_vm} terminals already: end some"
            raise QuotaExceeded("pty_sessions", "sessions", said, of_vm, OF_VM, vm.id)
        of_org = sum(pty.org_id == vm.org_id for pty in self._ptys.values())
        if of_org >= OF_ORG:
            said = f"your VMs have {of_org} terminals already: end some"
            raise QuotaExceeded("pty_sessions", "sessions", said, of_org, OF_ORG)

    async def _open(self, pty: Pty, spec: PtySpec, before: Pty | None) -> Pty:
        """`before`: the look that this one comes after."""
        try:
            slot = await self._boxes.enter(pty.vm_id)
            try:
                await self._open_in(pty, spec, slot)
            finally:
                self._boxes.leave(slot)
        except BaseException as error:
            self._forget(pty)
            if before is not None and not before.over:
                self._ptys[pty.session_id] = before
            if isinstance(error, EngineError):
                raise _refusal(error) from error
            raise
        return pty

    async def _open_in(self, pty: Pty, spec: PtySpec, slot: Slot) -> None:
        box = slot.box
        if box is None:
            raise BoxGone("the box died")
        await self._boxes.open_session(slot, box, spec.session_id)
        if slot.box is not box:
            raise BoxGone("the box died")
        pty.slot, pty.box = slot, box
        pty.id = await box.ptys.open(spec, pty)
        if slot.box is not box:
            raise BoxGone("the box died")
        if not pty.over:
            slot.runs[pty.id] = pty

    async def detach(self, pty: Pty) -> None:
        """Nobody looks any more. It goes on, unless it was made without `persist`."""
        pty.looked_at = False
        pty.left.set()
        if pty.over or pty.box is None:
            self._forget(pty)
            return
        if pty.sent_away:
            return
        with contextlib.suppress(EngineError):
            await pty.box.ptys.detach(pty.id)

    def _over(self, pty: Pty) -> None:
        if pty.slot is not None and pty.slot.runs.get(pty.id) is pty:
            del pty.slot.runs[pty.id]
            self._boxes.parking.touch(pty.slot)
        if not pty.looked_at:
            self._forget(pty)

    def _forget(self, pty: Pty) -> None:
        pty.left.set()
        if self._ptys.get(pty.session_id) is pty:
            del self._ptys[pty.session_id]

    async def change(
        self, caller: Caller, vm: str, session_id: str, shape: tuple[int, int] | None, idle_seconds: float | None
    ) -> None:
        """`shape`: columns and rows, from now on and for the terminal that is opened next. `idle_seconds`: without
        input and output, for the one that is opened next. BadRequest, NotFound, …"""
        row = self._access.usable(caller, vm)
        session = self._sessions.known(row, session_id)
        wanted = size(*shape) if shape is not None else None
        idle = words.seconds("timeout_secs", idle_seconds, IDLE_SECONDS)
        before = self._next.get(session.id, (None, None))
        while len(self._next) >= MOST_LEFT:
            del self._next[next(iter(self._next))]
        self._next[session.id] = (wanted or before[0], before[1] if idle is None else idle)
        if wanted is not None and (pty := self._ptys.get(session.id)) is not None:
            await pty.resize(*wanted)

    # Start of the server

    def recover(self, adopted: Mapping[str, Slot]) -> None:
        """Those in boxes that live go on; nobody looks yet."""
        for vm_id, slot in adopted.items():
            vm = vm_rows.by_id(self._database.near, vm_id)
            if vm is None or slot.box is None:
                continue
            for pty_id, session_id in list(slot.box.ptys.known.items()):
                pty = Pty(vm_id, vm.org_id, session_id, self._over)
                pty.id, pty.slot, pty.box = pty_id, slot, slot.box
                slot.box.ptys.watch(pty_id, pty)
                if session_id in slot.sessions and session_id not in self._ptys:
                    self._ptys[session_id] = slot.runs[pty_id] = pty
                else:
                    self._tasks.start(pty.kill())


def size(columns: int, rows: int) -> tuple[int, int]:
    """BadRequest."""
    for name, value in (("cols", columns), ("rows", rows)):
        if not 1 <= value <= CELLS:
            raise words.refuse(name, f"1 to {CELLS}")
    return columns, rows


def _arguments(argv: Sequence[str] | None) -> tuple[bytes, ...] | None:
    """Of a program; none of them: a login shell. BadRequest."""
    if not argv:
        return None
    given = tuple(words.text("command", one) for one in argv)
    if not given[0]:
        raise words.refuse("command", "the name of a program is empty")
    if len(given) > ARGUMENTS or sum(map(len, given)) > ARGUMENT_BYTES:
        raise words.refuse("command", f"at most {ARGUMENTS} arguments, {ARGUMENT_BYTES} bytes in all")
    return given


def _refusal(error: EngineError) -> CoreError:
    number = error.errno if isinstance(error, GuestError) else 0
    if number == errno.ENOSYS:
        said = "the VM's box was made by an older version, which has no terminals: stop the VM and start it"
        return Unsupported(said, "persistent_pty")
    if number == errno.EAGAIN:
        return ResourceBusy("session", f"{clean(str(error))}: end what others have left behind")
    return of_engine(error, "session")


def _bad_ticket() -> Unauthorized:
    return Unauthorized("this ticket is not valid here, or has expired: ask for another one")
