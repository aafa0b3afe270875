"""A live box as the server has it: the `Box` of engine/api.py over a link to the box's agent."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import os
import re
import shlex
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from boxwood.engine.api import (
    Activity,
    BoxGone,
    GuestError,
    Limits,
    Manifest,
    ManifestEntry,
    OpenFile,
    RunEnd,
    RunSink,
    RunSpec,
    SessionSink,
    SessionSpec,
)
from boxwood.engine.frames import MANIFEST_LIMIT, FrameError
from boxwood.engine.hostptys import HostPtys
from boxwood.engine.kernel import OVERLAYFS_MAGIC, TMPFS_MAGIC, filesystem_type
from boxwood.engine.link import Answer, Link, integer, text

ANSWER_SECONDS = 30.0  # an agent that does not answer for so long is replaced
FILE_SECONDS = 600.0
INLINE_BYTES = 1 << 20  # of a file written: more goes over as a descriptor
STATE_BYTES = 8 << 20
EARLY_BYTES = 64 << 20  # of states that come before anybody listens
_ENTRY_BYTES = 256  # that a short text and its name take in memory
OUTPUT_BYTES = 1 << 20
BACKLOG_BYTES = 16 << 20  # of what is typed on terminals, as long as the agent says that it has been read
_REASONS = frozenset({"exit", "timeout", "killed", "prompt", "broken"})
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_NOT_A_NAME = frozenset({"", ".", ".."})


@dataclass(slots=True)
class _Attached:
    """A run whose output somebody takes: where its streams have come to."""

    sink: RunSink
    offsets: list[int] = field(default_factory=lambda: [0, 0])
    ended: bool = False


class HostBox:
    """See `boxwood.engine.api.Box`. `put_down` kills the box through the zygote. `hostname` and `limits` are unknown of
    a box that was adopted."""

    def __init__(
        self,
        box_id: str,
        vm_id: str,
        top: str,
        put_down: Callable[[str], Awaitable[None]],
        hostname: str = "",
        limits: Limits = Limits(),
    ) -> None:
        self.box_id = box_id
        self.vm_id = vm_id
        self.top = top
        self.hostname = hostname
        self.limits = limits
        self.address = ""
        self.read_only = False
        self.gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.known_runs: dict[str, RunEnd | None] = {}
        self._takes_input = False
        self.ptys = HostPtys(self._ask, self._say)
        self._starts_programs = False  # a box that an older version has made starts only shells
        self._put_down = put_down
        self._why = ""  # why it was put down, if it was
        self._link: Link | None = None
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listener: SessionSink | None = None
        self._early_states: list[tuple[str, str, dict[str, str], bytes]] = []
        self._early_bytes = 0
        self._runs: dict[str, _Attached] = {}
        self._opening: dict[str, asyncio.Future[Answer]] = {}  # sessions that no run has been started in yet

    # --- how it comes and goes

    async def attach(self, sock: socket.socket, seconds: float = ANSWER_SECONDS) -> None:
        """Take a link and wait for the agent's greeting. BoxGone, with the box put down, if it does not come."""
        self._link = Link(sock, self._on_event, self._on_broken)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._greeted)
        except TimeoutError:
            self._on_broken(f"the agent did not say hello within {seconds:g} s")
            raise BoxGone(self._why) from None

    def let_go(self) -> None:
        """Close the link; the box lives on."""
        if self._link is not None:
            self._link.close("the server lets go")

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
        more.setdefault("timeout", ANSWER_SECONDS)
        return await self._alive().ask(op, fields, payload, **more)

    def _say(self, fields: dict[str, Any], payload: bytes = b"") -> None:
        link = self._alive()
        link.say(fields, payload)
        if link.backlog > BACKLOG_BYTES:
            self._on_broken("the agent does not read what it is sent")
            link.close(self._why)

    def _alive(self) -> Link:
        if self._link is None or self.gone.done():
            raise BoxGone(self._why or "the box is gone")
        return self._link

    # --- sessions

    def listen(self, sink: SessionSink) -> None:
        self._listener = sink
        early, self._early_states, self._early_bytes = self._early_states, [], 0
        for saved in early:
            sink.state(*saved)

    async def open_session(self, spec: SessionSpec) -> None:
        fields = {"sid": spec.session_id, "env": dict(spec.env), "cwd": spec.cwd}
        self._opening[spec.session_id] = self._alive().begin(
            "session.open", fields, spec.state or b"", timeout=ANSWER_SECONDS
        )

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
        self._runs[spec.run_id] = _Attached(sink)
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
            command = _quoted(spec.argv) if quoted else b"".join(argument + b"\0" for argument in spec.argv)
        try:
            await self._ask("run.start", fields, (spec.stdin or b"") + command)
        except GuestError as error:
            self._runs.pop(spec.run_id, None)
            opening = self._opening.get(spec.session_id)
            raise (opening.exception() if opening is not None and opening.done() else None) or error from None
        finally:
            self._opening.pop(spec.session_id, None)

    async def resume_run(self, run_id: str, sink: RunSink, out_offset: int, err_offset: int) -> None:
        self._runs[run_id] = _Attached(sink, [out_offset, err_offset])
        await self._ask("run.resume", {"rid": run_id, "out": out_offset, "err": err_offset})

    def ack(self, run_id: str, out_offset: int, err_offset: int) -> None:
        if self._link is not None:
            self._link.say({"op": "run.ack", "rid": run_id, "out": out_offset, "err": err_offset})

    def forget(self, run_id: str) -> None:
        self._runs.pop(run_id, None)
        self.known_runs.pop(run_id, None)
        if self._link is not None:
            self._link.say({"op": "run.forget", "rid": run_id}, hurry=False)

    async def signal_run(self, run_id: str, signum: int) -> bool:
        header, *_ = await self._ask("run.signal", {"rid": run_id, "signal": signum})
        return header.get("delivered") is True

    async def write_stdin(self, run_id: str, at: int | None, data: bytes, eof: bool) -> int:
        header, *_ = await self._ask("run.stdin", {"rid": run_id, "at": at, "eof": eof}, data)
        return integer(header, "at")

    async def kill_run(self, run_id: str) -> None:
        await self._ask("run.kill", {"rid": run_id})

    # --- files

    async def read_file(self, path: str) -> OpenFile:
        _, _, (fd,) = await self._ask("file.read", {"path": path}, takes=1)
        try:
            return _checked_file(fd, may_be_in_memory=self.read_only)
        except (FrameError, OSError) as error:
            os.close(fd)
            self._on_broken(f"the agent handed over what is no file of the VM: {error}")
            raise BoxGone(self._why) from None

    async def write_file(self, path: str, data: bytes | int, mode: int | None = None) -> int:
        fields: dict[str, Any] = {"path": path, "mode": mode}
        if isinstance(data, bytes) and len(data) <= INLINE_BYTES:
            header, *_ = await self._ask("file.write", {**fields, "size": len(data)}, data, timeout=FILE_SECONDS)
        else:
            fd = _in_memory(data) if isinstance(data, bytes) else os.dup(data)
            size = os.fstat(fd).st_size
            header, *_ = await self._ask("file.write", {**fields, "size": size}, fds=(fd,), timeout=FILE_SECONDS)
        with self._checking("answer to file.write"):
            return integer(header, "size")

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
            entries = await asyncio.to_thread(_entries, lines, limit)
            return Manifest(_name(header, "root"), entries, header.get("truncated") is True)

    # --- what the agent says on its own

    def _on_event(self, header: dict[str, Any], payload: bytes) -> None:
        if "boot" in header:
            raise FrameError(text(header, "error"))
        match header.get("ev"):
            case "hello":
                self._on_hello(header)
            case "out":
                self._on_output(header, payload)
            case "end":
                self._on_end(header)
            case "state":
                self._on_state(header, payload)
            case "pty.out" | "pty.taken" | "pty.end" as kind:
                self.ptys.on_event(kind, header, payload)
            case other:
                raise FrameError(f"unknown: {str(other)[:40]}")

    def _on_hello(self, header: dict[str, Any]) -> None:
        if self._greeted.done():
            raise FrameError("a second greeting")
        runs = header.get("runs", [])
        if not isinstance(runs, list) or len(runs) > 10_000:
            raise FrameError("runs must be a list")
        for run in runs:
            if not isinstance(run, dict):
                raise FrameError("a run that is no object")
            end = run.get("end")
            self.known_runs[text(run, "rid", 26)] = None if end is None else _run_end(end)
        self._starts_programs = header.get("programs") is True
        self._takes_input = header.get("stdin") is True
        self.ptys.on_hello(header.get("ptys", []))
        self._greeted.set_result(None)

    def _on_output(self, header: dict[str, Any], payload: bytes) -> None:
        run = self._runs.get(text(header, "rid", 26))
        if run is None:
            return  # forgotten meanwhile
        stream, at = integer(header, "stream"), integer(header, "at")
        if stream not in (1, 2) or at != run.offsets[stream - 1] or run.ended or len(payload) > OUTPUT_BYTES:
            raise FrameError(f"output of stream {stream} at {at}, expected at {run.offsets}")
        run.offsets[stream - 1] += len(payload)
        run.sink.output(stream, at, payload)

    def _on_end(self, header: dict[str, Any]) -> None:
        run_id = text(header, "rid", 26)
        end = _run_end(header)
        run = self._runs.get(run_id)
        if run_id in self.known_runs:
            self.known_runs[run_id] = end
        if run is None or run.ended:
            return
        if [end.out_bytes, end.err_bytes] != run.offsets:
            raise FrameError(f"the run ended at {end.out_bytes}, {end.err_bytes}, its output at {run.offsets}")
        run.ended = True
        run.sink.finished(end)

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


def _quoted(argv: Sequence[bytes]) -> bytes:
    """For a shell, which becomes the program."""
    return b"exec " + os.fsencode(shlex.join(map(os.fsdecode, argv)))


def _run_end(fields: object) -> RunEnd:
    if not isinstance(fields, dict):
        raise FrameError("an end that is no object")
    code, reason = fields.get("code"), fields.get("reason")
    if code is not None and (type(code) is not int or not 0 <= code <= 255):
        raise FrameError(f"an exit code of {str(code)[:20]}")
    if not isinstance(reason, str) or reason not in _REASONS:
        raise FrameError(f"a reason of {str(reason)[:20]}")
    sizes = integer(fields, "out"), integer(fields, "err")
    return RunEnd(code, reason, *sizes, not_started=fields.get("started") is False)


def _checked_file(fd: int, *, may_be_in_memory: bool = False) -> OpenFile:
    """What came must be a regular file on an overlay, or on the tmpfs of a read-only box: nothing else can be read
    without a surprise."""
    found = os.fstat(fd)
    kinds = (OVERLAYFS_MAGIC, TMPFS_MAGIC) if may_be_in_memory else (OVERLAYFS_MAGIC,)
    if not stat.S_ISREG(found.st_mode) or filesystem_type(fd) not in kinds:
        raise FrameError("not a regular file on the VM's disk")
    return OpenFile(fd, found.st_size, stat.S_IMODE(found.st_mode))


def _in_memory(data: bytes) -> int:
    fd = os.memfd_create("upload", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def _entries(lines: bytes | bytearray, limit: int) -> tuple[ManifestEntry, ...]:
    """FrameError."""
    found = []
    for number, line in enumerate(io.BytesIO(lines)):
        if number == limit:
            break
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FrameError(f"a line that is not JSON: {type(error).__name__}") from None
        if not isinstance(fields, dict):
            raise FrameError("a line that is no object")
        entry = ManifestEntry(
            _name(fields, "path"), integer(fields, "size"), integer(fields, "mode"), text(fields, "hash", 64)
        )
        if not _DIGEST.match(entry.hash) or not _NOT_A_NAME.isdisjoint(entry.path.split("/")):
            raise FrameError("a manifest entry that makes no sense")
        found.append(entry)
    return tuple(found)


def _name(fields: dict[str, Any], field_name: str) -> str:
    """A path that can be said to clients: UTF-8 without NUL."""
    value = text(fields, field_name)
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raise FrameError(f"{field_name} is not UTF-8") from None
    if len(raw) > 4096 or 0 in raw:
        raise FrameError(f"{field_name} is no path")
    return value
