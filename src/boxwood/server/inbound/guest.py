"""HTTP/1.1 as it is spoken to what listens in a VM: one request on a connection, whatever comes back is not trusted.

Nothing is written that was not parsed before, so that server and guest cannot read a request in two ways, and no
connection is used twice, so that nothing of one answer gets into another.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools

from boxwood.server.inbound.headers import Headers

HEAD_BYTES = 64 << 10
PIECE = 64 << 10
_BODYLESS = frozenset({204, 205, 304})
UPGRADED = 101


class BadAnswer(Exception):
    """The guest's answer makes no sense, or breaks off."""


def request_head(method: str, target: bytes, headers: Headers, framing: Headers) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (method.encode("ascii"), target)]
    lines += [b"%b: %b" % pair for pair in (*headers, *framing)]
    return b"\r\n".join((*lines, b"", b""))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


class Answer:
    """`status` and `headers` are there after `head`; `rest`: what came after the head of one that `upgraded`."""

    def __init__(self, reader: asyncio.StreamReader, method: str) -> None:
        self._reader = reader
        self._method = method
        self._parser: Any = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: Headers = []
        self.upgraded = False
        self.rest = b""
        self._head_bytes = 0
        self._headed = self._complete = self._interim = False
        self._pieces: list[bytes] = []

    async def head(self) -> None:
        """BadAnswer, OSError."""
        while not self._headed:
            await self._hear()
        if self.status == UPGRADED and not self.upgraded:
            raise BadAnswer("it changes to no protocol")
        if self._method == "HEAD" or self.status in _BODYLESS:
            self._complete = True
            self._pieces.clear()

    async def piece(self) -> bytes:
        """What comes next of the body; nothing: that was all. BadAnswer, OSError."""
        while not self._pieces and not self._complete:
            await self._hear()
        data, self._pieces = b"".join(self._pieces), []
        return data

    async def _hear(self) -> None:
        data = await self._reader.read(PIECE)
        if not data:
            self._end()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self.status != UPGRADED:
                raise BadAnswer("it changes to another protocol unasked") from None
            self.upgraded = self._complete = True
            self.rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            if not self._complete:
                raise BadAnswer(f"it is no HTTP: {type(error).__name__}") from None

    def _end(self) -> None:
        if not self._headed:
            raise BadAnswer("the connection was closed before an answer came")
        names = {name for name, _ in self.headers}
        if not self._complete and names & {b"content-length", b"transfer-encoding"}:
            raise BadAnswer("the connection was closed in the midst of the answer")
        self._complete = True

    # --- what the parser says

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._complete:
            return
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > HEAD_BYTES:
            raise ValueError("the head is too long")
        if not self._headed:  # else a trailer
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        self.status = self._parser.get_status_code()
        self._interim = 100 <= self.status < 200 and self.status != UPGRADED
        if not self._interim and not 100 <= self.status <= 999:
            raise ValueError("no status")
        self._headed = not self._interim

    def on_body(self, data: bytes) -> None:
        if not self._complete:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
            self.headers.clear()
        else:
            self._complete = True
