"""The server's connection as the zygote has it: requests with descriptors come in packets of JSON, answers go out."""

from __future__ import annotations

import array
import json
import os
import socket
from collections import deque
from typing import Any

from boxwood.engine.birth import PACKET_LIMIT

_MOST_FDS = 8
_UNSAID = 10_000  # packets that wait for a server


class Lost(Exception):
    """It is gone, or so far behind that it had better come back and ask for the list."""


class Peer:
    """`frozen`: the boxes that it has frozen."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.frozen: set[str] = set()
        self._unsaid: deque[bytes] = deque()

    @property
    def behind(self) -> bool:
        return bool(self._unsaid)

    def receive(self) -> tuple[dict[str, Any], list[int], bool]:
        """A request, its descriptors (the caller's to close), and whether all of them have come. Lost."""
        try:
            packet, ancillary, flags, _ = self.sock.recvmsg(
                PACKET_LIMIT, socket.CMSG_SPACE(4 * _MOST_FDS), socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise Lost(str(error)) from None
        fds = [fd for *_, data in ancillary for fd in array.array("i", data)]
        try:
            if not packet or flags & socket.MSG_TRUNC:  # no server of ours says so much
                raise ValueError("it has closed, or says too much")
            return json.loads(packet), fds, not flags & socket.MSG_CTRUNC
        except ValueError as error:
            for fd in fds:
                os.close(fd)
            raise Lost(str(error)) from None

    def put(self, message: dict[str, Any]) -> None:
        self._unsaid.append(json.dumps(message).encode())

    def flush(self) -> bool:
        """Send what it takes. True: nothing is left. Lost."""
        if len(self._unsaid) > _UNSAID:
            raise Lost("it does not read")
        try:
            while self._unsaid:
                self.sock.send(self._unsaid[0], socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
                self._unsaid.popleft()
        except BlockingIOError:
            return False
        except OSError as error:
            raise Lost(str(error)) from None
        return True
