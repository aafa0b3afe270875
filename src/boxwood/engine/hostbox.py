"""A live box as the server has it: the `Box` of engine/api.py over a link to the box's agent."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from boxwood.engine import hostmanifest
from boxwood.engine.api import (
    Activity,
    Asleep,
    BoxGone,
    EngineError,
    GuestError,
    Limits,
    Manifest,
    OpenFile,
    RunSink,
    RunSpec,
    SessionSink,
    SessionSpec,
)
from boxwood.engine.frames import MANIFEST_LIMIT, FrameError
from boxwood.engine.guest import python_program
from boxwood.engine.hostfeeds import HostArchiveFeed, HostFileFeed
from boxwood.engine.hostfiles import HostFiles
from boxwood.engine.hosthandles import HostHandles
from boxwood.engine.hostptys import HostPtys
from boxwood.engine.hostruns import HostRuns, quoted_argv
from boxwood.engine.kernel import OVERLAYFS_MAGIC, TMPFS_MAGIC, filesystem_type
from boxwood.engine.link import Answer, Link, integer, text
from boxwood.engine.policies import Policies
from boxwood.engine.pulse import Pulse
from boxwood.engine.volumes.kinds import DISKS

QUIET_SECONDS = 5.0  # for what it has been asked, before it falls asleep
ANSWER_SECONDS = 30.0  # an agent that does not answer for so long is replaced
FILE_SECONDS = 600.0
INLINE_BYTES = 1 << 20  # of a file written: more goes over as a descriptor
STATE_BYTES = 8 << 20
EARLY_BYTES = 64 << 20  # of states that come before anybody listens
_ENTRY_BYTES = 256  # that a short text and its name take in memory
BACKLOG_BYTES = 16 << 20  # of what is typed on terminals, as long as the agent says that it has been read


class HostBox:
    """See `boxwood.engine.api.Box`. `put_down` kills the box through the zygote; `dismissed` lets it do so later, and
    says whether it does. `hostname` and `limits` are unknown of a box that was adopted."""

    def __init__(
        self,
        box_id: str,
        vm_id: str,
        top: str,
        put_down: Callable[[str], Awaitable[None]],
        hostname: str = "",
        limits: Limits = Limits(),
        dismissed: Callable[[str], Awaitable[bool]] | None = None,
    ) -> None:
        self.box_id = box_id
        self.vm_id = vm_id
        self.top = top
        self.hostname = hostname
        self.limits = limits
        # That it goes by, or is to; None: those that an earlier server said.
        self.policies: Policies | None = Policies()
        self.policies_hold = True  # the router has said so
        self.address = ""
        self.read_only = False
        self.mounts: set[str] = set()
        self.gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._runs = HostRuns()
        self.known_runs = self._runs.known
        self._takes_input = False
        self._has_contexts = False
        self.ptys = HostPtys(self._ask, self._say, self._await_it, self._checking)
        self.files = HostFiles(self._ask, self._checking)
        self.handles = HostHandles(self._ask, self._say, self._checking)
        self._starts_programs = False  # a box that an older version has made starts only shells
        self._put_down = put_down
        self._dismissed = dismissed
        self._why = ""  # why it was put down, if it was
        self.stillborn = False  # it died before it had said anything, and not because it was too slow
        self._asleep = False
        self._stood_since: float | None = None  # seconds of time.monotonic, as the agent has it
        self._counts_sleep = False
        self._link: Link | None = None
        self._pulse: Pulse | None = None
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listener: SessionSink | None = None
        self._early_states: list[tuple[str, str, dict[str, str], bytes]] = []
        self._early_bytes = 0
        self._opening: dict[str, asyncio.Future[Answer]] = {}  # sessions that no run has been started in yet

    # --- how it comes and goes

    async def attach(self, sock: socket.socket, seconds: float = ANSWER_SECONDS) -> None:
        """Take a link and wait for the agent's greeting. BoxGone, with the box put down, if it does not come."""
        self._link = Link(sock, self._on_event, self._on_broken)
        self._pulse = Pulse(self._link, self._is_awaited)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._greeted)
        except BoxGone:
            self.stillborn = self._link.heard_nothing
            raise
        except TimeoutError:
            self._on_broken(f"the agent did not say hello within {seconds:g} s")
            raise BoxGone(self._why) from None

    def let_go(self) -> None:
        """Close the link; the box lives on."""
        if self._link is not None:
            self._link.close("the server lets go")

    def _is_awaited(self) -> bool:
        """Somebody waits for what the agent says on its own."""
        return not self._asleep and (self.ptys.looked_at or self._runs.going)

    def _await_it(self) -> None:
        if self._pulse is not None:
            self._pulse.begin()

    async def fall_asleep(self) -> None:
        """It is asked nothing more, for it is about to stand still. BoxGone, EngineError."""
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                await self._alive().quiet()
        except TimeoutError:
            raise EngineError("it is still busy with what it was asked") from None
        self._alive()
        self._asleep = True

    def about_to_stand_still(self) -> None:
        """Should this server end before it wakes it, it knows why so much time has passed."""
        self._stood_since = time.monotonic()
        if self._link is not None and self._counts_sleep:
            self._link.say({"op": "sleeps", "from": self._stood_since})

    def about_to_wake(self) -> None:
        """It finds this said when it goes on: the time of its runs has stood still as well."""
        since, self._stood_since = self._stood_since, None
        if since is not None and self._link is not None and self._counts_sleep:
            self._link.say({"op": "slept", "from": since, "to": time.monotonic()})

    def wake_up(self) -> None:
        self._asleep = False
        self._await_it()

    def died(self, status: str) -> None:
        """Nothing of the box is left: the zygote has said so, or has itself died."""
        if self._link is not None:
            self._link.close(self._why or status)
        reason = self._why or status
        if not self._greeted.done():
            self._greeted.set_exception(BoxGone(reason))
            self._greeted.exception()
        if not self.gone.done():
            self.gone.set_result(reason)

    async def kill(self) -> None:
        if not self.gone.done():
            self._why = self._why or "the box was put down"
            await self._put_down(self.box_id)
            await asyncio.shield(self.gone)

    async def dismiss(self) -> None:
        if self.gone.done():
            return
        self._why = self._why or "its VM was deleted"
        if self._dismissed is None or not await self._dismissed(self.box_id):
            await self.kill()

    def _on_broken(self, reason: str) -> None:
        """The agent cannot be relied on any more: replace it."""
        self._why = self._why or reason
        if not self._greeted.done():
            self._greeted.set_exception(BoxGone(reason))
            self._greeted.exception()
        if not self.gone.done():
            self._killing = asyncio.ensure_future(self._put_down(self.box_id))

    @contextlib.contextmanager
    def _checking(self, what: str) -> Iterator[None]:
        """BoxGone, and the box is put down, if what the agent has answered turns out to make no sense."""
        try:
            yield
        except FrameError as error:
            self._on_broken(f"the agent's {what} makes no sense: {error}"[:500])
            raise BoxGone(self._why) from None

    async def _ask(self, op: str, fields: dict[str, Any], payload: bytes = b"", **more: Any) -> Answer:
        """See Link.ask: descriptors are closed whatever happens."""
        more.setdefault("timeout", ANSWER_SECONDS)
        try:
            link = self._alive()
        except (BoxGone, Asleep):
            for fd in more.get("fds", ()):
                os.close(fd)
            raise
        return await link.ask(op, fields, payload, **more)

    def _say(self, fields: dict[str, Any], payload: bytes = b"") -> None:
        link = self._alive()
        link.say(fields, payload)
        if link.backlog > BACKLOG_BYTES:
            self._on_broken("the agent does not read what it is sent")
            link.close(self._why)

    def _alive(self) -> Link:
        if self._link is None or self.gone.done():
            raise BoxGone(self._why or "the box is gone")
        if self._asleep:
            raise Asleep("the box is suspended")
        return self._link

    # --- sessions

    def listen(self, sink: SessionSink) -> None:
        self._listener = sink
        early, self._early_states, self._early_bytes = self._early_states, [], 0
        for saved in early:
            sink.state(*saved)

    async def open_session(self, spec: SessionSpec) -> None:
        fields: dict[str, Any] = {"sid": spec.session_id, "env": dict(spec.env), "cwd": spec.cwd}
        payload = spec.state or b""
        if spec.kind == "python":
            if not self._has_contexts:
                raise GuestError(
                    errno.ENOSYS,
                    "the VM's box was made by an older version, which has no Python contexts: park it first",
                )
            program = python_program()
            fields |= {"kind": "python", "program": len(program)}
            payload = program + payload
        self._opening[spec.session_id] = self._alive().begin("session.open", fields, payload, timeout=ANSWER_SECONDS)

    async def close_session(self, session_id: str) -> None:
        await self._ask("session.close", {"sid": session_id})

    async def settle(self) -> Activity:
        header, *_ = await self._ask("settle", {})
        with self._checking("answer to settle"):
            return Activity(integer(header, "runs"), integer(header, "processes"), header.get("files") is True)

    # --- runs

    async def start_run(self, spec: RunSpec, sink: RunSink) -> None:
        if (spec.stdin_open or spec.marker) and not self._takes_input:
            raise GuestError(
                errno.ENOSYS,
                "the VM's box was made by an older version, which can do neither stdin_open nor end_symbol",
            )
        self._runs.attach(spec.run_id, sink, 3 if spec.reports else 2)
        quoted = spec.argv is not None and not self._starts_programs
        fields = {
            "rid": spec.run_id,
            "sid": spec.session_id,
            "timeout": spec.timeout,
            "prompt": spec.prompt,
            "stdin": None if spec.stdin is None else len(spec.stdin),
            "env": dict(spec.env or {}) if spec.env is not None or quoted else None,
            "cwd": spec.cwd,
            "user": spec.user,
            "argv": spec.argv is not None and not quoted,
            "leaves": spec.leaves,
            "open": spec.stdin_open,
            "marker": spec.marker,
        }
        command = spec.command
        if spec.argv is not None:
            command = quoted_argv(spec.argv) if quoted else b"".join(argument + b"\0" for argument in spec.argv)
        try:
            await self._ask("run.start", fields, (spec.stdin or b"") + command)
        except GuestError as error:
            self._runs.detach(spec.run_id)
            opening = self._opening.get(spec.session_id)
            raise (opening.exception() if opening is not None and opening.done() else None) or error from None
        finally:
            self._opening.pop(spec.session_id, None)
        self._await_it()

    async def resume_run(
        self, run_id: str, sink: RunSink, out_offset: int, err_offset: int, report_offset: int | None = None
    ) -> None:
        reported = [] if report_offset is None else [report_offset]
        self._runs.resume(run_id, sink, [out_offset, err_offset, *reported])
        await self._ask("run.resume", {"rid": run_id, "out": out_offset, "err": err_offset, "rep": report_offset or 0})
        self._await_it()

    def ack(self, run_id: str, out_offset: int, err_offset: int, report_offset: int = 0) -> None:
        if self._link is not None:
            fields = {"op": "run.ack", "rid": run_id, "out": out_offset, "err": err_offset}
            self._link.say({**fields, "rep": report_offset} if report_offset else fields)

    def forget(self, run_id: str) -> None:
        self._runs.forget(run_id)
        if self._link is not None:
            self._link.say({"op": "run.forget", "rid": run_id}, hurry=False)

    async def signal_run(self, run_id: str, signum: int) -> bool:
        header, *_ = await self._ask("run.signal", {"rid": run_id, "signal": signum})
        return header.get("delivered") is True

    async def write_stdin(self, run_id: str, at: int | None, data: bytes, eof: bool) -> int:
        header, *_ = await self._ask("run.stdin", {"rid": run_id, "at": at, "eof": eof}, data)
        with self._checking("answer to run.stdin"):
            return integer(header, "at")

    async def kill_run(self, run_id: str) -> None:
        await self._ask("run.kill", {"rid": run_id})

    # --- files

    async def read_file(self, path: str) -> OpenFile:
        _, _, (fd,) = await self._ask("file.read", {"path": path}, takes=1)
        try:
            return _checked_file(fd, may_be_in_memory=self.read_only, has_volumes=bool(self.mounts))
        except (FrameError, OSError) as error:
            os.close(fd)
            self._on_broken(f"the agent handed over what is no file of the VM: {error}")
            raise BoxGone(self._why) from None

    async def write_file(
        self, path: str, data: bytes | int, mode: int | None = None, *, durable: bool = False, in_run: bool = False
    ) -> int:
        asked = {"durable": durable, "in_run": in_run}
        fields = {"path": path, "mode": mode, **{name: True for name, wanted in asked.items() if wanted}}
        if isinstance(data, bytes) and len(data) <= INLINE_BYTES:
            header, *_ = await self._ask("file.write", {**fields, "size": len(data)}, data, timeout=FILE_SECONDS)
        else:
            fd = _in_memory(data) if isinstance(data, bytes) else os.dup(data)
            size = os.fstat(fd).st_size
            header, *_ = await self._ask("file.write", {**fields, "size": size}, fds=(fd,), timeout=FILE_SECONDS)
        with self._checking("answer to file.write"):
            if durable and header.get("durable") is not True:
                raise FrameError("it does not say that the file is on the disk")
            return integer(header, "size")

    async def receive_file(self, path: str, mode: int | None = None, *, durable: bool = False) -> HostFileFeed:
        return await HostFileFeed.open(self._alive(), self._checking, path, mode, durable)

    async def receive_archive(self, path: str, packed: bool, limit: int, *, durable: bool = False) -> HostArchiveFeed:
        return HostArchiveFeed.open(self._alive(), self._checking, path, packed, limit, durable)

    async def manifest(self, path: str, limit: int = 50_000) -> Manifest:
        lines = bytearray()

        def part(header: dict[str, Any], payload: bytes) -> None:
            nonlocal lines
            lines += payload
            if len(lines) > MANIFEST_LIMIT:
                raise FrameError("a manifest without end")

        header, payload, _ = await self._ask(
            "file.manifest", {"path": path, "limit": limit}, timeout=FILE_SECONDS, parts=part
        )
        lines += payload
        with self._checking("manifest"):
            entries = await asyncio.to_thread(hostmanifest.entries, lines, limit)
            return Manifest(hostmanifest.path(header, "root"), entries, header.get("truncated") is True)

    # --- what the agent says on its own

    def _on_event(self, header: dict[str, Any], payload: bytes) -> None:
        if "boot" in header:
            raise FrameError(text(header, "error"))
        match header.get("ev"):
            case "hello":
                self._on_hello(header)
            case "out":
                self._runs.on_output(header, payload)
            case "end":
                self._runs.on_end(header)
            case "state":
                self._on_state(header, payload)
            case "pty.out" | "pty.taken" | "pty.end" as kind:
                self.ptys.on_event(kind, header, payload)
            case other:
                raise FrameError(f"unknown: {str(other)[:40]}")

    def _on_hello(self, header: dict[str, Any]) -> None:
        if self._greeted.done():
            raise FrameError("a second greeting")
        self._runs.on_hello(header.get("runs", []))
        self._starts_programs = header.get("programs") is True
        self._takes_input = header.get("stdin") is True
        self._has_contexts = header.get("python") is True
        self._counts_sleep = header.get("sleeps") is True
        self.files.known = header.get("files") is True
        self.ptys.on_hello(header.get("ptys", []))
        self._greeted.set_result(None)

    def _on_state(self, header: dict[str, Any], payload: bytes) -> None:
        session_id, cwd, env = text(header, "sid", 26), text(header, "cwd"), header.get("env", {})
        if not isinstance(env, dict) or not all(isinstance(v, str) for v in env.values()) or len(payload) > STATE_BYTES:
            raise FrameError("a state has an environment of texts and is at most 8 MiB long")
        if self._listener is None:
            named = sum(_ENTRY_BYTES + len(name) + len(value) for name, value in env.items())
            self._early_bytes += len(payload) + len(cwd) + named + 1024
            if self._early_bytes > EARLY_BYTES:
                raise FrameError("states without end")
            self._early_states.append((session_id, cwd, env, payload))
        else:
            self._listener.state(session_id, cwd, env, payload)


def _checked_file(fd: int, *, may_be_in_memory: bool = False, has_volumes: bool = False) -> OpenFile:
    """What came must be a regular file on an overlay, on the tmpfs of a read-only box, or on what volumes lie on:
    nothing else can be read without a surprise."""
    found = os.fstat(fd)
    kinds = {OVERLAYFS_MAGIC, *((TMPFS_MAGIC,) if may_be_in_memory else ()), *(DISKS if has_volumes else ())}
    if not stat.S_ISREG(found.st_mode) or filesystem_type(fd) not in kinds:
        raise FrameError("not a regular file on the VM's disk")
    return OpenFile(fd, found.st_size, stat.S_IMODE(found.st_mode))


def _in_memory(data: bytes) -> int:
    fd = os.memfd_create("upload", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return fd
