"""A zygote that cannot be started: that is told, and nothing is left of it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from boxwood.engine import daemon, listener
from boxwood.engine.api import EngineError
from boxwood.engine.daemon import Outside, Zygote
from boxwood.engine.listener import Listener


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    (tmp_path / "log").mkdir()
    before = os.listdir("/proc/self/fd")
    yield Zygote(tmp_path, tmp_path, lambda box, status: None, lambda reason: None, Outside())
    assert os.listdir("/proc/self/fd") == before


def program(place: Path, text: str) -> str:
    path = place / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_there_is_no_program(zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(EngineError, match="could not be started: No such file"):
        zygote._start()


def test_it_ends_at_once(zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path, "echo why >&2"))
    with pytest.raises(EngineError, match="did not start"):
        zygote._start()
    assert (tmp_path / "log" / "zygote.log").read_text() == "why\n"
    zygote._reap(0)


def test_it_never_gets_ready(zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path, "exec sleep 1000"))
    monkeypatch.setattr(daemon, "_START_SECONDS", 0.1)
    with pytest.raises(EngineError, match="not ready within"):
        zygote._start()
    zygote._reap(0)  # it has been killed


def test_who_is_reached(zygote: Zygote, tmp_path: Path) -> None:
    """Nobody where there is no socket, nor where nobody listens any more."""
    assert listener.reach(tmp_path) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gone:
        gone.bind(str(tmp_path / "zygote.sock"))
    assert listener.reach(tmp_path) is None
    with Listener(tmp_path).sock:
        found = listener.reach(tmp_path)
        assert found is not None
        found.close()
