"""Files that the agent keeps open for the server, on a directory of this machine."""

from __future__ import annotations

import errno
import os
import socket
from types import SimpleNamespace

import pytest

from boxwood.engine.agent import copyups, handles
from boxwood.engine.agent.files import Refusal
from boxwood.engine.agent.flushes import Flushes
from boxwood.engine.agent.handles import Handles
from boxwood.engine.agent.links import resolve
from boxwood.engine.agent.main import Agent
from boxwood.engine.handleapi import FURTHEST, PIECE


class Answer:
    def __init__(self):
        self.fields, self.payload, self.errno = None, b"", None

    def __call__(self, fields=None, payload=b"", *, hurry=True):
        self.fields, self.payload = fields or {}, payload

    def error(self, number, text):
        self.errno, self.text = number, text


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
    monkeypatch.setattr(copyups, "AT_ONCE", 2)
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
    monkeypatch.setattr(copyups, "AT_ONCE", 2)
    (tmp_path / "long").write_bytes(b"long")
    before = len(os.listdir("/proc/self/fd"))
    answer = ask(open_files, "open", path=str(tmp_path / "long"), write=True)
    ask(open_files, "close")
    while answer.fields is None:
        loop.step(5)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(Refusal, match="not open"):
        ask(open_files, "read", at=0, size=1)


def until_told(loop, answer):
    assert answer.fields is None and answer.errno is None, "not at once"
    while answer.fields is None and answer.errno is None:
        loop.step(5)
    return answer.errno


def test_a_large_file_that_must_not_be_there_is_not_copied(open_files, tmp_path, monkeypatch):
    monkeypatch.setattr(copyups, "AT_ONCE", 2)
    (tmp_path / "long").write_bytes(b"long")
    with pytest.raises(Refusal) as caught:
        ask(open_files, "open", path=str(tmp_path / "long"), write=True, create=True, exclusive=True)
    assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_why_a_large_file_could_not_be_copied_is_told(loop, open_files, tmp_path, monkeypatch, number):
    def full(path, header):
        raise Refusal(number, "why")

    monkeypatch.setattr(copyups, "AT_ONCE", 2)
    monkeypatch.setattr(handles, "_opened", full)
    (tmp_path / "long").write_bytes(b"long")
    assert until_told(loop, ask(open_files, "open", path=str(tmp_path / "long"), write=True)) == number


def test_a_large_file_is_changed_by_a_child(loop, open_files, tmp_path, monkeypatch):
    """One that was opened to be read may have to be copied for that."""
    monkeypatch.setattr(copyups, "AT_ONCE", 2)
    (tmp_path / "long").write_bytes(b"long")
    before = len(os.listdir("/proc/self/fd"))
    ask(open_files, "open", path=str(tmp_path / "long"), read=True)
    assert until_told(loop, ask(open_files, "change", size=None, modified=7, accessed=7)) is None
    assert (tmp_path / "long").stat().st_mtime == 7
    assert until_told(loop, ask(open_files, "change", size=1)) == errno.EINVAL, "it is not open for that"
    ask(open_files, "close")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("file.chmod", {"mode": 0o600}),
        ("file.change", {"mode": 0o600, "follow": True}),
        ("file.move", {"to": "/new"}),
        ("file.link", {"to": "/new"}),
    ],
)
def test_a_large_file_is_given_other_names_and_bits_by_a_child(tmp_path, monkeypatch, op, fields):
    """All else would have to wait until it is copied from a lower layer."""
    monkeypatch.setattr(copyups, "AT_ONCE", 2)
    if "to" in fields:
        fields = {"to": f"{tmp_path}/new"}
    ours, theirs = socket.socketpair()
    agent = Agent(b"/", theirs)

    def asked():
        agent.link = SimpleNamespace(put=lambda header, *_, **more: setattr(answer, "fields", header))
        answer = Answer()
        agent._on_frame({"op": op, "n": 1, "path": f"{tmp_path}/long", **fields}, b"", [])
        return answer

    def told(answer):
        until_told(agent._loop, answer)
        return answer.fields

    (tmp_path / "long").write_bytes(b"long")
    assert told(asked()) == {"re": 1}
    changed = tmp_path / ("new" if "to" in fields else "long")
    assert changed.read_bytes() == b"long" and ("to" in fields or changed.stat().st_mode & 0o777 == 0o600)
    if "to" in fields:
        (tmp_path / "long").write_bytes(b"long")
        found = told(asked())
        assert found["errno"] == errno.EEXIST and found["error"].startswith("File exists: ")
        (tmp_path / "new").unlink()
    (tmp_path / "long").write_bytes(b"l")
    assert asked().fields == {"re": 1}, "a small one at once"
    agent._loop.close()
    ours.close()
    theirs.close()


def test_a_path_that_is_too_long_without_its_links_is_refused(tmp_path):
    """The server would take it for nonsense, and the box with it."""
    at = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(17):
            os.mkdir("d" * 230, dir_fd=at)
            below = os.open("d" * 230, os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        deep = os.readlink(f"/proc/self/fd/{at}")
    finally:
        os.close(at)
    os.symlink(deep, tmp_path / "link")
    assert resolve({"path": f"{tmp_path}/link/n"}) == {"path": f"{deep}/n"}
    with pytest.raises(Refusal) as caught:
        resolve({"path": f"{tmp_path}/link/{'n' * (4096 - len(deep))}"})
    assert caught.value.errno == errno.ENAMETOOLONG


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
