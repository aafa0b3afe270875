"""The server's end of a link, and an agent that has been taken over.

An input is a play, a line for each turn. The server's: `?settle`, `?read`, `?manifest`, `?open`, `?run`, `?listen`.
The agent's: how many descriptors it hands over (`0` to `9`), the header, a tab, the payload; `=` and any bytes, raw.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import struct
import termios
from collections.abc import Coroutine
from typing import Any
from unittest.mock import patch

from boxwood.core.refusals import of_engine
from boxwood.engine import hostbox, link
from boxwood.engine.api import EngineError, GuestError, RunEnd, RunSpec, SessionSpec
from boxwood.engine.frames import FROM_AGENT_LIMIT
from boxwood.engine.kernel import OVERLAYFS_MAGIC
from fuzz.target import joined, lines

RUN, SESSION, OTHER = "01JD0000000000000000000000", "01JD0000000000000000000001", "01JD0000000000000000000002"
HELLO = b'0{"ev":"hello","runs":[],"sessions":[],"programs":true}'
LINE = b'{"path":"a/b","size":3,"mode":33188,"hash":"%s"}' % (b"a" * 64)
OUT = b'0{"ev":"out","rid":"%s","stream":1,"at":0}\tabc' % RUN.encode()
END = b'0{"ev":"end","rid":"%s","code":0,"reason":"exit","out":3,"err":0}' % RUN.encode()
STATE = b'0{"ev":"state","sid":"%s","cwd":"/tmp","env":{"A":"b"},"notes":[]}\tsaved' % SESSION.encode()
KNOWN = (
    b'0{"ev":"hello","runs":[{"rid":"%s","sid":"%s","out":3,"err":0,"end":'
    b'{"code":null,"reason":"killed","out":3,"err":0}}],"sessions":[]}' % (RUN.encode(), SESSION.encode())
)
SEEDS = tuple(
    map(
        joined,
        (
            [HELLO, b"?open", b'0{"re":1}', b"?run", b'0{"re":2}', OUT, END, STATE, b"?listen", STATE, b"?open"],
            [HELLO, b"?run", OUT, b'0{"re":1,"errno":2,"error":"no such file"}', END],
            [
                HELLO,
                b"?read",
                b'1{"re":1,"size":5,"mode":420,"fds":1}',
                b"?settle",
                b'0{"re":2,"runs":0,"processes":1}',
            ],
            [
                HELLO,
                b"?manifest",
                b'0{"re":1,"more":true}\t' + LINE,
                b'0{"re":1,"root":"/w","truncated":false}\t' + LINE,
            ],
            [KNOWN, b"?run", OUT, END, b"?listen"],
            [b'0{"boot":"failed","error":"no overlay"}'],
            [HELLO, b"=\x02\0\0\0\0\0\0\0{}", b"=\x02\0\0\0\1\0\0\0{}", b"x"],
        ),
    )
)
WORDS = lines(
    '"ev":', '"hello"', '"out"', '"end"', '"state"', '"re":', '"fds":', '"errno":', '"error":', '"more":true', '"env":',
    '"runs":', '"rid":', '"code":', '"reason":', '"exit"', '"at":', '"stream":', '"boot":', "null", "true", "[]", "{}",
    "[[[[", '"\\ud800"', "-1", "256", "9007199254740993", "1e999", "NaN", '"\\u0000"', "\n?read\n", "\n?run\n", RUN, SESSION,
    "\n?manifest\n", "\n?settle\n", "\n0{", "\n9{", "\n=", "\t", '"truncated":', '"root":', '"processes":', '"sid":', '"cwd":',
)  # fmt: skip


def check(data: bytes) -> None:
    loop = asyncio.new_event_loop()
    try:
        play = Play(loop)
        with (
            patch.object(link, "let_go", _closed),  # it starts a process; tests/unit/test_strays.py is about it
            patch.object(hostbox, "filesystem_type", lambda fd: OVERLAYFS_MAGIC),
        ):
            loop.run_until_complete(play.perform(data))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    assert not play.strange, play.strange


def _closed(sock: socket.socket, fds: list[int]) -> None:
    sock.close()
    for fd in fds:
        os.close(fd)


class Play:
    """Also what takes the box's output and states, and so sees whether they are in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.strange: list[dict[str, Any]] = []
        self.at = [0, 0]
        self.ended = False
        self.saved: tuple[dict[str, str], str, bytes] = ({}, "/", b"")
        self.tasks: list[asyncio.Task[None]] = []
        loop.set_exception_handler(lambda _, context: self.strange.append(context))

    async def perform(self, data: bytes) -> None:
        self.ours, self.far = socket.socketpair()
        self.downs: list[str] = []
        self.box = hostbox.HostBox(OTHER, OTHER, OTHER, self._down)
        self._server(self.box.attach(self.ours, 60))
        try:
            for line in data.split(b"\n")[:40]:
                await self._turn(line)
            self.far.shutdown(socket.SHUT_RDWR)
            await self._calm()
            await asyncio.gather(*self.tasks)
            assert self.downs == [OTHER], "a box whose link ended was not put down, or twice"
            assert self.box.gone.done() and self.ours.fileno() == -1
        finally:
            self.far.close()

    async def _down(self, box_id: str) -> None:
        self.downs.append(box_id)
        self.box.died("put down")

    async def _turn(self, line: bytes) -> None:
        ask = {
            b"?settle": self._settle, b"?read": self._read, b"?manifest": self._manifest, b"?open": self._open,
            b"?run": self._run,
        }.get(line)  # fmt: skip
        if ask is not None:
            self._server(ask())
        elif line == b"?listen":
            self.box.listen(self)
        elif line[:1] == b"=":
            self._send(line[1:], 0)
        elif line[:1].isdigit():
            header, _, payload = line[1:].partition(b"\t")
            self._send(struct.pack("<II", len(header), len(payload)) + header + payload, int(line[:1]))
        await self._calm()

    def _send(self, data: bytes, handed: int) -> None:
        if not data or not self.ours.fileno() >= 0:
            return
        fds = [os.memfd_create("handed") for _ in range(handed)]
        self.far.setblocking(False)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            socket.send_fds(self.far, [data], fds)
        for fd in fds:
            os.close(fd)

    async def _calm(self) -> None:
        """Until the server has taken all that there is."""
        while self.ours.fileno() >= 0 and fcntl.ioctl(self.ours, termios.FIONREAD, bytes(4)) != bytes(4):
            await asyncio.sleep(0)
        for _ in range(4):
            await asyncio.sleep(0)

    def _server(self, asked: Coroutine[Any, Any, None]) -> None:
        async def carefully() -> None:
            try:
                await asked
            except GuestError as error:
                of_engine(error).message.encode()
            except EngineError:
                pass

        self.tasks.append(self.loop.create_task(carefully()))

    async def _settle(self) -> None:
        activity = await self.box.settle()
        assert min(activity.runs, activity.processes) >= 0

    async def _read(self) -> None:
        opened = await self.box.read_file("/etc/passwd")
        os.close(opened.fd)

    async def _manifest(self) -> None:
        found = await self.box.manifest("/w")
        found.root.encode()
        for entry in found.entries:
            assert ".." not in entry.path.encode().split(b"/") and len(entry.hash) == 64

    async def _open(self) -> None:
        await self.box.open_session(SessionSpec(SESSION, *self.saved))

    async def _run(self) -> None:
        self.at, self.ended = [0, 0], False
        await self.box.start_run(RunSpec(RUN, SESSION, b"true"), self)

    def output(self, stream: int, offset: int, data: bytes) -> None:
        assert not self.ended and offset == self.at[stream - 1]
        self.at[stream - 1] += len(data)

    def finished(self, end: RunEnd) -> None:
        assert not self.ended and [end.out_bytes, end.err_bytes] == self.at
        self.ended = True

    def state(self, session_id: str, cwd: str, env: dict[str, str], state: bytes) -> None:
        """What is kept of a session is said again to the next box, as `?open` does."""
        assert len(session_id) <= 26 and len(state) <= FROM_AGENT_LIMIT
        self.saved = (json.loads(json.dumps(env)), cwd, state)
