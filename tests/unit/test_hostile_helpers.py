"""What a helper in a box that was taken over may write into the server's pipe: it is bounded, checked, and costs the box
its life where it makes no sense."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from boxwood.core import filework
from boxwood.engine import hostfiles, records
from boxwood.engine.api import BoxGone, GuestError
from boxwood.engine.fileapi import TextQuery
from boxwood.engine.frames import FrameError
from boxwood.engine.hostfiles import HostFiles

STATUS = {"kind": "file", "size": 1, "mode": 0o644, "uid": 0, "gid": 0, "links": 1, "modified": 0}


class Taken:
    """An agent that answers every file work with the same bytes."""

    def __init__(self, data: bytes, hold: bool = False) -> None:
        self.data = data
        self.broken = ""
        self.hold = hold
        self.held: list[int] = []
        self.files = HostFiles(self.ask, self.checking)
        self.files.known = True

    async def ask(self, op: str, fields: dict[str, Any], **more: Any) -> Any:
        out = more["fds"][0]
        writing = asyncio.get_running_loop().run_in_executor(None, self._write, out)
        self.writing = writing
        for fd in more["fds"][1:]:
            os.close(fd)
        return {}, b"", []

    def _write(self, out: int) -> None:
        view = memoryview(self.data)
        try:
            while view:
                view = view[os.write(out, view) :]
        except BrokenPipeError:
            pass
        if self.hold:
            self.held.append(out)
        else:
            os.close(out)

    @contextlib.contextmanager
    def checking(self, what: str) -> Iterator[None]:
        try:
            yield
        except FrameError as error:
            self.broken = f"{what}: {error}"
            raise BoxGone(self.broken) from None


def data(*lines: Any) -> bytes:
    return records.record(records.DATA, b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def end(**fields: Any) -> bytes:
    return records.record(records.END, json.dumps(fields).encode())


NONSENSE = {
    "another kind": b"X\x04\x00\x00\x00abcd",
    "a record too long": records.HEAD.pack(records.DATA, records.DATA_BYTES + 1),
    "an end too long": records.HEAD.pack(records.END, records.END_BYTES + 1),
    "no JSON": records.record(records.DATA, b"{\n") + end(last=""),
    "a list": data([1]) + end(last=""),
    "depth": records.record(records.DATA, b"[" * 100_000 + b"\n") + end(last=""),
    "more than was asked for": data(*[{"name": str(n), **STATUS} for n in range(11)]) + end(last=""),
    "a name that leads out": data({"name": "../x", **STATUS}) + end(last=""),
    "a name with NUL": data({"name": "a\0b", **STATUS}) + end(last=""),
    "an empty name": data({"name": "", **STATUS}) + end(last=""),
    "half a character": data({"name": "\ud800", **STATUS}) + end(last=""),
    "a name too long": data({"name": "x" * 5000, **STATUS}) + end(last=""),
    "no kind": data({"name": "x", **STATUS, "kind": "door"}) + end(last=""),
    "a kind that is a list": data({"name": "x", **STATUS, "kind": ["file"]}) + end(last=""),
    "a size below zero": data({"name": "x", **STATUS, "size": -1}) + end(last=""),
    "a size beyond all": data({"name": "x", **STATUS, "size": 10**400}) + end(last=""),
    "a mode that is none": data({"name": "x", **STATUS, "mode": 0o100644}) + end(last=""),
    "no size": data({"name": "x", "kind": "file"}) + end(last=""),
    "an end that is a list": records.record(records.END, b"[]"),
    "an end that is no JSON": records.record(records.END, b"{"),
    "an end without a word": end(),
    "an errno that is none": end(errno="x", error="y"),
    "more than the end": end(last="") + data({"name": "x", **STATUS}),
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_what_makes_no_sense_costs_the_box(what: str) -> None:
    taken = Taken(NONSENSE[what])
    with pytest.raises(BoxGone):
        await taken.files.list(b"/w", after=b"", limit=10)
    assert taken.broken
    await taken.writing


async def test_what_makes_sense_does_not() -> None:
    taken = Taken(data({"name": "a", **STATUS}) + data({"name": "b", **STATUS, "modified": 10**30}) + end(last="b"))
    page = await taken.files.list(b"/w", after=b"", limit=10)
    assert [entry.path for entry in page.entries] == [b"a", b"b"] and page.after == b"b" and not taken.broken
    assert page.entries[1].status.modified == 0
    await taken.writing


async def test_lines_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostfiles, "_MOST_BYTES", 1 << 20)
    taken = Taken(data({"name": "x" * 200, **STATUS}) * 10_000)
    with pytest.raises(BoxGone, match="without end"):
        await taken.files.list(b"/w", after=b"", limit=10)
    await taken.writing


@pytest.mark.parametrize(
    ("said", "why"), [(b"{}\n" * 1_000_000, "more lines"), (b'{"a":[' + b"[]," * 100_000 + b"[]]}\n", "without end")]
)
async def test_little_that_comes_to_much(monkeypatch: pytest.MonkeyPatch, said: bytes, why: str) -> None:
    """Empty things take many times as much memory as their letters: none are made of what is not wanted."""
    made = []
    loads = json.loads
    monkeypatch.setattr(hostfiles, "json", SimpleNamespace(loads=lambda text: made.append(text) or loads(text)))
    records_ = (records.record(records.DATA, said[at : at + (1 << 17)]) for at in range(0, len(said), 1 << 17))
    taken = Taken(b"".join(records_) + end(last=""))
    with pytest.raises(BoxGone, match=why):
        await taken.files.list(b"/w", after=b"", limit=10)
    assert not made
    await taken.writing


async def test_one_that_says_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for any longer; what it holds is its own."""
    monkeypatch.setattr(hostfiles, "_GRACE", 0.0)
    taken = Taken(data({"name": "x", **STATUS}), hold=True)
    with pytest.raises(GuestError, match="was not done"):
        await taken.files.glob(b"/w", "*", limit=10, seconds=0.05)
    await taken.writing
    os.close(taken.held[0])


async def test_one_that_was_killed() -> None:
    """Of what was looked for, what it had said counts; half a line does not."""
    said = data({"name": "x", **STATUS}) + records.record(records.DATA, b'{"name": "y')
    found = await Taken(said).files.glob(b"/w", "*", limit=10, seconds=5)
    assert [entry.path for entry in found.entries] == [b"x"] and found.truncated == "seconds"
    with pytest.raises(GuestError, match="ended in the middle"):
        await Taken(said).files.list(b"/w", after=b"", limit=10)
    with pytest.raises(BoxGone):
        await Taken(b"").files.pack(b"/w")


@pytest.mark.parametrize(
    "line",
    [
        {"change": "exploded", "path": "x"},
        {"change": ["created"], "path": "x"},
        {"change": "created", "path": "../x"},
        {"change": "moved", "path": "x", "to": "/etc"},
        {"change": "moved", "path": "x"},
        {"change": "watching", "watched": -1},
        "x" * 70_000,
    ],
)
async def test_changes_that_make_no_sense(line: Any) -> None:
    taken = Taken(
        data({"change": "watching", "watched": 1})
        + (data(line) if not isinstance(line, str) else records.record(records.DATA, line.encode()))
    )
    changes = await taken.files.watch(b"/w", recursive=True, most=1)
    with pytest.raises(BoxGone):
        async for _ in changes:
            pass
    assert taken.broken
    await taken.writing


async def test_matches_that_make_no_sense() -> None:
    for line in (
        {"path": "x", "line": 1, "column": "1", "text": "x"},
        {"path": "x", "line": 1, "column": 1, "text": "x" * 9000},
        {"path": "x"},
    ):
        taken = Taken(data(line) + end(truncated="", engine="builtin"))
        with pytest.raises(BoxGone):
            await taken.files.search(b"/w", TextQuery("x"), limit=10, seconds=5)
        await taken.writing
    taken = Taken(end(truncated="because", engine="builtin"))
    with pytest.raises(BoxGone):
        await taken.files.search(b"/w", TextQuery("x"), limit=10, seconds=5)


async def test_no_descriptor_is_left() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for said in NONSENSE.values():
        taken = Taken(said)
        with pytest.raises(BoxGone):
            await taken.files.list(b"/w", after=b"", limit=10)
        await taken.writing
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("what", ["pack", "watch"])
@pytest.mark.parametrize("end", ["closed", "dropped"])
async def test_what_was_never_begun_closes_its_pipe(what: str, end: str) -> None:
    """Whoever asked may be gone before he takes the first piece; the helper would write for nobody."""
    before = len(os.listdir("/proc/self/fd"))
    taken = Taken(data({"change": "watching", "watched": 1}), hold=True)
    if what == "pack":
        pieces: Any = filework._told(await taken.files.pack(b"/w"))
    else:
        pieces = filework._told(await taken.files.watch(b"/w", recursive=True, most=1))
    await taken.writing
    if end == "closed":
        await pieces.aclose()
    del pieces
    async with asyncio.timeout(30):
        while len(os.listdir("/proc/self/fd")) > before + 1:  # what was begun below it is closed by a task
            await asyncio.sleep(0)
    with pytest.raises(BrokenPipeError):
        os.write(taken.held[0], b"x")
    os.close(taken.held[0])


async def test_a_box_of_an_older_version_is_asked_nothing() -> None:
    files = Taken(b"").files
    files.known = False
    with pytest.raises(GuestError, match="older version"):
        await files.stat(b"/w", follow=False)
