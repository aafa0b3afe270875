"""An engine in memory that keeps `engine.api`'s promises: layers are dictionaries, commands a few words.

A `Machine` is what outlives an engine, as the host outlives the server: layers and live boxes. `FakeEngine(machine)`
is one server's view of it. Commands, separated by `;`:

    echo WORDS · err WORDS · cat PATH · put PATH TEXT · rm PATH · cd DIR · pwd · export K=V · env K · exit N
    mkdir -p -- PATHS (does nothing) · hang (until killed, signalled or `Machine.release`) · argv WORDS (as JSON) · bytes HEX · whoami
    flood BYTES · daemon (leaves a process) · prompt · type (what is given to its standard input)
    fetch BYTES (over the network) · knock NAME (where nobody may)
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import posixpath
import shlex
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from boxwood.engine.api import (
    PTY_WINDOW,
    Activity,
    BoxGone,
    BoxSpec,
    Contents,
    CopyReport,
    Denial,
    EngineError,
    Feature,
    GuestError,
    Limits,
    Manifest,
    ManifestEntry,
    OpenFile,
    PtyEnd,
    PtySink,
    PtySpec,
    RunEnd,
    RunSink,
    RunSpec,
    SessionSink,
    SessionSpec,
    Usage,
)

IMAGE = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
WINDOW = 1 << 20
PIECE = 64 << 10
Tree = dict[str, bytes | None]  # None: deleted


@dataclass
class Shell:
    cwd: str
    env: dict[str, str]


@dataclass
class Process:
    """A run in a box: what it has put out and what of that may be forgotten."""

    spec: RunSpec
    task: asyncio.Task[None] | None = None
    streams: dict[int, bytearray] = field(default_factory=lambda: {1: bytearray(), 2: bytearray()})
    base: dict[int, int] = field(default_factory=lambda: {1: 0, 2: 0})  # offset of the first byte that is kept
    sent: dict[int, int] = field(default_factory=lambda: {1: 0, 2: 0})
    end: RunEnd | None = None
    sink: RunSink | None = None
    room: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = "exit"
    code: int | None = None
    not_started: bool = False
    given: bytearray = field(default_factory=bytearray)  # to an open standard input
    given_end: bool = False
    read: int = 0  # of it
    news: asyncio.Event = field(default_factory=asyncio.Event)
    no_room: bool = False

    def total(self, stream: int) -> int:
        return self.base[stream] + len(self.streams[stream])

    def deliver(self) -> None:
        if self.sink is None:
            return
        for stream in (1, 2):
            while self.sink is not None and self.sent[stream] < self.total(stream):
                at = self.sent[stream]
                data = bytes(self.streams[stream][at - self.base[stream] :][:PIECE])
                self.sent[stream] += len(data)
                self.sink.output(stream, at, data)
        if self.end is not None and self.sink is not None:
            sink, self.sink = self.sink, None
            sink.finished(self.end)

    async def write(self, stream: int, data: bytes) -> None:
        while data and self.reason != "killed":
            room = WINDOW - len(self.streams[stream])
            if room <= 0:
                self.room.clear()
                await self.room.wait()
                continue
            self.streams[stream] += data[:room]
            data = data[room:]
            self.deliver()

    def ack(self, stream: int, offset: int) -> None:
        drop = offset - self.base[stream]
        assert drop <= len(self.streams[stream]), "acknowledged what was never sent"
        if drop > 0:
            del self.streams[stream][:drop]
            self.base[stream] = offset
            self.room.set()


class LivingBox:
    """A box as the machine has it, whoever is connected."""

    def __init__(self, machine: Machine, spec: BoxSpec) -> None:
        self.machine = machine
        self.spec = spec
        self.runs: dict[str, Process] = {}
        self.shells: dict[str, Shell] = {}
        self.states: dict[str, bytes] = {}
        self.ptys: dict[str, FakePty] = {}
        self.processes = 0
        self.memory_kills = 0
        self.address = f"198.18.0.{len(machine.called('boot')) % 250 + 2}" if spec.network else ""
        self.moved = Usage()
        self.memory: dict[str, bytes] = {}  # the /tmp of a read-only box
        self.handle: FakeBox | None = None
        self.dead: str | None = None

    def tree(self) -> dict[str, bytes]:
        return self.machine.view((self.spec.stack.top, *self.spec.stack.layers)) | self.memory

    @property
    def top(self) -> Tree:
        return self.machine.layers[self.spec.stack.top]

    def write(self, path: str, data: bytes | None) -> None:
        if not self.spec.read_only:
            self.top[path] = data
        elif not path.startswith("/tmp/"):
            raise GuestError(errno.EROFS, f"the VM is read-only, but for /tmp: {path} cannot be written")
        elif data is None:
            self.memory.pop(path, None)
        else:
            self.memory[path] = data

    def save(self, session_id: str) -> None:
        shell = self.shells[session_id]
        self.states[session_id] = json.dumps([shell.cwd, shell.env]).encode()
        self.tell(session_id)

    def tell(self, session_id: str) -> None:
        if self.handle is not None and self.handle.sink is not None and session_id in self.states:
            shell = self.shells[session_id]
            self.handle.sink.state(session_id, shell.cwd, dict(shell.env), self.states[session_id])

    def die(self, reason: str) -> None:
        """As if its PID 1 had been killed."""
        self.dead = reason
        self.machine.boxes.pop(self.spec.vm_id, None)
        if self.machine.engine is not None and not self.machine.engine.closed:
            self.machine.engine.sink(self.spec.vm_id, self.moved)
        for process in self.runs.values():
            process.sink = None
            if process.task is not None:
                process.task.cancel()
        if self.handle is not None and not self.handle.gone.done():
            self.handle.gone.set_result(reason)

    async def execute(self, process: Process) -> None:
        spec = process.spec
        shell = self.shells[spec.session_id]
        if spec.env is not None or spec.cwd is not None or spec.user is not None:
            shell = Shell(spec.cwd or shell.cwd, shell.env | dict(spec.env or {}))
        code: int | None = 0
        try:
            async with asyncio.timeout(spec.timeout):
                for step in _steps(spec):
                    code = await self.step(process, shell, step)
                    if code:
                        break
        except TimeoutError:
            process.reason, code = "timeout", 137
        except GuestError as error:
            await process.write(2, f"{error.message}\n".encode())
            code = 1
        if process.reason in ("killed", "signalled"):
            code = process.code
        if process.reason == "prompt":
            code = None
        end = RunEnd(
            code, "exit" if process.reason == "signalled" else process.reason, process.total(1), process.total(2),
            not_started=process.not_started,
        )  # fmt: skip
        if spec.session_id in self.shells:
            self.save(spec.session_id)
        process.end = end
        process.deliver()

    async def step(self, process: Process, shell: Shell, words: list[str]) -> int:
        match words:
            case ["echo", *rest]:
                await process.write(1, (" ".join(rest) + "\n").encode())
            case ["err", *rest]:
                await process.write(2, (" ".join(rest) + "\n").encode())
            case ["argv", *rest]:
                await process.write(1, json.dumps(rest).encode())
            case ["bytes", text]:
                await process.write(1, bytes.fromhex(text))
            case ["whoami"]:
                await process.write(1, (process.spec.user or "root").encode() + b"\n")
            case ["type"]:  # what is given, as it is given, until its end
                while process.reason == "exit" and not (process.given_end and process.read == len(process.given)):
                    data, process.read = bytes(process.given[process.read :]), len(process.given)
                    await process.write(1, data)
                    if process.read == len(process.given) and not process.given_end:
                        process.news.clear()
                        await process.news.wait()
            case ["stdin"]:
                await process.write(1, process.spec.stdin or b"")
            case ["cat", path]:
                await process.write(1, self.read(posixpath.join(shell.cwd, path)))
            case ["put", path, *rest]:
                self.write(posixpath.normpath(posixpath.join(shell.cwd, path)), " ".join(rest).encode())
            case ["rm", "-f", "--", path] | ["rm", path]:
                self.write(posixpath.normpath(posixpath.join(shell.cwd, path)), None)
            case ["mkdir", "-p", "--", *_]:
                pass  # a tree has files alone
            case ["cd", path]:
                shell.cwd = posixpath.normpath(posixpath.join(shell.cwd, path))
            case ["pwd"]:
                await process.write(1, (shell.cwd + "\n").encode())
            case ["export", pair]:
                key, _, value = pair.partition("=")
                shell.env[key] = value
            case ["env", key]:
                await process.write(1, (shell.env.get(key, "") + "\n").encode())
            case ["exit", code]:
                return int(code)
            case ["hang"]:
                await process.released.wait()
            case ["flood", size]:
                left = int(size)
                while left:
                    piece = b"x" * min(left, PIECE)
                    await process.write(1, piece)
                    left -= len(piece)
            case ["daemon"]:
                self.processes += 1
            case ["fetch", size] if self.address:
                self.moved += Usage(sent=100, received=int(size), connections=1)
            case ["knock", *name] if self.address:
                self.moved += Usage(denied=1, denials=(Denial(time.time(), "dns", name=" ".join(name), reason="name"),))
                return 6
            case ["fetch" | "knock", *_]:
                await process.write(2, b"network is unreachable\n")
                return 7
            case ["prompt"]:
                process.reason = "prompt"
            case []:
                pass
            case _:
                process.not_started = process.spec.argv is not None
                why = "No such file or directory" if process.not_started else "not found"
                await process.write(2, f"{words[0]}: {why}\n".encode())
                return 127
        return 0

    def read(self, path: str) -> bytes:
        tree, clean = self.tree(), posixpath.normpath(path)
        if clean in tree:
            return tree[clean]
        if any(name.startswith(clean.rstrip("/") + "/") for name in tree):
            raise GuestError(errno.EISDIR, f"{path}: is a directory")
        raise GuestError(errno.ENOENT, f"{path}: no such file")


class Machine:
    """A host: layers and boxes, which outlive engines. `calls` lists what engines were asked."""

    def __init__(self) -> None:
        self.free_memory = self.free_disk = 1 << 40
        self.layers: dict[str, Tree] = {}
        self.disks: dict[str, int] = {}  # of tops that were made with a limit, and of layers that were: their capacity
        self.disk_problem = ""
        self.images: dict[str, Tree] = {IMAGE: {"/etc/os-release": b"fake"}}
        self.boxes: dict[str, LivingBox] = {}
        self.calls: list[tuple[str, object]] = []
        self.fail: dict[str, list[Exception]] = {}
        self.merge_gate: asyncio.Event | None = None  # merges wait for it
        self.engine: FakeEngine | None = None  # of the server of the moment

    def called(self, what: str) -> list[object]:
        return [argument for name, argument in self.calls if name == what]

    def note(self, what: str, argument: object) -> None:
        self.calls.append((what, argument))
        if self.fail.get(what):
            raise self.fail[what].pop(0)

    def view(self, stack: Sequence[str]) -> dict[str, bytes]:
        shown: Tree = {}
        for layer_id in reversed(stack):
            shown |= self.layers[layer_id] if layer_id in self.layers else self.images[layer_id]
        return {path: data for path, data in shown.items() if data is not None}


def _steps(spec: RunSpec) -> list[list[str]]:
    """The words of each. A program and its arguments are one, but for `sh -c`."""
    command = spec.command.decode()
    if command.startswith("exec '"):
        argv = shlex.split(command)[1:]
    elif spec.argv is not None:
        assert not command
        argv = [argument.decode() for argument in spec.argv]
    else:
        argv = ["sh", "-c", command]
    if argv[:2] == ["sh", "-c"]:
        return [step.split() for step in argv[2].split(";")]
    return [argv]


@dataclass
class FakePty:
    """A terminal that shows what is typed. Lines: `exit N` · `flood BYTES` · `size`. Input that has no end of line
    waits, and `deaf` waits for ever."""

    spec: PtySpec
    kept: bytearray = field(default_factory=bytearray)
    line: bytearray = field(default_factory=bytearray)
    sink: PtySink | None = None
    watched: bool = False
    sent: int = 0
    acked: int = 0
    size: tuple[int, int] = (80, 24)

    def show(self, data: bytes) -> None:
        self.kept += data
        self.pump()

    def pump(self) -> None:
        while self.watched and self.sink is not None and self.sent < len(self.kept):
            piece = bytes(self.kept[self.sent : min(len(self.kept), self.acked + PTY_WINDOW)][:PIECE])
            if not piece:
                return
            self.sent += len(piece)
            self.sink.output(piece)


class FakePtys:
    def __init__(self, living: LivingBox) -> None:
        self._living = living

    @property
    def known(self) -> Mapping[str, str]:
        return {ident: pty.spec.session_id for ident, pty in self._living.ptys.items()}

    def _alive(self, what: str, argument: object = None) -> dict[str, FakePty]:
        if self._living.dead is not None:
            raise BoxGone(self._living.dead)
        self._living.machine.note(what, argument)
        return self._living.ptys

    async def open(self, spec: PtySpec, sink: PtySink) -> str:
        ptys = self._alive("open_pty", spec)
        assert spec.session_id in self._living.shells, "the session was not opened"
        if spec.argv == (b"missing",):
            raise GuestError(errno.ENOENT, "there is no program missing")
        known = next((one for one in ptys.values() if one.spec.session_id == spec.session_id), None)
        pty = known or ptys.setdefault(spec.pty_id, FakePty(spec))
        pty.sink, pty.watched, pty.size = sink, True, (spec.columns, spec.rows)
        pty.sent = pty.acked = 0
        if known is None:
            pty.show(b"$ ")
        else:
            pty.pump()
        return pty.spec.pty_id

    def watch(self, pty_id: str, sink: PtySink) -> None:
        self._living.ptys[pty_id].sink = sink

    def write(self, pty_id: str, data: bytes) -> None:
        if (pty := self._alive("type").get(pty_id)) is None or pty.sink is None:
            return
        if pty.spec.argv == (b"deaf",):
            return
        pty.sink.taken(len(data))
        pty.show(data)
        pty.line += data
        while b"\r" in pty.line:
            line, _, rest = bytes(pty.line).partition(b"\r")
            pty.line[:] = rest
            match line.decode().split():
                case ["exit", code]:
                    self.end(pty, int(code))
                case ["flood", count]:
                    pty.show(b"x" * int(count))
                case ["size"]:
                    pty.show(b"%d %d" % pty.size)

    def end(self, pty: FakePty, code: int, reason: str = "exit") -> None:
        self._living.ptys.pop(pty.spec.pty_id, None)
        if pty.sink is not None:
            pty.sink.ended(PtyEnd(code, reason))

    def ack(self, pty_id: str, size: int) -> None:
        if (pty := self._living.ptys.get(pty_id)) is not None:
            pty.acked += size
            assert pty.acked <= pty.sent
            asyncio.get_running_loop().call_soon(pty.pump)

    async def resize(self, pty_id: str, columns: int, rows: int) -> None:
        if (pty := self._alive("resize_pty", (columns, rows)).get(pty_id)) is not None:
            pty.size = (columns, rows)

    async def signal(self, pty_id: str, signum: int) -> None:
        if (pty := self._alive("signal_pty", signum).get(pty_id)) is not None:
            pty.show(f"signal {signum}".encode())

    async def detach(self, pty_id: str) -> None:
        if (pty := self._alive("detach_pty", pty_id).get(pty_id)) is not None:
            pty.watched = False
            if not pty.spec.persist:
                self.end(pty, 137, "killed")

    async def kill(self, pty_id: str) -> None:
        if (pty := self._alive("kill_pty", pty_id).get(pty_id)) is not None:
            self.end(pty, 137, "killed")


class FakeBox:
    def __init__(self, engine: FakeEngine, living: LivingBox) -> None:
        self.vm_id = living.spec.vm_id
        self.address = living.address
        self.gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.known_runs: Mapping[str, RunEnd | None] = {run_id: p.end for run_id, p in living.runs.items()}
        self.sink: SessionSink | None = None
        self._engine = engine
        self._living = living
        self.ptys = FakePtys(living)
        living.handle = self

    def _alive(self, what: str, argument: object = None) -> LivingBox:
        if self._living.dead is not None or self._engine.closed:
            raise BoxGone(self._living.dead or "the engine was closed")
        self._living.machine.note(what, argument)
        return self._living

    def listen(self, sink: SessionSink) -> None:
        self.sink = sink
        for session_id in self._living.states:
            asyncio.get_running_loop().call_soon(self._living.tell, session_id)

    async def open_session(self, spec: SessionSpec) -> None:
        living = self._alive("open_session", spec)
        if spec.session_id in living.shells:
            return
        if spec.state is not None:
            cwd, env = json.loads(spec.state)
            living.shells[spec.session_id] = Shell(cwd, env)
        else:
            living.shells[spec.session_id] = Shell(spec.cwd or "/root", dict(spec.env))

    async def close_session(self, session_id: str) -> None:
        living = self._alive("close_session", session_id)
        for process in living.runs.values():
            if process.spec.session_id == session_id:
                self._kill(process)
        for pty in [pty for pty in living.ptys.values() if pty.spec.session_id == session_id]:
            self.ptys.end(pty, 137, "killed")
        living.shells.pop(session_id, None)
        living.states.pop(session_id, None)

    async def start_run(self, spec: RunSpec, sink: RunSink) -> None:
        living = self._alive("start_run", spec)
        assert spec.session_id in living.shells, "the session was not opened"
        assert not any(p.end is None and p.spec.session_id == spec.session_id for p in living.runs.values()), (
            "one run at a time per session"
        )
        process = living.runs[spec.run_id] = Process(spec, sink=sink)
        if spec.stdin_open:
            process.given += spec.stdin or b""
        process.task = asyncio.get_running_loop().create_task(living.execute(process))

    async def resume_run(self, run_id: str, sink: RunSink, out_offset: int, err_offset: int) -> None:
        process = self._alive("resume_run", run_id).runs[run_id]
        for stream, offset in ((1, out_offset), (2, err_offset)):
            assert process.base[stream] <= offset <= process.total(stream)
            process.sent[stream] = offset
        process.sink = sink
        asyncio.get_running_loop().call_soon(process.deliver)

    def ack(self, run_id: str, out_offset: int, err_offset: int) -> None:
        process = self._living.runs.get(run_id)
        if process is not None:
            process.ack(1, out_offset)
            process.ack(2, err_offset)

    def forget(self, run_id: str) -> None:
        self._living.runs.pop(run_id, None)

    async def signal_run(self, run_id: str, signum: int) -> bool:
        process = self._alive("signal_run", (run_id, signum)).runs.get(run_id)
        if process is None or process.end is not None:
            return False
        process.reason, process.code = "signalled", 128 + signum
        process.released.set()
        return True

    async def write_stdin(self, run_id: str, at: int | None, data: bytes, eof: bool) -> int:
        process = self._alive("write_stdin", (run_id, at, data, eof)).runs.get(run_id)
        if process is None or not process.spec.stdin_open or process.end is not None:
            raise GuestError(errno.EPIPE, "closed")
        end = len(process.given)
        if at is not None and at > end:
            raise GuestError(errno.EINVAL, f"goes on at {end}")
        data = data[end - at :] if at is not None else data
        if data and process.given_end:
            raise GuestError(errno.EPIPE, "closed")
        room = 1 if process.no_room else len(data)
        process.given += data[:room]
        process.given_end = process.given_end or (eof and room >= len(data))
        process.news.set()
        await asyncio.sleep(0)
        return len(process.given)

    async def kill_run(self, run_id: str) -> None:
        process = self._alive("kill_run", run_id).runs.get(run_id)
        if process is not None:
            self._kill(process)

    def _kill(self, process: Process) -> None:
        if process.end is None:
            process.reason, process.code = "killed", 137
            process.news.set()
            process.released.set()
            process.room.set()

    async def settle(self) -> Activity:
        living = self._alive("settle")
        await asyncio.sleep(0)
        return Activity(
            sum(p.end is None for p in living.runs.values()), living.processes + len(living.ptys), bool(living.memory)
        )

    async def read_file(self, path: str) -> OpenFile:
        data = self._alive("read_file", path).read(path)
        descriptor = os.memfd_create("fake", os.MFD_CLOEXEC)
        os.pwrite(descriptor, data, 0)
        return OpenFile(descriptor, len(data), 0o644)

    async def write_file(self, path: str, data: bytes | int, mode: int | None = None) -> int:
        living = self._alive("write_file", path)
        if isinstance(data, int):
            data = os.pread(data, os.fstat(data).st_size, 0)
        living.write(posixpath.normpath(path), data)
        return len(data)

    async def manifest(self, path: str, limit: int = 50_000) -> Manifest:
        root = posixpath.normpath(path)
        found = {
            name: data for name, data in self._alive("manifest", path).tree().items() if name.startswith(root + "/")
        }
        entries = tuple(
            ManifestEntry(name[len(root) + 1 :], len(data), 0o644, hashlib.sha256(data).hexdigest())
            for name, data in sorted(found.items())
        )
        return Manifest(root, entries[:limit], len(entries) > limit)

    async def kill(self) -> None:
        if self._living.dead is None:
            self._living.machine.note("kill", self.vm_id)
            self._living.die("put down")


class FakeEngine:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.closed = False
        self.sink: Callable[[str, Usage], None] = lambda vm_id, usage: None

    async def start(self) -> Sequence[FakeBox]:
        self.machine.note("start", None)
        self.machine.engine = self
        return [FakeBox(self, living) for living in self.machine.boxes.values()]

    async def close(self) -> None:
        self.closed = True
        for living in self.machine.boxes.values():
            living.handle = None
            for process in living.runs.values():
                process.sink = None
            for pty in living.ptys.values():
                pty.sink, pty.watched = None, False

    async def shutdown(self) -> None:
        for living in list(self.machine.boxes.values()):
            living.die("shut down")

    async def boot(self, spec: BoxSpec) -> FakeBox:
        self.machine.note("boot", spec)
        await asyncio.sleep(0)
        if spec.vm_id in self.machine.boxes:
            raise EngineError("this VM has a box already")
        for layer_id in spec.stack.layers:
            if layer_id not in (self.machine.images if layer_id in spec.stack.images else self.machine.layers):
                raise EngineError(f"layer {layer_id} is not there")
        if limit := spec.limits.disk:
            assert not spec.read_only and (
                spec.stack.top in self.machine.disks or spec.stack.top not in self.machine.layers
            )
            assert self.machine.disks.setdefault(spec.stack.top, 1 << (limit - 1).bit_length()) >= limit
        self.machine.layers.setdefault(spec.stack.top, {})
        living = self.machine.boxes[spec.vm_id] = LivingBox(self.machine, spec)
        return FakeBox(self, living)

    async def change(self, box: object, hostname: str, limits: Limits) -> None:
        assert isinstance(box, FakeBox)
        living = box._alive("change", (hostname, limits))
        if limits.disk and limits.disk < self._size(living.spec.stack.top):
            raise EngineError("its disk holds more")
        living.spec = replace(living.spec, hostname=hostname, limits=limits)

    async def memory_kills(self, box: object) -> int | None:
        assert isinstance(box, FakeBox)
        return box._alive("memory_kills").memory_kills

    async def is_empty(self, layer_id: str) -> bool:
        self.machine.note("is_empty", layer_id)
        return not self.machine.layers.get(layer_id)

    def _size(self, layer_id: str) -> int:
        return sum(len(data or b"") for data in self.machine.layers.get(layer_id, {}).values())

    async def contents(self, layer_id: str) -> Contents:
        self.machine.note("contents", layer_id)
        return Contents(not self.machine.layers.get(layer_id), self._size(layer_id))

    async def disk_capacity(self, top: str) -> int | None:
        return self.machine.disks.get(top, 0) if top in self.machine.layers else None

    def disk_problem(self) -> str:
        return self.machine.disk_problem

    async def in_files(self) -> set[str]:
        return set(self.machine.disks)

    async def copy_top(self, box: object, source: str, target: str) -> CopyReport:
        self.machine.note("copy_top", (source, target))
        tree = self.machine.layers[target] = dict(self.machine.layers[source])
        return CopyReport(len(tree), sum(len(data or b"") for data in tree.values()), 0.5, 1.0)

    async def merge(self, layers: Sequence[str], target: str) -> None:
        self.machine.note("merge", tuple(layers))
        if self.machine.merge_gate is not None:
            await self.machine.merge_gate.wait()
        tree: Tree = {}
        for layer_id in reversed(layers):
            tree |= self.machine.layers[layer_id]
        self.machine.layers[target] = tree

    async def remove(self, layers: Sequence[str]) -> None:
        self.machine.note("remove", tuple(layers))
        for layer_id in layers:
            used = any(layer_id in (b.spec.stack.top, *b.spec.stack.layers) for b in self.machine.boxes.values())
            assert not used, "a layer under a live box was removed"
            self.machine.layers.pop(layer_id, None)
            self.machine.disks.pop(layer_id, None)

    async def stored(self) -> set[str]:
        return set(self.machine.layers)

    async def usage(self, vm_id: str) -> Usage:
        self.machine.note("usage", vm_id)
        living = self.machine.boxes.get(vm_id)
        return Usage() if living is None else living.moved

    def account(self, sink: Callable[[str, Usage], None]) -> None:
        self.sink = sink

    def free_memory(self) -> int:
        return self.machine.free_memory

    def free_disk(self) -> int:
        return self.machine.free_disk

    async def features(self) -> AsyncIterator[Feature]:
        yield Feature("memory", True, "all of it")
