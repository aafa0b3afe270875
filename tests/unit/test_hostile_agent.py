"""An agent that has been taken over: whatever it says, the server is not harmed and puts its box down."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from boxwood.engine.api import BoxGone, GuestError, PtyEnd, PtySpec, RunEnd, RunSpec, SessionSpec
from boxwood.engine.frames import pack
from boxwood.engine.hostbox import HostBox

pytestmark = pytest.mark.anyio
RUN, SESSION = "01JD0000000000000000000000", "01JD0000000000000000000001"
PTY, OTHER = "01JD0000000000000000000005", "01JD0000000000000000000006"


class Sink:
    def __init__(self) -> None:
        self.got: list[tuple[int, int, bytes]] = []
        self.end: RunEnd | None = None
        self.heard = asyncio.Event()

    def output(self, stream: int, offset: int, data: bytes) -> None:
        self.got.append((stream, offset, data))
        self.heard.set()

    def finished(self, end: RunEnd) -> None:
        self.end = end


class Hostile:
    """The far end of a box's link, under our control."""

    def __init__(self) -> None:
        ours, self.far = socket.socketpair()
        self.downs: list[str] = []
        self.box = HostBox(
            "01JD0000000000000000000002", "01JD0000000000000000000003", "01JD0000000000000000000004", self._down
        )
        self.sock = ours
        self.down = asyncio.Event()

    async def _down(self, box_id: str) -> None:
        self.downs.append(box_id)
        self.down.set()
        self.box.died("put down")

    async def hello(self) -> HostBox:
        self.say({"ev": "hello", "runs": [], "sessions": []})
        await self.box.attach(self.sock)
        return self.box

    def say(self, header: dict[str, Any], payload: bytes = b"", fds: list[int] | None = None) -> None:
        data = pack({**header, "fds": len(fds)} if fds else header, payload)
        socket.send_fds(self.far, [data], fds or [])

    async def put_down(self) -> None:
        async with asyncio.timeout(10):
            await self.down.wait()
        assert self.downs == [self.box.box_id]


@pytest.fixture
async def hostile() -> AsyncIterator[Hostile]:
    hostile = Hostile()
    yield hostile
    hostile.box.died("the test is over")
    hostile.far.close()
    hostile.sock.close()


async def start(hostile: Hostile) -> Sink:
    sink = Sink()
    hostile.say({"re": 1})
    await hostile.box.start_run(RunSpec(RUN, SESSION, b"true"), sink)
    return sink


@pytest.mark.parametrize(
    "header",
    [
        {"ev": "out", "rid": RUN, "stream": 3, "at": 0},
        {"ev": "out", "rid": RUN, "stream": 1, "at": 7},
        {"ev": "out", "rid": RUN, "stream": 1, "at": -1},
        {"ev": "out", "rid": RUN, "stream": True, "at": 0},
        {"ev": "out", "rid": 5, "stream": 1, "at": 0},
        {"ev": "out"},
        {"ev": "end", "rid": RUN, "code": 256, "reason": "exit", "out": 0, "err": 0},
        {"ev": "end", "rid": RUN, "code": "0", "reason": "exit", "out": 0, "err": 0},
        {"ev": "end", "rid": RUN, "code": 0, "reason": "../x", "out": 0, "err": 0},
        {"ev": "end", "rid": RUN, "code": 0, "reason": "exit", "out": 9, "err": 0},
        {"ev": "end", "rid": RUN, "code": 0, "reason": "exit"},
        {"ev": "state", "sid": SESSION, "cwd": 7, "env": {}},
        {"ev": "state", "sid": SESSION, "cwd": "/", "env": {"a": 1}},
        {"ev": "state", "sid": "x" * 99, "cwd": "/", "env": {}},
        {"ev": "hello", "runs": {"a": 1}},
        {"ev": "hello", "runs": [{"rid": RUN, "end": {"code": 1}}]},
        {"ev": ["nested"]},
        {"boot": "failed", "error": "late"},
        {"re": 99, "more": True, "x": 1, "fds": 2},
        {},
    ],
)
async def test_what_makes_no_sense_ends_the_box(hostile: Hostile, header: dict[str, Any]) -> None:
    await hostile.hello()
    await start(hostile)
    hostile.say(header)
    await hostile.put_down()


@pytest.mark.parametrize("runs", [[5], [None], [[]], [{"rid": RUN, "end": 5}], [{"rid": RUN, "end": [1]}], [{}]])
async def test_a_greeting_that_makes_no_sense_ends_the_box(hostile: Hostile, runs: list[Any]) -> None:
    """At once, not when the deadline of the greeting has come."""
    hostile.say({"ev": "hello", "runs": runs, "sessions": []})
    with pytest.raises(BoxGone, match="broke the protocol"):
        await hostile.box.attach(hostile.sock)
    await hostile.put_down()


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"runs": 0, "processes": -1},
        {"runs": "0", "processes": 1},
        {"runs": 0, "processes": 1 << 60},
        {"size": None},
    ],
)
async def test_an_answer_that_makes_no_sense_ends_the_box(hostile: Hostile, answer: dict[str, Any]) -> None:
    await hostile.hello()
    hostile.say({"re": 1, **answer})
    with pytest.raises(BoxGone, match="makes no sense"):
        await (hostile.box.write_file("/x", b"x") if "size" in answer else hostile.box.settle())
    await hostile.put_down()


async def test_what_does_not_fit_in_a_frame_is_refused(hostile: Hostile) -> None:
    """An environment that a box has told can be too large to be told to the next one."""
    box = await hostile.hello()
    with pytest.raises(GuestError, match="too much at once"):
        await box.open_session(SessionSpec(SESSION, {"A": "\x7f" * 60_000, "B": "é" * 1000}, "/", None))
    hostile.say({"re": 2, "runs": 0, "processes": 0})
    assert (await box.settle()).runs == 0 and not hostile.downs


async def test_a_run_that_ends_twice_ends_once(hostile: Hostile) -> None:
    await hostile.hello()
    sink = await start(hostile)
    end = {"ev": "end", "rid": RUN, "code": 0, "reason": "exit", "out": 0, "err": 0}
    hostile.say(end)
    hostile.say({**end, "code": 1})
    hostile.say({"ev": "out", "rid": RUN, "stream": 1, "at": 0}, b"late")
    await hostile.put_down()
    assert sink.end == RunEnd(0) and sink.got == []


async def test_silence_ends_the_box(hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boxwood.engine.hostbox.ANSWER_SECONDS", 0.05)
    await hostile.hello()
    with pytest.raises(BoxGone):
        await hostile.box.settle()
    await hostile.put_down()


async def test_no_greeting_ends_the_box(hostile: Hostile) -> None:
    with pytest.raises(BoxGone, match="hello"):
        await hostile.box.attach(hostile.sock, 0.05)
    await hostile.put_down()


async def test_a_refusal_is_a_refusal(hostile: Hostile) -> None:
    await hostile.hello()
    hostile.say({"re": 1, "errno": 2, "error": "no such file"})
    with pytest.raises(GuestError) as refused:
        await hostile.box.read_file("/x")
    assert refused.value.errno == 2 and not hostile.downs


def _pipe() -> int:
    r, w = os.pipe()
    os.close(w)
    return r


@pytest.mark.parametrize(
    "handed",
    [
        _pipe,
        lambda: os.open("/", os.O_RDONLY),
        lambda: os.open("/etc/passwd", os.O_RDONLY),
        lambda: os.memfd_create("x"),
    ],
)
async def test_only_files_of_the_vm_are_taken(hostile: Hostile, handed: Callable[[], int]) -> None:
    """Not a pipe, directory, memory or file of another file system: fstat and statfs tell."""
    await hostile.hello()
    fd = handed()
    hostile.say({"re": 1, "size": 5, "mode": 0o644}, fds=[fd])
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BoxGone):
        await hostile.box.read_file("/x")
    await hostile.put_down()
    for thread in threading.enumerate():
        if thread.name == "strays":
            thread.join(10)
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_descriptors_that_nobody_asked_for_are_closed(hostile: Hostile) -> None:
    await hostile.hello()
    sink = await start(hostile)
    before = len(os.listdir("/proc/self/fd"))
    fd = os.open("/etc/passwd", os.O_RDONLY)
    for _ in range(20):
        hostile.say({"ev": "out", "rid": RUN, "stream": 1, "at": len(sink.got)}, b"x", fds=[fd])
        async with asyncio.timeout(10):
            await sink.heard.wait()
        sink.heard.clear()
    os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before and not hostile.downs


@pytest.mark.parametrize("answer", [{"re": 1}, {"re": 1, "more": True}, {"re": 1, "errno": 2, "error": "no"}])
async def test_an_answer_with_descriptors_ends_the_box(hostile: Hostile, answer: dict[str, Any]) -> None:
    """Nobody takes them, so a hostile agent could fill the server with them."""
    await hostile.hello()
    before = len(os.listdir("/proc/self/fd"))
    with open("/etc/passwd", "rb") as file:
        hostile.say(answer, fds=[file.fileno()] * 3)
    with pytest.raises(BoxGone):
        await hostile.box.manifest("/w")
    await hostile.put_down()
    for thread in threading.enumerate():
        if thread.name == "strays":
            await asyncio.to_thread(thread.join, 10)
    assert len(os.listdir("/proc/self/fd")) < before  # the link is closed too


async def test_a_manifest_that_leads_out_is_refused(hostile: Hostile) -> None:
    await hostile.hello()
    line = b'{"path":"../../etc/shadow","size":1,"mode":33188,"hash":"' + b"a" * 64 + b'"}\n'
    hostile.say({"re": 1, "more": True}, line)
    hostile.say({"re": 1, "root": "/w", "truncated": False})
    with pytest.raises(BoxGone):
        await hostile.box.manifest("/w")
    await hostile.put_down()


GOOD = '{"path":"%s","size":1,"mode":33188,"hash":"' + "a" * 64 + '"}'


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "[]",
        "5",
        "{",
        GOOD % "",
        GOOD % "/etc/passwd",
        GOOD % "a//b",
        GOOD % "a/./b",
        GOOD % "a/",
        GOOD % r"\ud800",
        GOOD % r"a\u0000b",
        GOOD % ("é" * 2100),
        GOOD.replace("33188", "-1") % "a",
        GOOD.replace("aaaa", "AAAA") % "a",
    ],
)
async def test_lines_of_a_manifest_that_make_no_sense_end_the_box(hostile: Hostile, line: str) -> None:
    await hostile.hello()
    hostile.say({"re": 1, "more": True}, (GOOD % "fine").encode() + b"\n")
    hostile.say({"re": 1, "root": "/w", "truncated": False}, line.encode())
    with pytest.raises(BoxGone, match="manifest makes no sense"):
        await hostile.box.manifest("/w")
    await hostile.put_down()


@pytest.mark.parametrize("root", [5, "\ud800", "a\0b", "x" * 5000])
async def test_a_manifest_of_no_directory_ends_the_box(hostile: Hostile, root: object) -> None:
    await hostile.hello()
    hostile.say({"re": 1, "root": root, "truncated": False})
    with pytest.raises(BoxGone, match="manifest makes no sense"):
        await hostile.box.manifest("/w")
    await hostile.put_down()


async def test_a_manifest_without_end_ends_the_box(hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boxwood.engine.hostbox.MANIFEST_LIMIT", 1000)
    await hostile.hello()
    for _ in range(11):
        hostile.say({"re": 1, "more": True}, b"\n" * 100)
    with pytest.raises(BoxGone, match="without end"):
        await hostile.box.manifest("/w")
    await hostile.put_down()


async def test_greetings_without_end(hostile: Hostile) -> None:
    await hostile.hello()
    hostile.say({"ev": "hello", "runs": [{"rid": "X" * 26, "end": None}]})
    await hostile.put_down()
    assert not hostile.box.known_runs


@pytest.mark.parametrize(
    ("env", "state"), [({}, bytes(4 << 20)), ({"A": "x" * 60_000}, b""), ({f"{n}": "" for n in range(6000)}, b"")]
)
async def test_states_that_nobody_listens_to_yet_take_little_memory(
    hostile: Hostile, env: dict[str, str], state: bytes
) -> None:
    """Neither what is saved nor an environment."""
    await hostile.hello()
    hostile.far.setblocking(True)
    frame = pack({"ev": "state", "sid": SESSION, "cwd": "/", "env": env}, state)

    def pour() -> None:
        try:
            for _ in range((100 << 20) // max(len(state), 40_000)):
                hostile.far.sendall(frame)
        except OSError:
            pass  # cut off

    pouring = asyncio.ensure_future(asyncio.to_thread(pour))
    await hostile.put_down()
    await pouring


async def test_an_agent_that_does_not_listen(hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it makes the server say has no answer and no deadline, so only their number bounds it."""
    monkeypatch.setattr("boxwood.engine.link._MOST_UNREAD", 1000)
    box = await hostile.hello()
    for at in range(10_000):
        box.ack(RUN, at, 0)
    await hostile.put_down()


@pytest.mark.parametrize("programs", [True, False])
async def test_a_program_in_a_box_that_an_older_version_has_made_is_started_by_a_shell(
    hostile: Hostile, programs: bool
) -> None:
    hostile.say({"ev": "hello", "runs": [], "sessions": [], **({"programs": True} if programs else {})})
    await hostile.box.attach(hostile.sock)
    hostile.say({"re": 1})
    spec = RunSpec(RUN, SESSION, b"", argv=(b"echo", b"a b", b"\xff'"))
    await hostile.box.start_run(spec, Sink())
    data = hostile.far.recv(65536)
    size = int.from_bytes(data[:4], "little")
    header, payload = json.loads(data[8 : 8 + size]), data[8 + size :]
    if programs:
        assert (header["argv"], header["env"], payload) == (True, None, b"echo\0a b\0\xff'\0")
    else:  # beside the session's shell
        assert (header["argv"], header["env"], payload) == (False, {}, b"exec echo 'a b' '\xff'\"'\"''")


# --- terminals


class Screen:
    def __init__(self) -> None:
        self.shown = b""
        self.told: list[int] = []
        self.end: PtyEnd | None = None
        self.heard = asyncio.Event()

    def output(self, data: bytes) -> None:
        self.shown += data
        self.heard.set()

    def taken(self, size: int) -> None:
        self.told.append(size)
        self.heard.set()

    def ended(self, end: PtyEnd) -> None:
        self.end = end
        self.heard.set()


async def look(hostile: Hostile) -> Screen:
    """A terminal with number 1; what comes before the answer has been heard counts."""
    screen = Screen()
    hostile.say({"re": 1, "pty": PTY})
    hostile.say({"ev": "pty.out", "pty": PTY, "view": 1, "at": 7}, b"early")
    assert await hostile.box.ptys.open(PtySpec(PTY, SESSION), screen) == PTY
    while not screen.shown:
        await screen.heard.wait()
    assert screen.shown == b"early"
    return screen


BAD_PTYS: dict[str, list[tuple[dict[str, Any], bytes]]] = {
    "output at another offset": [({"ev": "pty.out", "pty": PTY, "view": 1, "at": 13}, b"x")],
    "output beyond the window": [
        ({"ev": "pty.out", "pty": PTY, "view": 1, "at": 12 + at}, b"x" * 65536) for at in (0, 65536)
    ],
    "input taken that nobody typed": [({"ev": "pty.taken", "pty": PTY, "size": 6}, b"")],
    "a code that there is none": [({"ev": "pty.end", "pty": PTY, "view": 1, "code": 256, "reason": "exit"}, b"")],
    "no code": [({"ev": "pty.end", "pty": PTY, "view": 1, "reason": "exit"}, b"")],
    "a reason that there is none": [({"ev": "pty.end", "pty": PTY, "view": 1, "code": 0, "reason": "x"}, b"")],
    "an id that is none": [({"ev": "pty.taken", "pty": ["x"], "size": 0}, b"")],
    "a look that is none": [({"ev": "pty.out", "pty": PTY, "view": "1", "at": 0}, b"x")],
}


@pytest.mark.parametrize("what", BAD_PTYS)
async def test_terminals_that_make_no_sense(hostile: Hostile, what: str) -> None:
    await hostile.hello()
    await look(hostile)
    hostile.box.ptys.write(PTY, b"typed")
    for header, payload in BAD_PTYS[what]:
        hostile.say(header, payload)
    await hostile.put_down()


async def test_terminals_that_nobody_asked_for(hostile: Hostile) -> None:
    """Nothing comes of them."""
    await hostile.hello()
    screen = await look(hostile)
    hostile.say({"ev": "pty.out", "pty": OTHER, "view": 77, "at": 0}, b"x")
    hostile.say({"ev": "pty.taken", "pty": OTHER, "size": 1 << 40})
    hostile.say({"ev": "pty.end", "pty": OTHER, "view": 0, "code": 0, "reason": "exit"})
    hostile.box.ptys.write(PTY, b"typed")
    hostile.say({"ev": "pty.taken", "pty": PTY, "size": 5})
    hostile.say({"ev": "pty.end", "pty": PTY, "view": 1, "code": 3, "reason": "exit"})
    hostile.say({"ev": "pty.out", "pty": PTY, "view": 1, "at": 12}, b"from the dead")
    hostile.say({"ev": "pty.end", "pty": PTY, "view": 1, "code": 4, "reason": "exit"})
    while screen.end is None:
        await screen.heard.wait()
        screen.heard.clear()
    assert (screen.shown, screen.told, screen.end) == (b"early", [5], PtyEnd(3))
    assert not hostile.downs and not hostile.box.ptys.known


@pytest.mark.parametrize(
    "ptys", ["x", [1], [{"pty": 1, "sid": "x"}], [{"sid": "x"}], [{"pty": "x" * 99, "sid": "x"}], [{}] * 1001]
)
async def test_a_greeting_with_terminals_that_make_no_sense(hostile: Hostile, ptys: Any) -> None:
    hostile.say({"ev": "hello", "runs": [], "sessions": [], "ptys": ptys})
    with pytest.raises(BoxGone):
        await hostile.box.attach(hostile.sock)
    await hostile.put_down()


async def test_an_agent_that_says_it_has_read_what_it_has_not(hostile: Hostile) -> None:
    """What is typed is not piled up for it."""
    await hostile.hello()
    await look(hostile)
    with pytest.raises((BoxGone, BrokenPipeError)):
        for _ in range(10_000):
            hostile.box.ptys.write(PTY, bytes(16384))
            hostile.say({"ev": "pty.taken", "pty": PTY, "size": 16384})
            await asyncio.sleep(0)
    await hostile.put_down()
