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
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from boxwood.engine.api import (
    Activity,
    Asleep,
    BoxGone,
    BoxSpec,
    Contents,
    CopyReport,
    EngineError,
    Feature,
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
    Usage,
)
from boxwood.engine.networkapi import Secrets
from boxwood.engine.policies import Policies
from boxwood.engine.proxy.questions import Question
from fakebox import LivingBox, Process, Shell, Tree
from fakefeeds import FakeArchiveFeed, FakeFileFeed
from fakefiles import FakeFiles
from fakehandles import FakeHandles
from fakeptys import FakePtys
from fakestates import FakeStates
from fakevolumes import FakeVolumes

IMAGE = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


async def _opens(question: Question) -> str:
    return ""


class Machine:
    """A host: layers and boxes, which outlive engines. `calls` lists what engines were asked."""

    def __init__(self) -> None:
        self.free_memory = self.free_disk = 1 << 40
        self.ports: dict[tuple[str, int], int] = {}  # what listens in VMs: a port of this host's loopback for each
        self.layers: dict[str, Tree] = {}
        self.disks: dict[str, int] = {}  # of tops that were made with a limit, and of layers that were: their capacity
        self.disk_problem = ""
        self.durable_problem = self.suspend_problem = ""
        self.sees_requests = False
        self.ask_gate: Callable[[Question], Awaitable[str]] = _opens
        self.volumes: dict[str, dict[str, bytes]] = {}
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
        self.files = FakeFiles(living, self._alive)
        self.handles = FakeHandles(living, self.files, self._alive)
        self.mounts = set(living.mounts)
        living.handle = self

    def _alive(self, what: str, argument: object = None) -> LivingBox:
        if self._living.dead is not None or self._engine.closed:
            raise BoxGone(self._living.dead or "the engine was closed")
        if self._living.asleep:
            raise Asleep("the box is suspended")
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

    async def write_file(
        self, path: str, data: bytes | int, mode: int | None = None, *, durable: bool = False, in_run: bool = False
    ) -> int:
        living = self._alive("write_file", path)
        assert in_run == path.startswith("/run/")
        if durable:
            assert living.spec.durable
            living.machine.note("flush", path)
        if isinstance(data, int):
            data = os.pread(data, os.fstat(data).st_size, 0)
        living.write(posixpath.normpath(path), data)
        return len(data)

    async def receive_file(self, path: str, mode: int | None = None, *, durable: bool = False) -> FakeFileFeed:
        self._alive("receive_file", path)
        return FakeFileFeed(self, path)

    async def receive_archive(self, path: str, packed: bool, limit: int, *, durable: bool = False) -> FakeArchiveFeed:
        self._alive("receive_archive", (path, packed, limit))
        return FakeArchiveFeed(self, path)

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

    async def dismiss(self) -> None:
        await self.kill()


class FakeEngine:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.volumes = FakeVolumes(machine)
        self.closed = False
        self.sink: Callable[[str, Usage], None] = lambda vm_id, usage: None
        self.sees_requests = machine.sees_requests

    @property
    def states(self) -> FakeStates:
        return FakeStates(self.machine)

    async def start(self) -> Sequence[FakeBox]:
        self.machine.note("start", None)
        self.machine.engine = self
        return [FakeBox(self, living) for living in self.machine.boxes.values()]

    async def close(self) -> None:
        self.closed = True
        for living in self.machine.boxes.values():
            living.handle, living.asleep = None, False
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

    async def dial(self, box: object, port: int) -> socket.socket:
        assert isinstance(box, FakeBox)
        living = box._alive("dial", port)
        there = self.machine.ports.get((living.spec.vm_id, port))
        if there is None:
            raise GuestError(errno.ECONNREFUSED, f"nothing listens on port {port} in the VM")
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", there))
        return sock

    def suspend_problem(self) -> str:
        return self.machine.suspend_problem

    async def suspend(self, box: object) -> None:
        assert isinstance(box, FakeBox)
        box._alive("suspend", box.vm_id).asleep = True

    async def wake(self, box: object) -> None:
        assert isinstance(box, FakeBox)
        self.machine.note("wake", box.vm_id)
        box._living.asleep = False

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

    def durable_problem(self) -> str:
        return self.machine.durable_problem

    async def secure(self, layers: Sequence[str]) -> None:
        self.machine.note("secure", tuple(layers))
        assert set(layers) <= self.machine.layers.keys()

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

    async def check_layer(self, layer_id: str) -> str:
        self.machine.note("check_layer", layer_id)
        return "" if layer_id in self.machine.layers else "FileNotFoundError"

    async def authority(self) -> str:
        return "a certificate\n"

    async def police(self, box: FakeBox, policies: Policies, secrets: Secrets = dict) -> None:
        self.machine.note("police", (box.vm_id, policies.to_json()))
        living = self.machine.boxes[box.vm_id]
        living.policies, living.ask_secrets, living.secrets = policies, secrets, dict(secrets())

    async def renew_secrets(self, concerned: Callable[[str], bool]) -> None:
        self.machine.note("renew_secrets", None)
        for vm_id, living in self.machine.boxes.items():
            if concerned(vm_id):
                living.secrets = dict(living.ask_secrets())

    async def ask_gate(self, question: Question) -> str:
        self.machine.note("ask_gate", question)
        return await self.machine.ask_gate(question)

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
