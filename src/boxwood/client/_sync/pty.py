# Made from ../_async/pty.py by tools/unasync.py: change that one.
"""A terminal in a VM: what it shows, what is typed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType

import msgspec

from boxwood.client._sync.socket import Socket
from boxwood.client.errors import BoxwoodError, Timeout
from boxwood.client.sockets import Closed

_MESSAGE = 64 << 10  # bytes


class Pty:
    """A look at the terminal of a session. As a context manager it is closed at the end: then the terminal ends too,
    unless it is to persist. Made by `VM.shell` and `Session.pty`.

    `session_id`: whoever looks at this session's terminal again sees the same one, if it persists. `exit_code`: of its
    program, once it has ended. `end`: how, then: "exit" by itself, "killed", or "idle" for too long.
    """

    def __init__(self, socket: Socket, session_id: str, after: Callable[[], None] | None) -> None:
        self._socket = socket
        self._after = after
        self._open = True
        self.session_id = session_id
        self.exit_code: int | None = None
        self.end: str | None = None

    def read(self, timeout: float | None = None) -> bytes:
        """What it shows next, as soon as there is something; b"": it has ended.

        :param timeout: seconds; None: for ever.
        :raises Timeout: it showed nothing for so long; it can be asked again.
        :raises ConnectionFailed: the connection broke, or the VM's box; one that persists can be looked at anew.
        """
        if self.end is not None:
            return b""
        try:
            return self._socket.receive(timeout)
        except TimeoutError:
            raise Timeout("timeout", f"the terminal showed nothing for {timeout:g} s") from None
        except Closed as why:
            self._closed(why)
            return b""

    def read_until(self, text: str | bytes, timeout: float | None = None) -> bytes:
        """What it shows until it has shown `text`, which must not be cut off by what was read before.

        :param timeout: seconds in which nothing at all is shown.
        :raises Timeout: see `read`. :raises ConnectionFailed: see `read`, and if it ended without having shown that.
        """
        wanted, shown = text.encode() if isinstance(text, str) else text, bytearray()
        while wanted not in shown:
            data = self.read(timeout)
            if not data:
                raise Closed(None, f"it has ended without showing {text!r}").error()
            shown += data
        return bytes(shown)

    def write(self, data: str | bytes) -> None:
        """Types this. A return key is "\\r", Ctrl-C "\\x03", the end of input "\\x04".

        :raises ConnectionFailed: there is nobody any more to type to.
        """
        raw = data.encode() if isinstance(data, str) else data
        for at in range(0, len(raw), _MESSAGE):
            self._send(raw[at : at + _MESSAGE])

    def resize(self, columns: int, rows: int) -> None:
        """Has it another size, each from 1 to 1000; its programs are told."""
        self._send(msgspec.json.encode({"type": "resize", "cols": columns, "rows": rows}).decode())

    def kill(self) -> None:
        """Ends all that was started on it; `read` then tells of the end."""
        self._send('{"type":"kill"}')

    def _send(self, message: str | bytes) -> None:
        try:
            self._socket.send(message)
        except Closed as why:
            raise why.error() from None

    def _closed(self, why: Closed) -> None:
        if why.end is None:
            raise why.error()
        self.end, self.exit_code = why.end

    def close(self) -> None:
        """Looks away: a terminal that persists goes on, any other one ends."""
        if self._open:
            self._open = False
            self._socket.close()
            if self._after is not None:
                with suppress(BoxwoodError):  # the session is gone already, or the server
                    self._after()

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read():
            yield data

    def __enter__(self) -> Pty:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
