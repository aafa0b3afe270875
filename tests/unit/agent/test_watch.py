"""Changes that came one right behind the other, before they were looked at: none is missed."""

from __future__ import annotations

import json
import os
import threading

import pytest

from boxwood.engine.agent import watch
from boxwood.engine.agent.helpers import Out


@pytest.fixture
def told(tmp_path, monkeypatch):
    """What a watcher of a directory tells of what is done before it looks, up to the file `end` in that."""
    monkeypatch.setattr(watch, "check_on_disk", lambda directory, shown: None)

    def tell(prepare, happen):
        prepare(tmp_path)
        reading, writing = os.pipe()
        watcher = watch.Watcher(os.fsencode(tmp_path), 100, True, Out(writing))
        watcher.begin()
        happen(tmp_path)
        (tmp_path / "end").touch()
        thread = threading.Thread(target=watcher.go_on)
        thread.start()
        data = b""
        while b'"end"' not in data:
            data += os.read(reading, 1 << 16)
        os.close(reading)  # nobody listens any more
        thread.join(20)
        os.close(writing)
        os.close(watcher._fd)
        lines = [line[line.index(b"{") :] for line in data.splitlines() if b"{" in line]
        return [(one["change"], one.get("path"), one.get("to")) for one in map(json.loads, lines)]

    return tell


def test_what_is_made_in_a_directory_that_has_just_been_moved(told):
    def happen(top):
        (top / "d").rename(top / "D")
        (top / "D/e/there").touch()
        (top / "D/here").touch()

    found = told(lambda top: (top / "d/e").mkdir(parents=True), happen)
    assert ("moved", "d", "D") in found
    assert ("created", "D/e/there", None) in found and ("created", "D/here", None) in found
    assert not [one for one in found if one[0] == "created" and one[1].startswith("d/")]


def test_a_directory_that_takes_the_place_of_an_empty_one(told):
    def prepare(top):
        (top / "d/e").mkdir(parents=True)
        (top / "D").mkdir()

    def happen(top):
        (top / "d").rename(top / "D")
        (top / "D/e/there").touch()
        (top / "D/e/there").unlink()

    found = told(prepare, happen)
    assert ("moved", "d", "D") in found
    assert ("created", "D/e/there", None) in found and ("removed", "D/e/there", None) in found


def test_moved_twice(told):
    def happen(top):
        (top / "d").rename(top / "D")
        (top / "D").rename(top / "f/D")
        (top / "f/D/e/there").touch()

    def prepare(top):
        (top / "d/e").mkdir(parents=True)
        (top / "f").mkdir()

    found = told(prepare, happen)
    assert ("moved", "d", "D") in found and ("moved", "D", "f/D") in found
    assert ("created", "f/D/e/there", None) in found
