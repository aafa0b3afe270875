"""Files on their way out: from an open descriptor to the client, never as a whole in memory."""

from __future__ import annotations

import asyncio
import base64
import logging
import os

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from boxwood.server.exchange import JSON

log = logging.getLogger("boxwood.server")

PIECE = 3 * 64 * 1024  # whole groups of base64


class FileResponse(Response):
    """`size` bytes of a descriptor, which is closed whatever happens; between `before` and `after` as base64 if
    `inline`, else as they are.

    A file that has become shorter meanwhile breaks the connection: nobody takes half of it for all.
    """

    def __init__(self, fd: int, size: int, *, inline: tuple[bytes, bytes] | None = None, filename: str = "") -> None:
        self._fd = fd
        self._size = size
        self._before, self._after = inline or (b"", b"")
        self._encoded = inline is not None
        body = 4 * ((size + 2) // 3) if self._encoded else size
        headers = {"content-length": str(len(self._before) + body + len(self._after))}
        if not self._encoded:
            headers |= {"content-disposition": "attachment", "content-security-policy": "sandbox"}
        super().__init__(None, 200, headers, JSON if self._encoded else "application/octet-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                await self._send_body(send)
            await send({"type": "http.response.body", "body": self._after})
        except (OSError, _Shrunk) as error:
            log.warning("a file could not be read to its end: %s", error)
        finally:
            os.close(self._fd)

    async def _send_body(self, send: Send) -> None:
        if self._before:
            await send({"type": "http.response.body", "body": self._before, "more_body": True})
        at = 0
        while at < self._size:
            wanted = min(PIECE, self._size - at)
            piece = await asyncio.to_thread(_read, self._fd, wanted, at)
            at += wanted
            body = base64.b64encode(piece) if self._encoded else piece
            await send({"type": "http.response.body", "body": body, "more_body": True})


class _Shrunk(Exception):
    pass


def _read(fd: int, wanted: int, at: int) -> bytes:
    """All of `wanted` bytes, which may take several reads."""
    pieces = []
    while wanted:
        piece = os.pread(fd, wanted, at)
        if not piece:
            raise _Shrunk("it has become shorter")
        pieces.append(piece)
        wanted -= len(piece)
        at += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
