"""Files that the agent keeps open for the server, on a directory of this machine."""

from __future__ import annotations

import errno
import os

import pytest

from boxwood.engine.agent import handles
from boxwood.engine.agent.files import Refusal
from boxwood.engine.agent.flushes import Flushes
from boxwood.engine.agent.handles import Handles
from boxwood.engine.agent.loop import Loop
from boxwood.engine.handleapi import FURTHEST, PIECE


class Answer:
    def __init__(self):
        self.fields, self.payload, self.errno = None, b"", None

    def __call__(self, fields=None, payload=b"", *, hurry=True):
        self.fields, self.payload = fields or {}, payload

    def error(self, number, text):
        self.errno = number


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def open_files(loop):
    found = Handles(Flushes(loop))
    yield found
    found.relink()


def ask(open_files, op, payload=b"", **fields):
    answer = Answer()
    open_files.ops[f"handle.{op}"]({"id": "one", "mode": 0o644, **fields}, payload, answer)
    return answer


def test_an_answer_that_takes_a_child_comes_when_it_has_ended(loop, open_files, tmp_path, monkeypatch):
    """What is in a lower layer is copied when it is opened to be written; and a disk takes its time."""
    monkeypatch.setattr(handles, "_AT_ONCE", 2)
    (tmp_path / "long").write_bytes(b"long")
    path = str(tmp_path / "long")
    answer = ask(open_files, "open", path=path, write=True)
    assert answer.fields is None
    with pytest.raises(ValueError, match="in use"):
        ask(open_files, "open", path=path, write=True)
    while answer.fields is None:
        loop.step(5)
    assert ask(open_files, "write", b"LO", at=0).fields == {}
    flushed = ask(open_files, "flush")
    ask(open_files, "close")  # meanwhile
    while flushed.fields is None:
        loop.step(5)
    assert (tmp_path / "long").read_bytes() == b"LOng"


def test_what_is_closed_before_it_is_open_is_not_opened(loop, open_files, tmp_path, monkeypatch):
    monkeypatch.setattr(handles, "_AT_ONCE", 2)
    (tmp_path / "long").write_bytes(b"long")
    before = len(os.listdir("/proc/self/fd"))
    answer = ask(open_files, "open", path=str(tmp_path / "long"), write=True)
    ask(open_files, "close")
    while answer.fields is None:
        loop.step(5)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(Refusal, match="not open"):
        ask(open_files, "read", at=0, size=1)


def test_another_server_finds_nothing_open(open_files, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    ask(open_files, "open", path=str(tmp_path / "new"), write=True, create=True)
    assert len(os.listdir("/proc/self/fd")) == before + 2  # and the directory, whose new name is to be flushed
    open_files.relink()
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_more_are_opened_than_leave_room_for_all_else(open_files, tmp_path, monkeypatch):
    monkeypatch.setattr(handles.resource, "getrlimit", lambda what: (8, 8))
    for name in ("one", "two"):
        ask(open_files, "open", id=name, path=str(tmp_path / "new"), write=True, create=True)
    with pytest.raises(Refusal, match="2 files open") as caught:
        ask(open_files, "open", id="three", path=str(tmp_path / "new"))
    assert caught.value.errno == errno.EAGAIN


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("read", {"at": -1, "size": 1}),
        ("read", {"at": FURTHEST, "size": 1}),
        ("read", {"at": 1 << 200, "size": 1}),
        ("read", {"at": True, "size": 1}),
        ("read", {"at": 0, "size": -1}),
        ("read", {"at": 0, "size": PIECE + 1}),
        ("read", {"id": "../x", "at": 0, "size": 1}),
        ("write", {"at": 1 << 63}),
        ("change", {"size": -1}),
        ("change", {"size": 1 << 63}),
        ("change", {"uid": (1 << 32) - 1}),
        ("change", {"mode": 0o10000}),
        ("change", {"modified": 1 << 70}),
        ("open", {"id": "two", "path": "/nothing", "mode": 0o1777, "create": True}),
        ("open", {"id": "two", "path": "relative"}),
    ],
)
def test_what_makes_no_sense_is_refused(open_files, tmp_path, op, fields):
    """With what the agent's loop takes for a refusal: anything else would end it."""
    ask(open_files, "open", path=str(tmp_path / "new"), read=True, write=True, create=True)
    with pytest.raises((Refusal, ValueError)):
        ask(open_files, op, b"x", **fields)
