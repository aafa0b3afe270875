"""One kept connection to a plain http server, blocking. Written by hand: the counterpart of ../_async/connection.py."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

from boxwood.client.http1 import BadAnswer, Origin, Reply

BLOCK = 1 << 16  # for more the allocator would fetch fresh pages of the kernel each time


class Connection:
    """`usable`: may it carry another request? One at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._open = True
        self._reply = Reply()  # that is read bit by bit

    @classmethod
    def open(cls, origin: Origin, timeout: float) -> Connection:
        """:raises OSError: nobody there."""
        sock = socket.create_connection((origin.host, origin.port), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(sock)

    @property
    def usable(self) -> bool:
        """Not if the server has closed it, or said something unasked."""
        return self._open and not self._readable.poll(0)

    def exchange(self, request: bytes, timeout: float) -> Reply:
        """:raises TimeoutError: nothing came for `timeout` seconds.
        :raises OSError, BadAnswer: the connection broke.
        """
        reply = Reply()
        try:
            self._socket.settimeout(timeout)
            try:
                self._socket.sendall(request)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it may have refused the rest, and have said why
            while not reply.complete:
                self._receive(reply)
        except BaseException:
            self.close()
            raise
        if not reply.keep:
            self.close()
        return reply

    def deliver(self, head: bytes, pieces: Iterator[bytes], timeout: float) -> Reply:
        """A request whose body comes in pieces. A server that answers before it has all of them wants no more."""
        reply = Reply()
        whole = False
        try:
            self._socket.settimeout(timeout)
            try:
                self._socket.sendall(head)
                for piece in pieces:
                    if self._readable.poll(0):
                        break
                    self._socket.sendall(piece)
                else:
                    whole = True
            except (BrokenPipeError, ConnectionResetError):
                pass  # it may have said why
            while not reply.complete:
                self._receive(reply)
        except BaseException:
            self.close()
            raise
        if not whole or not reply.keep:
            self.close()
        return reply

    def begin(self, request: bytes, timeout: float) -> Reply:
        """The answer up to the end of its head; its body comes with `more`. Errors as of `exchange`."""
        self._reply = Reply()
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(request)
            while not self._reply.headed:
                self._receive(self._reply)
        except BaseException:
            self.close()
            raise
        return self._reply

    def more(self, timeout: float) -> bytes:
        """What comes next of the body that was begun; nothing: that was all, and the connection may carry another
        request if it is `usable`. Errors as of `exchange`."""
        reply = self._reply
        try:
            self._socket.settimeout(timeout)
            while not reply.held and not reply.complete:
                self._receive(reply)
        except BaseException:
            self.close()
            raise
        data = reply.take()
        if not data and not reply.keep:
            self.close()
        return data

    def _receive(self, reply: Reply) -> None:
        if data := self._socket.recv(BLOCK):
            reply.feed(data)
        else:
            reply.end()

    def close(self) -> None:
        self._open = False
        self._socket.close()


__all__ = ["BadAnswer", "Connection"]
