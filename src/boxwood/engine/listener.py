"""Where the zygote is found: its socket and its process, told in the data directory."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

_NAME, _STATE = "zygote.sock", "zygote.json"
_PAUSE = 0.02  # seconds until somebody is let in who could not be


def reach(data: Path) -> socket.socket | None:
    """A connection to the zygote of a data directory; None: nobody listens. OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        at = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{at}/{_NAME}")  # the directory's name may be longer than an address
        finally:
            os.close(at)
    except OSError as error:
        sock.close()
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            return None
        raise
    return sock


def end_unreachable(data: Path) -> None:
    """A zygote that is alive but cannot be reached any more would fight with the next one over the same layers."""
    try:
        state = json.loads((data / _STATE).read_text())
        pidfd = os.pidfd_open(state["pid"])
    except (FileNotFoundError, ProcessLookupError, ValueError, KeyError):
        return
    try:
        if _started_at(state["pid"]) == state["started"]:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        pass
    finally:
        os.close(pidfd)


def wait_end(data: Path, seconds: float) -> None:
    """Until the zygote that was told of last has ended, if it does in this time."""
    try:
        state = json.loads((data / _STATE).read_text())
        pidfd = os.pidfd_open(state["pid"])
    except (FileNotFoundError, ProcessLookupError, ValueError, KeyError):
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if _started_at(state["pid"]) == state["started"]:
            poll.poll(seconds * 1000)
    except (FileNotFoundError, ProcessLookupError):
        pass
    finally:
        os.close(pidfd)


def _started_at(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as f:
        return int(f.read().rsplit(")", 1)[1].split()[19])


class Listener:
    """Takes the place of whoever listened in `data` before."""

    def __init__(self, data: Path) -> None:
        self._path, self._state = data / _NAME, data / _STATE
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        at = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._path.unlink(missing_ok=True)
            self.sock.bind(f"/proc/self/fd/{at}/{_NAME}")  # as in `reach`
        finally:
            os.close(at)
        os.chmod(self._path, 0o600)
        self.sock.listen(8)
        found = os.stat(self._path)
        self._address = found.st_dev, found.st_ino
        self._is_short = False

    def tell(self) -> None:
        """Which process it is that listens."""
        self._state.write_text(json.dumps({"pid": os.getpid(), "started": _started_at(os.getpid())}))

    def accept(self) -> socket.socket | None:
        """Who has come; None: nobody of ours, or somebody who has to wait, since the host is short of descriptors."""
        try:
            sock, _ = self.sock.accept()
        except OSError as error:
            if not self._is_short:
                sys.stderr.write(f"a server has to wait: {error.strerror}\n")
            self._is_short = True
            time.sleep(_PAUSE)  # he still knocks
            return None
        self._is_short = False
        uid = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:8], sys.byteorder)
        if uid != os.getuid():
            sock.close()
            return None
        return sock

    def is_reachable(self) -> bool:
        """Can a server still come? Not when the data directory is gone, or another zygote has taken the place."""
        try:
            found = os.stat(self._path)
        except OSError:
            return False
        return self._address == (found.st_dev, found.st_ino)

    def close(self) -> None:
        if self.is_reachable():
            self._path.unlink(missing_ok=True)  # while we listen: then the next one may take the name
            self._state.unlink(missing_ok=True)
        self.sock.close()
