"""Files on their way out: from an open descriptor to the client, never as a whole in memory."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from collections.abc import AsyncGenerator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from boxwood.server.events import gone
from boxwood.server.exchange import JSON
from boxwood.server.sendfile import EXTENSION, ClientGone, SendFile, Shrunk

log = logging.getLogger("boxwood.server")

OCTETS = "application/octet-stream"
TAR = "application/x-tar"
PLAIN = {"content-disposition": "attachment", "content-security-policy": "sandbox"}  # nothing that a browser shows
PIECE = 3 * 64 * 1024  # whole groups of base64


class FileResponse(Response):
    """`size` bytes of a descriptor, from `start` on, which is closed whatever happens; between `before` and `after` as
    base64 if `inline`, else as they are.

    A file that has become shorter meanwhile breaks the connection: nobody takes half of it for all.
    """

    def __init__(
        self,
        fd: int,
        size: int,
        *,
        inline: tuple[bytes, bytes] | None = None,
        start: int = 0,
        status: int = 200,
        more_headers: Mapping[str, str] | None = None,
    ) -> None:
        self._fd = fd
        self._start = start
        self._end = start + size
        self._before, self._after = inline or (b"", b"")
        self._encoded = inline is not None
        body = 4 * ((size + 2) // 3) if self._encoded else size
        headers = {"content-length": str(len(self._before) + body + len(self._after)), **(more_headers or {})}
        if not self._encoded:
            headers |= PLAIN
        super().__init__(None, status, headers, JSON if self._encoded else OCTETS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                await self._send_body(scope, send)
            await send({"type": "http.response.body", "body": self._after})
        except ClientGone:
            pass
        except (OSError, Shrunk) as error:
            log.warning("a file could not be read to its end: %s", error)
        finally:
            os.close(self._fd)

    async def _send_body(self, scope: Scope, send: Send) -> None:
        if self._before:
            await send({"type": "http.response.body", "body": self._before, "more_body": True})
        direct: SendFile | None = None if self._encoded else scope.get("extensions", {}).get(EXTENSION)
        at = self._start
        while at < self._end:
            if direct is not None and (sent := await direct(self._fd, at, self._end - at)):
                at += sent
                continue
            wanted = min(PIECE, self._end - at)
            piece = await asyncio.to_thread(_read, self._fd, wanted, at)
            at += wanted
            body = base64.b64encode(piece) if self._encoded else piece
            await send({"type": "http.response.body", "body": body, "more_body": True})


class PiecesResponse(Response):
    """What comes out of a generator, of a length that nobody knows; it is closed whatever happens. One that fails, or
    has not come to its end when the server stops, breaks the connection: nobody takes half of it for the whole."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        media_type: str,
        stopping: asyncio.Event,
        *,
        filename: str | None = None,
    ) -> None:
        self._pieces = pieces
        self._stopping = stopping
        shown = PLAIN if filename is None else {**PLAIN, "content-disposition": f'attachment; filename="{filename}"'}
        super().__init__(None, 200, shown, media_type)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            first = await anext(self._pieces, b"")  # one that was never begun would not hear of its end
        except Exception as failure:
            log.warning("an answer could not be begun: %s", failure)
            return
        sending = asyncio.create_task(self._send(scope, send, first))
        ends = [asyncio.create_task(gone(receive)), asyncio.create_task(self._stopping.wait())]
        try:
            await asyncio.wait([sending, *ends], return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                sending.cancel()  # it may wait for room that nobody makes any more
            await asyncio.gather(sending, return_exceptions=True)
            if not sending.cancelled() and (error := sending.exception()) is not None:
                log.warning("an answer could not be sent to its end: %s", error)
        finally:
            for task in (sending, *ends):
                task.cancel()
            await asyncio.gather(sending, *ends, return_exceptions=True)
            await self._pieces.aclose()

    async def _send(self, scope: Scope, send: Send, first: bytes) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            await send({"type": "http.response.body", "body": first, "more_body": True})
            async for piece in self._pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _read(fd: int, wanted: int, at: int) -> bytes:
    """All of `wanted` bytes, which may take several reads."""
    pieces = []
    while wanted:
        piece = os.pread(fd, wanted, at)
        if not piece:
            raise Shrunk("it has become shorter")
        pieces.append(piece)
        wanted -= len(piece)
        at += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
