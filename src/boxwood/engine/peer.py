"""The zygote's conversation with the server: requests with descriptors come in packets of JSON, answers go out."""

from __future__ import annotations

import array
import json
import os
import selectors
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from boxwood.engine.birth import PACKET_LIMIT

_MOST_FDS = 8
_UNSAID = 10_000  # packets that wait for a server


class Refused(Exception):
    """A request that makes no sense: its text is the answer."""


class Lost(Exception):
    """It is gone, or so far behind that it had better come back and ask for the list."""


class Peer:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
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


class Conversation:
    """With one server at a time: the newest. `answered`: what a request comes to, given its descriptors and whether all
    of them have come; None: nothing yet. `left`: is called when it is gone."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        answered: Callable[[dict[str, Any], list[int], bool], dict[str, Any] | None],
        left: Callable[[], None],
    ) -> None:
        self._selector = selector
        self._answered = answered
        self._left = left
        self.peer: Peer | None = None

    def begin(self, sock: socket.socket) -> None:
        self._drop()
        self.peer = Peer(sock)
        self._selector.register(sock, selectors.EVENT_READ, self._on_request)

    def _drop(self) -> None:
        if peer := self.peer:
            self._left()
            self._selector.unregister(peer.sock)
            peer.sock.close()
            self.peer = None

    def _on_request(self) -> None:
        assert self.peer is not None
        try:
            request, fds, complete = self.peer.receive()
        except Lost:
            self._drop()
            return
        try:
            answer = self._answered(request, fds, complete)
        finally:
            for fd in fds:
                os.close(fd)
        if answer is not None:  # else it comes later
            self.say({"n": request["n"], **answer})

    def say(self, message: dict[str, Any]) -> None:
        """If there is somebody to hear it."""
        if self.peer is not None:
            self.peer.put(message)
            self._flush()

    def _flush(self) -> None:
        """Say what is left to say. As long as the server does not take it, nothing it asks is heard."""
        assert self.peer is not None
        try:
            behind = not self.peer.flush()
        except Lost:
            self._drop()
            return
        if behind:
            self._selector.modify(self.peer.sock, selectors.EVENT_WRITE, self._flush)
        else:
            self._selector.modify(self.peer.sock, selectors.EVENT_READ, self._on_request)
