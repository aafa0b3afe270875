"""One interpreter of a Python context: how it comes up, what it is told, and what it answers.

The program that it executes (engine/guest) comes with the session, over the socket that orders go over then. What it
says is bounded here and believed of nothing but its own run: the code of a run may say it in its place.
"""

from __future__ import annotations

import array
import os
import re
import signal
import socket
from collections.abc import Callable, Mapping, Sequence

from boxwood.engine.agent.common import Common
from boxwood.engine.agent.loop import IN
from boxwood.engine.agent.minder import Verdict
from boxwood.engine.agent.procs import Streams, in_memory
from boxwood.engine.agent.trees import ProcessTree

_BOOT = b"""\
import os
d = {"__name__": "boxwood"}
exec(compile(os.read(0, 1 << 20), "<boxwood>", "exec"), d)
d["main"](0)"""
_DONE = re.compile(rb"done ([0-9]{1,9}) ([0-9]{1,3})")
_MOST_ANSWER = 64 << 10
_PATH = b"/usr/local/bin:/usr/bin:/bin"
NONE = (
    "there is no python3 in this VM: install it there (apt-get install python3, apk add python3), or fork an image that"
    " has it"
)


def find_python(env: Mapping[bytes, bytes]) -> bytes:
    """The `python3` that is found along PATH. FileNotFoundError: there is none, and how to get it."""
    for directory in env.get(b"PATH", _PATH).split(b":"):
        path = os.path.join(directory or b".", b"python3")
        if path.startswith(b"/") and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    raise FileNotFoundError(2, NONE)


class Interpreter:
    """A minder's program: what daemonises comes back to the minder, who reaps it. `on_ready` is called once, `on_done`
    with the exit code and environment of each order that is finished, `on_death` when the program has ended, with its
    exit code as waitstatus_to_exitcode has it, and `on_gone` if the minder has been killed."""

    def __init__(
        self,
        common: Common,
        exe: bytes,
        env: Mapping[bytes, bytes],
        place: int,
        outputs: tuple[int, int],
        program: bytes,
        tree: ProcessTree,
    ) -> None:
        """`place`: its directory, open; `outputs`: where it writes what goes wrong until the first order. OSError."""
        self._common = common
        self._loop = common.loop
        self._tree = tree
        self.ready = False
        self.alive = True
        self.gone = False
        self.deaf = False
        self.orders = 0  # that it has had
        self.on_ready: Callable[[], None] = lambda: None
        self.on_done: Callable[[int, dict[bytes, bytes]], None] = lambda code, env: None
        self.on_death: Callable[[int], None] = lambda code: None
        self.on_gone: Callable[[], None] = lambda: None
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        try:
            self._sock.send(program)
            streams = Streams(theirs.fileno(), *outputs)
            self._minder = common.minders.start([exe, b"-c", _BOOT], env, streams, place, None)
        except OSError:
            self._sock.close()
            raise
        finally:
            theirs.close()
        minder = self._minder
        minder.on_verdict, minder.on_death = self._on_verdict, self._on_minder_death
        tree.grow(minder.pid)
        tree.group = lambda: minder.program
        self._loop.watch(self._sock.fileno(), IN, self._on_word)

    @property
    def pid(self) -> int | None:
        return self._minder.program if self.alive else None

    def order(self, source: bytes, fds: Sequence[int]) -> None:
        """Have it execute this, with descriptors for its standard streams and its reports. OSError: it does not listen
        (`deaf`), or there is not what that takes."""
        text = in_memory(source)
        try:
            rights = array.array("i", (text, *fds))
            word = b"run %d" % (self.orders + 1)
            self._sock.sendmsg([word], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_NOSIGNAL)
        except OSError:
            self.deaf = True
            raise
        finally:
            os.close(text)
        self.orders += 1

    def signal(self, signum: int) -> bool:
        """To its process group, as a key of a terminal would. False: nobody is there."""
        pid = self.pid
        return pid is not None and self._tree.signal([-pid], signum)

    def directory(self) -> bytes:
        """Where it is; empty if that cannot be told."""
        try:
            return os.readlink(b"/proc/%d/cwd" % (self.pid or 0))
        except OSError:
            return b""

    def give_back(self) -> None:
        """Nothing of it lives any more."""
        if not self.gone:
            self.gone = True
            self._tree.let_go()
            self._common.minders.give_back(self._minder)

    def _on_word(self, events: int = 0) -> None:
        try:
            word = self._sock.recv(_MOST_ANSWER)
        except BlockingIOError:
            return
        except OSError:
            word = b""
        if word == b"ready" and not self.ready:
            self.ready = True
            self.on_ready()
            return
        head, _, environment = word.partition(b"\0")
        done = _DONE.fullmatch(head) if self.ready else None
        if done is not None and int(done[2]) < 256:
            if int(done[1]) != self.orders:
                return  # of a run that has said so once before
            pairs = (pair.partition(b"=") for pair in environment.split(b"\0"))
            self.on_done(int(done[2]), {name: value for name, sign, value in pairs if name and sign})
            return
        self._loop.unwatch(self._sock.fileno())
        if word and self.pid is not None:
            self._tree.signal([self.pid], signal.SIGKILL)  # it is not what it was
        # else it has closed its end: it ends now, or has become another program, whose end is then its own

    def _on_verdict(self, verdict: Verdict) -> None:
        self._die(verdict.code if verdict.refusal else os.waitstatus_to_exitcode(verdict.status))

    def _on_minder_death(self) -> None:
        self.gone = True
        self._tree.root_died()
        self._die(-signal.SIGKILL)
        self.on_gone()

    def _die(self, code: int) -> None:
        if not self.alive:
            return
        self.alive = False
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        self.on_death(code)
