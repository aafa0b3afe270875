"""Files of a session: put in and taken out, in the present form of these routes and in the older ones.

A file that is put in is a step of the session. Small ones are kept with it, so that it can be done again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from posixpath import basename
from urllib.parse import quote

from msgspec import field
from starlette.responses import Response

from boxwood.core.errors import BadRequest, NotFound, PayloadTooLarge
from boxwood.dialects.arl import steps as arl_steps
from boxwood.dialects.arl_gateway import perform, snapshots, words
from boxwood.dialects.arl_gateway.envelope import Lenient, Told, body, header, shown, told
from boxwood.dialects.arl_gateway.gateway import Gateway, gateway
from boxwood.dialects.arl_gateway.session import Session
from boxwood.server.exchange import Exchange
from boxwood.server.stream import FileResponse

AT_ONCE_BYTES = 1 << 20  # in memory; a larger one goes through a file of the server's
KEPT_BYTES = 256 << 10  # of a file that is kept with its step
PATH_BYTES = 4096
_PLAIN = re.compile(r"[A-Za-z0-9 ._()+,=@~-]*")


class UploadAnswer(Told, frozen=True, kw_only=True):
    path: str
    written: int = field(name="bytesWritten")
    sha256: str


class DownloadBody(Lenient, frozen=True, kw_only=True):
    path: str | None = None


class WriteBody(Lenient, frozen=True, kw_only=True):
    """Of clients before 0.15. `encoding`: base64, or text."""

    path: str | None = None
    content: str = ""
    encoding: str | None = None


async def upload(exchange: Exchange) -> Response:
    """The body as it is; its path is in X-ARL-Path. In place as a whole, or not at all."""
    raw = header(exchange, b"x-arl-path") or b""
    try:
        given = raw.decode()
    except UnicodeDecodeError:
        raise BadRequest("X-ARL-Path is not UTF-8") from None
    if not given:
        raise BadRequest("X-ARL-Path header is required")
    return await _put(exchange, given)


async def put(exchange: Exchange) -> Response:
    """As `upload`, the path in the URL."""
    return await _put(exchange, exchange.params["path"])


async def _put(exchange: Exchange, given: str) -> Response:
    path = _path(given)
    digest = (header(exchange, b"x-arl-sha256") or b"").decode("latin-1")
    expected = words.sha256(digest) if digest else None
    there = await gateway(exchange)
    session = await there.active(exchange)
    size = exchange.content_length
    if size is None or size <= AT_ONCE_BYTES:
        data = await exchange.raw_body()
        return await _write(there, session, path, data, expected)
    most = there.core.config.file_bytes
    if size > most:
        raise PayloadTooLarge(f"the file has {size} bytes; at most {most} are taken", most, size)
    async with there.used(session):
        vm_id = await _before(there, session)
        at = datetime.now(UTC)
        upload_id = await there.core.files.stage(session.caller, vm_id, path, size)
        reading = _Reading(exchange)
        await there.core.files.put_staged(upload_id, reading.chunks())
        sha256 = reading.hash.hexdigest()
        _check_digest(expected, sha256)
        await there.core.files.commit(session.caller, vm_id, path, size, upload_id, sha256)
        return await _recorded(there, session, at, path, size, sha256, None)


async def write(exchange: Exchange) -> Response:
    """The older form: in JSON."""
    wanted = await body(exchange, WriteBody)
    if not wanted.path:
        raise BadRequest("path is required")
    path = _path(wanted.path)
    if wanted.encoding not in (None, "", "text", "utf-8", "base64"):
        raise BadRequest("encoding: text or base64")
    try:
        base64ed = wanted.encoding == "base64"
        data = base64.b64decode(wanted.content, validate=True) if base64ed else wanted.content.encode()
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"invalid content: {error}") from None
    there = await gateway(exchange)
    session = await there.active(exchange)
    return await _write(there, session, path, data, None)


async def _write(there: Gateway, session: Session, path: str, data: bytes, expected: str | None) -> Response:
    sha256 = hashlib.sha256(data).hexdigest()
    _check_digest(expected, sha256)
    async with there.used(session):
        vm_id = await _before(there, session)
        at = datetime.now(UTC)
        await arl_steps.write(there.core, session.caller, vm_id, path, data)
        return await _recorded(there, session, at, path, len(data), sha256, data if len(data) <= KEPT_BYTES else None)


async def _before(there: Gateway, session: Session) -> str:
    """The VM to write into, as the last step left it."""
    async with session.lock:
        await snapshots.mark(there, session)
        return session.facts.vm


async def _recorded(
    there: Gateway, session: Session, at: datetime, path: str, size: int, sha256: str, data: bytes | None
) -> Response:
    await perform.record(
        there,
        session,
        session.generation,
        name=perform.UPLOAD,
        input={"path": path, "sha256": sha256, "size": size},
        timestamp=shown(at),
        duration_ms=int((datetime.now(UTC) - at).total_seconds() * 1000),
        content=None if data is None else base64.b64encode(data).decode(),
        repeatable=data is not None,
    )
    return told(UploadAnswer(path=path, written=size, sha256=sha256))


def _check_digest(expected: str | None, sha256: str) -> None:
    if expected not in (None, sha256):
        raise BadRequest(f"sha256 mismatch: the bytes that came have {sha256}")


class _Reading:
    """The body, and its digest once it has been read."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.hash = hashlib.sha256()

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._exchange.chunks():
            self.hash.update(chunk)
            yield chunk


async def download(exchange: Exchange) -> Response:
    wanted = await body(exchange, DownloadBody)
    if not wanted.path:
        raise BadRequest("path is required")
    return await _get(exchange, wanted.path)


async def get(exchange: Exchange) -> Response:
    """The older form: the path in the URL."""
    return await _get(exchange, exchange.params["path"])


async def _get(exchange: Exchange, given: str) -> Response:
    """Refused before the first byte, or not at all."""
    path = _path(given)
    there = await gateway(exchange)
    session = await there.active(exchange)
    async with there.used(session):
        try:
            content = await there.core.files.read(session.caller, session.facts.vm, path)
        except NotFound as error:
            if error.resource == "vm":
                raise
            raise NotFound("file", f"file not found: {path}") from None
    name = basename(path)
    disposition = f"attachment; filename*=UTF-8''{quote(name)}"
    if _PLAIN.fullmatch(name):
        disposition = f'attachment; filename="{name}"'
    response: Response
    if content.fd is not None:
        response = FileResponse(content.fd, content.size)
    else:
        response = Response(content.data or b"", media_type="application/octet-stream")
    response.headers["content-disposition"] = disposition
    response.headers["x-arl-size-bytes"] = str(content.size)
    return response


def _path(given: str) -> str:
    """Relative ones are below /workspace. The VM alone knows what it leads to."""
    if len(given.encode(errors="surrogatepass")) > PATH_BYTES:
        raise BadRequest(f"path: at most {PATH_BYTES} bytes")
    return arl_steps.absolute(given, words.WORKSPACE)
