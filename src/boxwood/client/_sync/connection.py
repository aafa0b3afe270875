"""One kept connection to a plain http server, blocking. Written by hand: the counterpart of ../_async/connection.py."""

from __future__ import annotations

import select
import socket

from boxwood.client.http1 import BadAnswer, Origin, Reply

BLOCK = 1 << 16  # for more the allocator would fetch fresh pages of the kernel each time


class Connection:
    """`usable`: may it carry another request? One at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._open = True

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
                data = self._socket.recv(BLOCK)
                if data:
                    reply.feed(data)
                else:
                    reply.end()
        except BaseException:
            self.close()
            raise
        if not reply.keep:
            self.close()
        return reply

    def close(self) -> None:
        self._open = False
        self._socket.close()


__all__ = ["BadAnswer", "Connection"]
