"""Jobs on layers in children of a small process: the tests' own has so much memory that to fork it takes longer than
most of what such a test does.

Started as a script, it takes requests from the socket that is its standard input: a job as JSON, and descriptors as
`jailed` wants them (layers, images, where the answer goes, and perhaps a stream). It says the pid of the child, waits for
another word, and then for the child, and says its wait status: nobody else gets the pid before. It ends with the socket.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

from boxwood.engine.layers import jail

REQUEST = 1 << 18  # bytes: a stack of layers, at most
_kept: list[tuple[socket.socket, subprocess.Popen[bytes], int]] = []  # the one of this process, once there is one
_one_at_a_time = threading.Lock()


class Job:
    """One that has begun. `pid`: who does it. To be ended before there is another."""

    def __init__(self, job: dict[str, Any], fds: Sequence[int]) -> None:
        _one_at_a_time.acquire()
        try:
            self._sock = _process()
            socket.send_fds(self._sock, [json.dumps(job).encode()], fds)
            self.pid = int(self._sock.recv(64))
        except BaseException:
            _one_at_a_time.release()
            raise

    def end(self) -> int:
        """Wait for it: its exit code, negative for a signal."""
        try:
            self._sock.send(b"end")
            return os.waitstatus_to_exitcode(int(self._sock.recv(64)))
        finally:
            _one_at_a_time.release()


def _process() -> socket.socket:
    if not _kept or _kept[0][2] != os.getpid():
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen([sys.executable, "-P", __file__], stdin=theirs, start_new_session=True)
        _kept[:] = [(ours, process, os.getpid())]
        atexit.register(_end, ours, process)
    return _kept[0][0]


def _end(sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
    sock.close()
    process.wait()


def serve(asked: socket.socket) -> None:
    while True:
        request, fds, _, _ = socket.recv_fds(asked, REQUEST, 4)
        if not request:
            return
        pid = os.fork()
        if not pid:
            asked.detach()
            _do(json.loads(request), fds)
        for fd in fds:
            os.close(fd)
        asked.send(str(pid).encode())
        if not asked.recv(8):
            return
        asked.send(str(os.waitpid(pid, 0)[1]).encode())


def _do(job: dict[str, Any], fds: list[int]) -> NoReturn:
    layers, images, out, *stream = fds
    jail.jailed(job, layers, images, out, stream_fd=stream[0] if stream else None)


if __name__ == "__main__":
    gc.collect()
    gc.freeze()
    serve(socket.socket(fileno=0))
