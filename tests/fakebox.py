"""A box of the engine in memory as its machine has it: its files, shells and processes. Its commands: `fake_engine.py`."""

from __future__ import annotations

import asyncio
import errno
import json
import posixpath
import shlex
import time
from dataclasses import dataclass, field
from typing import Any

from boxwood.engine.api import (
    BoxSpec,
    Denial,
    GuestError,
    RunEnd,
    RunSink,
    RunSpec,
    Usage,
)
from boxwood.engine.networkapi import Secrets
from boxwood.engine.policies import Policies
from boxwood.engine.volumes.api import Attachment

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
    hangs: bool = False
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

    def __init__(self, machine: Any, spec: BoxSpec) -> None:
        self.machine = machine
        self.spec = spec
        self.runs: dict[str, Process] = {}
        self.shells: dict[str, Shell] = {}
        self.states: dict[str, bytes] = {}
        self.ptys: dict[str, Any] = {}
        self.directories: set[str] = set()  # that were made, though they hold nothing
        self.modes: dict[str, int] = {}
        self.changes: list[Any] = []  # that whoever watches is told of, before the directory is gone
        self.processes = 0
        self.memory_kills = 0
        self.address = f"198.18.0.{len(machine.called('boot')) % 250 + 2}" if spec.network else ""
        self.moved = Usage()
        self.policies = Policies()
        self.ask_secrets: Secrets = dict
        self.secrets: dict[str, str] = {}  # as they were told last
        self.memory: dict[str, bytes] = {}  # the /tmp of a read-only box
        self.mounts: dict[str, Attachment] = {}
        self.volumes_had: set[str] = set()
        self.handle: Any = None
        self.dead: str | None = None
        self.asleep = False  # suspended

    def tree(self) -> dict[str, bytes]:
        shown = self.machine.view((self.spec.stack.top, *self.spec.stack.layers)) | self.memory
        for mount in self.mounts.values():
            below = self.machine.volumes[mount.volume_id]
            shown |= {f"{mount.path}/{name}": data for name, data in below.items()}
        return shown

    @property
    def top(self) -> Tree:
        return self.machine.layers[self.spec.stack.top]

    def write(self, path: str, data: bytes | None) -> None:
        for mount in self.mounts.values():
            if path.startswith(mount.path + "/"):
                if mount.read_only:
                    raise GuestError(errno.EROFS, f"what is mounted there is read-only: {path}")
                volume, name = self.machine.volumes[mount.volume_id], path[len(mount.path) + 1 :]
                volume.pop(name, None)
                if data is not None:
                    volume[name] = data
                return
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
                process.hangs = True
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
