"""The terminals of a box that somebody looks at, or may come back to: one for a session at a time.

They are the session's: closed with it, and with its environment and directory as its last run left them. They go on
without a server, and the next one is told of them; what must not outlive whoever looks at it does not.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from boxwood.engine.agent.common import Common
from boxwood.engine.agent.pty import Order, Pty
from boxwood.engine.agent.requests import Reply, ident
from boxwood.engine.agent.run import Send
from boxwood.engine.agent.shell import find_shell

if TYPE_CHECKING:
    from boxwood.engine.agent.context import Context
    from boxwood.engine.agent.session import Session

MOST = 32  # in a box; those too whose program has ended and left something behind
MOST_CELLS = 1000  # columns, rows
_MOST_ARGUMENTS = 1024
_TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")
_DUMB = b"dumb"  # what a session's environment says unless somebody has said something else


class Ptys:
    """`find` gives the session of a request, or raises OSError."""

    def __init__(self, common: Common, send: Send, find: Callable[[dict[str, Any]], Session | Context]) -> None:
        self._common = common
        self._send = send
        self._find = find
        self._ptys: dict[str, Pty] = {}
        self._later: list[tuple[Pty, Callable[[], None]]] = []  # until one that is being killed has ended
        self._waiting: list[tuple[str, Callable[[], None]]] = []  # sessions that are being closed
        self.ops: dict[str, Callable[[dict[str, Any], bytes, Reply], None]] = {
            "pty.open": self._open,
            "pty.in": self._feed,
            "pty.ack": self._ack,
            "pty.size": self._resize,
            "pty.detach": self._detach,
            "pty.kill": self._kill,
            "pty.signal": self._signal,
        }

    def header(self) -> list[dict[str, str]]:
        """What `hello` says of them."""
        return [{"pty": pty.pty_id, "sid": pty.sid} for pty in self._ptys.values() if not pty.ended]

    def relink(self) -> None:
        """There is a new link, at whose other end nobody looks yet."""
        for pty in list(self._ptys.values()):
            pty.detach()

    def processes(self) -> int:
        """How many live on them, the shells included: each keeps what somebody may come back to."""
        return sum(len(pty.tree.members({})) + (pty.tree.root is not None) for pty in self._ptys.values())

    def close(self, sid: str, done: Callable[[], None]) -> None:
        """Kill all that a session's terminals have; `done` is called when nothing of it lives."""
        self._waiting.append((sid, done))
        for pty in [pty for pty in self._ptys.values() if pty.sid == sid]:
            pty.kill("killed")
        self._changed()

    def _changed(self) -> None:
        self._ptys = {pty_id: pty for pty_id, pty in self._ptys.items() if not (pty.told and pty.over)}
        live = {pty.sid for pty in self._ptys.values() if not pty.over}
        ready = [done for sid, done in self._waiting if sid not in live]
        self._waiting = [(sid, done) for sid, done in self._waiting if sid in live]
        again = [one for pty, one in self._later if pty.ended]
        self._later = [(pty, one) for pty, one in self._later if not pty.ended]
        for done in ready:  # from here on the session is being closed
            done()
        for one in again:
            self._common.loop.soon(one)

    # --- what is asked

    def _open(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        """Arguments, each ended by NUL, in the payload; without any a login shell."""
        session, pty_id = self._find(header), ident(header, "pty")
        columns, rows = _size(header)
        known = self._of(session)
        if known is not None and known.dying:
            self._later.append((known, lambda: self._open_later(header, payload, reply)))
            return
        if known is not None:
            known.resize(columns, rows)
            reply({"pty": known.pty_id})
            known.attach(_view(header))
            known.nudge()
            return
        if len(self._ptys) >= MOST or pty_id in self._ptys:
            raise OSError(errno.EAGAIN, f"a box has at most {MOST} terminals")
        session.when_saved(lambda: self._begin(session, pty_id, header, payload, reply))

    def _open_later(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        try:
            self._open(header, payload, reply)
        except OSError as error:  # the session has gone meanwhile
            reply.error(error.errno or errno.EIO, error.strerror or str(error))

    def _of(self, session: Session | Context) -> Pty | None:
        return next((pty for pty in self._ptys.values() if pty.sid == session.sid and not pty.ended), None)

    def _begin(
        self, session: Session | Context, pty_id: str, header: dict[str, Any], payload: bytes, reply: Reply
    ) -> None:
        if self._of(session) is not None:  # somebody else has waited as we have
            self._open_later(header, payload, reply)
            return
        try:
            if session.closing or any(sid == session.sid for sid, _ in self._waiting):
                raise OSError(errno.ENOENT, "the session is being closed")
            order, view = self._order(session, header, payload), _view(header)
            pty = Pty(self._common.loop, self._common.orphanage, pty_id, session.sid, order, self._send)
        except OSError as error:
            reply.error(error.errno or errno.EIO, f"no terminal can be opened: {error.strerror or error}")
            return
        except ValueError as error:
            reply.error(errno.EINVAL, str(error))
            return
        self._ptys[pty_id] = pty
        pty.on_change = self._changed
        reply({"pty": pty_id})
        pty.attach(view)

    def _order(self, session: Session | Context, header: dict[str, Any], payload: bytes) -> Order:
        shell = find_shell(self._common.shells)
        env, cwd = session.environment(), session.directory()
        for name in (b"COLUMNS", b"LINES"):
            env.pop(name, None)
        env[b"PWD"] = cwd
        env[b"SHELL"] = shell
        term = header.get("term")
        if term is not None and (not isinstance(term, str) or not _TERM.match(term)):
            raise ValueError("term must be the name of a kind of terminal")
        if term and env.get(b"TERM", _DUMB) == _DUMB:
            env[b"TERM"] = term.encode("ascii")
        argv = _argv(payload)
        exe = _found(argv[0], env, cwd) if argv else shell
        argv = argv or [b"-" + os.path.basename(shell)]
        return Order(exe, argv, env, cwd, *_size(header), header.get("persist") is True, _seconds(header.get("idle")))

    def _known(self, header: dict[str, Any]) -> Pty | None:
        return self._ptys.get(header["pty"])

    def _feed(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        if (pty := self._known(header)) is not None:
            pty.feed(payload)

    def _ack(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        if (pty := self._known(header)) is not None and type(header["at"]) is int:
            pty.ack(_view(header), header["at"])

    def _resize(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        columns, rows = _size(header)
        if (pty := self._known(header)) is not None:
            pty.resize(columns, rows)
        reply()

    def _detach(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        if (pty := self._known(header)) is not None:
            pty.detach()
        reply()

    def _signal(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        signum = header["signal"]
        if type(signum) is not int or not 1 <= signum <= 64:
            raise ValueError("signal must be a number from 1 to 64")
        if (pty := self._known(header)) is not None:
            pty.signal(signum)
        reply()

    def _kill(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        if (pty := self._known(header)) is not None:
            pty.kill("killed")
        reply()


def _size(header: Mapping[str, Any]) -> tuple[int, int]:
    columns, rows = header["columns"], header["rows"]
    if not all(type(one) is int and 1 <= one <= MOST_CELLS for one in (columns, rows)):
        raise ValueError(f"columns and rows must be numbers from 1 to {MOST_CELLS}")
    return columns, rows


def _view(header: Mapping[str, Any]) -> int:
    view = header["view"]
    if type(view) is not int or not 0 < view < 1 << 53:
        raise ValueError("view must be a number")
    return view


def _seconds(value: object) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value <= 1e9:
        raise ValueError("idle must be a number of seconds")
    return float(value)


def _argv(payload: bytes) -> list[bytes]:
    if not payload:
        return []
    if not payload.endswith(b"\0") or payload.count(b"\0") > _MOST_ARGUMENTS:
        raise ValueError(f"at most {_MOST_ARGUMENTS} arguments, each ended by NUL")
    return payload[:-1].split(b"\0")


def _found(program: bytes, env: Mapping[bytes, bytes], cwd: bytes) -> bytes:
    """Where it is along PATH, as a shell in that directory looks. OSError: nowhere."""
    places = [b""] if b"/" in program else env.get(b"PATH", b"/usr/bin:/bin").split(b":")
    for place in places:
        path = os.path.join(cwd, place, program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise OSError(errno.ENOENT, f"there is no program {json.dumps(os.fsdecode(program)[:200])} in this VM")
