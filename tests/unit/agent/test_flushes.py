"""Files of durable VMs: flushed before they take their place, and their names up to the root behind that."""

from __future__ import annotations

import errno
import os
import time

import pytest

from boxwood.engine.agent import files
from boxwood.engine.agent.flushes import Flushes


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_on_disk", lambda directory: None)
    return tmp_path


def until(loop, done):
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        loop.step(0.5)


def written(path, data=b"new", slowly=False):
    writing = files.Writing(str(path), None, slowly=slowly)
    writing.bytes(data)
    return writing


def test_every_name_up_to_the_root_is_flushed(place, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(os.readlink(f"/proc/self/fd/{fd}")))
    writing = written(place / "a/b/f")
    writing.flush()
    assert len(flushed) == 1 and "/a/b/.boxwood-new-" in flushed.pop()
    writing.place()
    writing.flush_names()
    writing.close()
    above = [str(place / "a/b")]
    while above[-1] != "/":
        above.append(os.path.dirname(above[-1]))
    assert flushed == above


def test_many_at_once(place, loop):
    told = {}
    flushes = Flushes(loop)
    for number in range(30):
        writing = written(place / f"d{number}/f", b"%d" % number)
        flushes.place(writing, lambda result, number=number, writing=writing: told.update({number: (result, writing)}))
    assert not told
    until(loop, lambda: len(told) == 30)
    for number, (result, writing) in told.items():
        assert result == 0 and (place / f"d{number}/f").read_bytes() == b"%d" % number
        writing.close()
    assert not list(place.glob("*/.boxwood-new-*"))


@pytest.mark.parametrize("slowly", [False, True])
def test_what_goes_wrong_is_told(place, loop, slowly):
    """And of a file that got a name only in the child that name is gone too."""
    told = []
    writing = written(place / "d/f", slowly=slowly)
    (place / "d/f").mkdir()
    Flushes(loop).place(writing, told.append)
    until(loop, lambda: told)
    assert told == [errno.EISDIR]
    writing.abandon()
    assert os.listdir(place / "d") == ["f"]


def test_a_disk_that_does_not_take_it(place, loop, monkeypatch):
    def failing(fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    told = []
    writing = written(place / "f")
    Flushes(loop).place(writing, told.append)
    until(loop, lambda: told)
    assert told == [errno.EIO] and not (place / "f").exists()
    writing.abandon()
    assert not os.listdir(place)
