"""A channel of a connection: a command, a terminal, or SFTP."""

from __future__ import annotations

import asyncio
import functools

import asyncssh

from boxwood.core.core import Core
from boxwood.server.ssh import process, sftp

MOST_WAITING = 4096  # pieces of input, among which signals may be


class Channel(asyncssh.SSHServerProcess[bytes]):
    """asyncssh has a way of its own for SFTP, in which whatever a client asks is answered, though it reads nothing of
    it: until the server's memory is full. So it is served as all else is."""

    def __init__(self, core: Core) -> None:
        super().__init__(functools.partial(process.handle, core), None, 0, False)
        self._core = core
        self._serving: asyncio.Task[None] | None = None

    def exception_received(self, exc: Exception) -> None:
        """Signals and sizes of terminals wait with the input, but in no window: so a few of them alone. They are for
        programs."""
        if self.channel.get_subsystem() != sftp.NAME and len(self._recv_buf[None]) < MOST_WAITING:
            super().exception_received(exc)

    def subsystem_requested(self, subsystem: str) -> bool:
        return True  # one that there is not is told what there is

    def session_started(self) -> None:
        if self.channel.get_subsystem() != sftp.NAME:
            super().session_started()
            return
        reader, writer = asyncssh.SSHReader[bytes](self, self.channel), asyncssh.SSHWriter[bytes](self, self.channel)
        self._serving = asyncio.ensure_future(sftp.handle(self._core, self, reader, writer))
