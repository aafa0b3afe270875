"""PID 1 of a box: the loop, the link to the server, and who does what is asked.

It is a fork of the nursery, without an exec. What runs in the box may do anything to it that root in the box can:
so it looks nothing up that the box could have planted (no imports, no codecs, no NSS), shows no tracebacks, and holds
nothing that is worth taking.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from boxwood.engine.agent import copyups, files
from boxwood.engine.agent.deeds import DEEDS
from boxwood.engine.agent.desk import Desk
from boxwood.engine.agent.flushes import Flushes
from boxwood.engine.agent.forks import Forks
from boxwood.engine.agent.handles import Handles
from boxwood.engine.agent.helpers import Helpers
from boxwood.engine.agent.links import LINKS
from boxwood.engine.agent.loop import Loop, Timer
from boxwood.engine.agent.receiving import Receiving
from boxwood.engine.agent.works import WORKS
from boxwood.engine.frames import TO_AGENT_LIMIT, FrameError, Incoming, Outgoing

_LEISURE = 0.005  # seconds
_DEEDS = {**DEEDS, **LINKS}


def import_no_more() -> None:
    """What is not loaded is not looked for: in a box it would be the box's."""
    if sys.meta_path:
        sys.path.clear()
        sys.meta_path.clear()
        sys.path_hooks.clear()
        warnings.simplefilter("ignore")  # to show one, its source would be looked for


class Reply:
    """The answer to one request; calling it answers. Safe to call after the link has changed: then it is dropped."""

    def __init__(self, agent: Agent, number: int) -> None:
        self._agent = agent
        self._number = number
        self._link = agent.link

    def __call__(
        self,
        fields: dict[str, Any] | None = None,
        payload: bytes = b"",
        fds: tuple[int, ...] = (),
        *,
        hurry: bool = True,
    ) -> None:
        if self._link is not None and self._link is self._agent.link:
            self._link.put({"re": self._number, **(fields or {})}, payload, fds, hurry=hurry)
        else:
            for fd in fds:
                os.close(fd)

    def error(self, number: int, text: str) -> None:
        self({"errno": number, "error": text[:2000]})


class AgentLink:
    """The present connection to the server."""

    def __init__(
        self, loop: Loop, sock: socket.socket, on_frame: Callable[..., None], on_close: Callable[[], None]
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._incoming = Incoming(sock, TO_AGENT_LIMIT)
        self._outgoing = Outgoing(sock)
        self._on_frame = on_frame
        self._on_close = on_close
        self._writing = False
        self._leisure: Timer | None = None
        self._closed = False
        loop.watch(sock.fileno(), select.EPOLLIN, self._ready)

    def put(
        self, header: dict[str, Any], payload: bytes = b"", fds: tuple[int, ...] = (), *, hurry: bool = True
    ) -> None:
        """Without `hurry` it leaves with the next frame that has some, or in a few milliseconds: waking the server for
        it would cost a short run a tenth of its time."""
        if self._closed:
            for fd in fds:
                os.close(fd)
            return
        self._outgoing.put(header, payload, fds)
        if self._writing:
            return
        if hurry:
            self._flush()
        elif self._leisure is None:
            self._leisure = self._loop.at(time.monotonic() + _LEISURE, self._flush)

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if events & ~select.EPOLLOUT and not self._closed:
            self._read()

    def _read(self) -> None:
        try:
            if not self._incoming.receive():
                self.close()
                return
            for header, payload, fds in self._incoming.frames():
                self._on_frame(header, payload, fds)
        except BlockingIOError:
            pass
        except (OSError, FrameError):
            self.close()

    def _flush(self) -> None:
        if self._leisure is not None:
            self._leisure.cancel()
            self._leisure = None
        if self._closed:
            return
        try:
            done = self._outgoing.flush()
        except OSError:
            self.close()
            return
        if done == self._writing:
            self._writing = not done
            self._loop.unwatch(self._sock.fileno())
            events = select.EPOLLIN | (select.EPOLLOUT if self._writing else 0)
            self._loop.watch(self._sock.fileno(), events, self._ready)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._incoming.close()
            self._outgoing.close()
            self._on_close()


class Agent:
    """Made before there is a VM; `desk.open_up` when the VM's root is there, then `serve`."""

    def __init__(self, directory: bytes, hook: socket.socket) -> None:
        self._loop = Loop()
        self.link: AgentLink | None = None
        self._hook = hook
        self._forks = Forks(self._loop)
        self._flushes = Flushes(self._loop)
        self.desk = Desk(self._loop, directory, self._send)
        self._helpers = Helpers(self._loop, WORKS)
        self.desk.at_work = self._helpers.count
        self._receiving = Receiving(self._loop, self._flushes)
        self._handles = Handles(self._flushes)

    def serve(self, link_fd: int) -> NoReturn:
        """Be the agent."""
        import_no_more()
        self.attend(link_fd)
        while True:
            self._loop.step()

    def attend(self, link_fd: int) -> None:
        self._hook.setblocking(False)
        self._loop.watch(self._hook.fileno(), select.EPOLLIN, self._on_hook)
        self._take_link(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, link_fd))

    def turn(self, seconds: float) -> None:
        """Hear and do what comes within that time; for one that ends before its process does, as is `leave`."""
        self._loop.step(seconds)

    def leave(self) -> None:
        if self.link is not None:
            self.link.close()
        self._loop.close()
        self._hook.close()

    def _send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        if self.link is not None:
            self.link.put(header, payload)

    # --- links come and go

    def _take_link(self, sock: socket.socket) -> None:
        if self.link is not None:
            self.link.close()
        self.link = AgentLink(self._loop, sock, self._on_frame, self._on_link_closed)
        self.desk.relink()

    def _on_link_closed(self) -> None:
        self.link = None
        self.desk.unlink()
        self._receiving.relink()
        self._handles.relink()

    def _on_hook(self, events: int) -> None:
        try:
            data, ancillary, *_ = self._hook.recvmsg(16, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        fds = [fd for *_, rights in ancillary for fd in array.array("i", rights)]
        if data and len(fds) == 1:
            self._take_link(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fds[0]))
        elif not data:
            os._exit(0)  # the zygote is gone: in case it went while we were not yet to be killed with it

    # --- what is asked

    def _on_frame(self, header: dict[str, Any], payload: bytes, fds: list[int]) -> None:
        op = header["op"]
        reply = Reply(self, header.get("n", 0))
        try:
            if op == "ping":
                reply()
            elif op == "file.read":
                self._read_file(header, reply)
            elif op == "file.write":
                self._write_file(header, payload, fds, reply)
            elif op == "file.manifest":
                self._forks.manifest(header, reply)
            elif op == "file.work":
                self._helpers.start(header, fds)
                reply()
            elif op in _DEEDS:
                copyups.do(op, _DEEDS[op], header, self._flushes, reply)
            elif op in self._handles.ops:
                self._handles.ops[op](header, payload, reply)
            elif op == "file.unpack":
                (source,) = fds
                self._forks.unpack(header, source, reply)
            elif op in self._receiving.ops:
                self._receiving.ops[op](header, fds, reply)
            else:
                self.desk.handle(op, header, payload, reply)
        except files.Refusal as refusal:
            reply.error(refusal.errno, refusal.text)
        except OSError as error:
            number = error.errno or errno.EIO
            said = "the VM has all processes that it may have" if number == errno.EAGAIN else os.strerror(number)
            reply.error(number, f"{said}: {error.filename or header.get('path') or op}")
        except (ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
            reply.error(errno.EINVAL, f"{op}: {type(error).__name__}: {error}")
        finally:
            for fd in fds:
                os.close(fd)

    def _read_file(self, header: dict[str, Any], reply: Reply) -> None:
        fd, found = files.open_for_reading(header["path"])
        reply({"size": found.st_size, "mode": found.st_mode}, fds=(fd,))

    def _write_file(self, header: dict[str, Any], payload: bytes, fds: list[int], reply: Reply) -> None:
        in_run = header.get("in_run") is True
        writing = files.Writing(header["path"], header.get("mode"), slowly=bool(fds), in_run=in_run)
        try:
            if not fds:
                writing.bytes(payload)
                self._flushes.finish(writing, len(payload), header.get("durable") is True, reply)
                return
            source = os.dup(fds[0])
        except BaseException:
            writing.abandon()
            raise
        self._go_on(writing, writing.copy(source, header["size"]), source, header, reply)

    def _go_on(self, writing: files.Writing, slices: Any, source: int, header: dict[str, Any], reply: Reply) -> None:
        """A slice of a copy; then others have their turn."""
        try:
            if next(slices, None) is not None:
                self._loop.at(0, lambda: self._go_on(writing, slices, source, header, reply))
                return
            self._flushes.finish(writing, header["size"], header.get("durable") is True, reply)
        except (files.Refusal, OSError) as error:
            writing.abandon()
            text = error.text if isinstance(error, files.Refusal) else os.strerror(error.errno or errno.EIO)
            reply.error(error.errno or errno.EIO, f"{text}: {header['path']}")
        os.close(source)
