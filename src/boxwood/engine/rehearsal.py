"""An agent's life, played in the nursery before any box is forked: it opens a session, and runs a command.

What Python finds out while it does something for the first times (where an attribute lies, how an instruction is best
done, which names a class has) it writes to memory that all boxes have in common; each box that had to find it out would
have copies of those pages.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from boxwood.engine import frames
from boxwood.engine import kernel as k
from boxwood.engine.agent.main import Agent
from boxwood.engine.agent.procs import children
from boxwood.engine.agent.shell import find_shell

TIMES = 9  # what has been called eight times is taken for what will be called again, says Python 3.11
_PATIENCE = 5.0  # seconds: this host's shell does not do what it should
_RUN_MASK = 0o022


def rehearse(place: str, times: int = TIMES) -> None:
    """In a process that has no children and serves nobody yet. `place`: a directory to make, which goes again. What
    fails is told, and costs memory only."""
    if not _has_bash():
        return
    k.set_subreaper(True)
    mask = os.umask(_RUN_MASK)
    try:
        shutil.rmtree(place, ignore_errors=True)  # of somebody who was killed
        os.mkdir(place, 0o700)
        for number in range(times):
            _Play(f"{place}/{number}", number).perform()
    except Exception:
        traceback.print_exc()
    finally:
        _end_children()
        shutil.rmtree(place, ignore_errors=True)
        os.umask(mask)
        k.set_subreaper(False)
        gc.collect()


def _has_bash() -> bool:
    """What other shells would be is started in another way, in which it could outlive us."""
    try:
        return find_shell().endswith(b"/bash")
    except FileNotFoundError:
        return False


def _live_no_longer_than(parent: int) -> None:
    """A shell of the host's, which nobody else would end. Not those that it forks: it forks none."""
    k.set_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


class _Play:
    """One of them; `directory`: is made."""

    def __init__(self, directory: str, number: int) -> None:
        os.mkdir(directory)
        self._hook, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server, link = socket.socketpair()
        self._session, self._run = f"{number:026d}", f"{number:026d}"
        self._heard: list[dict[str, Any]] = []
        self._incoming = frames.Incoming(self._server, frames.TO_AGENT_LIMIT)
        self._server.setblocking(False)
        self._agent = Agent(os.fsencode(directory), theirs)
        ours = os.getpid()
        self._agent.desk.make_ready(lambda: _live_no_longer_than(ours))
        self._agent.desk.open_up()
        self._agent.attend(link.detach())

    def perform(self) -> None:
        """TimeoutError, OSError, what an agent may raise."""
        try:
            environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/"}
            self._say("session.open", 1, sid=self._session, env=environment, cwd="/")
            self._say("run.start", 2, b":", rid=self._run, sid=self._session, timeout=_PATIENCE, stdin=None)
            self._until(lambda: any(said.get("ev") == "end" for said in self._heard))
            self._say("run.ack", 0, rid=self._run, out=0, err=0)
            self._say("run.forget", 0, rid=self._run)
            self._say("settle", 3)
            self._until(lambda: any(said.get("re") == 3 for said in self._heard))
            for pid in children(os.getpid()):
                os.kill(pid, signal.SIGKILL)
            self._until(lambda: not children(os.getpid()))
        finally:
            self._agent.leave()
            self._incoming.close()
            self._server.close()
            self._hook.close()

    def _say(self, op: str, number: int, payload: bytes = b"", **fields: object) -> None:
        self._server.sendall(frames.pack({"op": op, "n": number, **fields}, payload))

    def _until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + _PATIENCE
        while not done():
            if time.monotonic() > end:
                raise TimeoutError(f"an agent was rehearsed, and has said only {self._heard}")
            self._agent.turn(0.1)
            with suppress(BlockingIOError):
                self._incoming.receive()
                self._heard += (header for header, _, _ in self._incoming.frames())


def _end_children() -> None:
    while there := children(os.getpid()):
        for pid in there:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
