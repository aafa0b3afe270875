"""A process that has imported the server, and forks itself for each that a test starts: to import it takes longer than
most of what such a test does. Whoever is forked runs `boxwood.server` as `python -m boxwood.server` does, with
arguments, environment, log and session of its own; what the host gives it need not find out again (hostchecks.py).

Started as a script, it takes requests from the socket that is its standard input: JSON with `argv`, `environment` and
`checks` (where what the host gives is remembered), and two descriptors, the log and the pipe that the exit code goes to.
The answer is the pid. It ends with the socket.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

REQUEST = 1 << 18  # bytes: an environment, mostly
MODULE = "boxwood.server"
# All that it imports, and what it would import while it starts.
IMPORTED = (
    "boxwood.server.main", "cryptography.hazmat.primitives.serialization", "cryptography.x509", "ctypes.util",
    "encodings.idna", "importlib.readers",
)  # fmt: skip


class Started:
    """One that was started: what the tests need of a Popen."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status = status
        self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative for a signal. TimeoutExpired."""
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(MODULE, timeout or 0.0)
        return code

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and self._over(timeout):
            said = os.read(self._status, 64)
            assert said, "whoever starts servers has ended"
            self.returncode = int(said)
            os.close(self._status)
            os.close(self._handle)
        return self.returncode

    def _over(self, timeout: float | None) -> bool:
        waiting = select.poll()
        waiting.register(self._status, select.POLLIN)
        return bool(waiting.poll(None if timeout is None else timeout * 1000))

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, signum: signal.Signals) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, signum)  # a zombie takes it too


_kept: list[tuple[socket.socket, subprocess.Popen[bytes]]] = []  # the one of this process, once there is one


def _warm() -> socket.socket:
    if not _kept:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen([sys.executable, "-P", __file__], stdin=theirs, start_new_session=True)
        _kept.append((ours, process))
        atexit.register(_end)
    return _kept[0][0]


def _end() -> None:
    sock, process = _kept.pop()
    sock.close()
    process.wait()


def start(argv: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> Started:
    """A server with these arguments."""
    import hostchecks  # which the script can only once it knows where it is

    asked = _warm()
    reading, writing = os.pipe()
    given = {"argv": list(argv), "environment": dict(environment), "checks": str(hostchecks.place())}
    request = json.dumps(given).encode()
    assert len(request) < REQUEST
    socket.send_fds(asked, [request], [log.fileno(), writing])
    os.close(writing)
    answer = asked.recv(64)
    assert answer, "whoever starts servers has ended"
    return Started(int(answer), reading)


# --- as a script


def wait_for_requests(asked: socket.socket) -> list[str]:
    """Returns in those that are forked, with their arguments."""
    children: dict[int, tuple[int, int]] = {}  # by pidfd: the pid, and the pipe
    while True:
        ready, _, _ = select.select([asked, *children], [], [])
        for handle in ready:
            if handle is asked:
                request, fds, _, _ = socket.recv_fds(asked, REQUEST, 2)
                if not request:
                    os._exit(0)
                pid = os.fork()
                if not pid:
                    asked.detach()  # the number is for another file from now on
                    return become(json.loads(request), fds[0])
                children[os.pidfd_open(pid)] = pid, fds[1]
                os.close(fds[0])
                asked.send(str(pid).encode())
            else:
                pid, status = children.pop(handle)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                try:
                    os.write(status, str(code).encode())
                except BrokenPipeError:
                    pass  # nobody wants to know
                os.close(status)
                os.close(handle)


def become(request: dict[str, object], log: int) -> list[str]:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(fd, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    environment, argv = request["environment"], request["argv"]
    assert isinstance(environment, dict) and isinstance(argv, list)
    os.environ.clear()
    os.environ.update(environment)
    sys.modules["hostchecks"].remember(Path(str(request["checks"])))
    return argv


def import_all() -> None:
    """The server, and, from beside this file, what stands in for a part of it."""
    for name in IMPORTED:
        importlib.import_module(name)
    sys.path.insert(0, str(Path(__file__).parent))
    importlib.import_module("hostchecks")
    del sys.path[0]
    gc.collect()
    gc.freeze()  # what all have is not copied for each


if __name__ == "__main__":
    import_all()
    sys.argv[1:] = wait_for_requests(socket.socket(fileno=0))
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
