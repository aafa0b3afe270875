"""The bytes of files as they are: read whole or in parts, written from a body of any length, unpacked from archives."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from starlette.responses import Response

from boxwood.core.errors import Internal, PayloadTooLarge
from boxwood.core.model import Caller
from boxwood.core.transfers import AT_ONCE_BYTES, Divert
from boxwood.server import ranges
from boxwood.server.diversion import EXTENSION
from boxwood.server.exchange import Exchange, Operation
from boxwood.server.schema import content as wire
from boxwood.server.stream import OCTETS, PLAIN, FileResponse

AT_ONCE = 64 << 10  # bytes that are read and answered in one go
_ERRORS = (
    "bad_request", "not_found", "conflict", "invalid_state", "resource_busy", "payload_too_large",
    "capacity_unavailable",
)  # fmt: skip


async def read(exchange: Exchange) -> Response:
    query = exchange.query(wire.ContentQuery)
    return await opened(exchange, exchange.caller, exchange.params["id"], query.path)


async def opened(exchange: Exchange, caller: Caller, vm: str, path: str) -> Response:
    """The answer that holds a file, or the part of it that is asked for."""
    exchange.facts.path = path
    file = await exchange.core.transfers.open(caller, vm, path)
    fd = file.fd
    try:
        response = _answer(exchange, fd)
    except BaseException:
        os.close(fd)
        raise
    if not isinstance(response, FileResponse):  # which closes it itself
        os.close(fd)
    return response


def _answer(exchange: Exchange, fd: int) -> Response:
    """Of a file whose descriptor stays the caller's, but for a `FileResponse`."""
    found = os.fstat(fd)
    tag = ranges.validator(found)
    headers = ranges.headers(found, tag)
    size = found.st_size
    if ranges.unchanged(exchange.header(b"if-none-match"), tag):
        return Response(None, 304, headers)
    try:
        part = ranges.part(exchange.header(b"range"), exchange.header(b"if-range"), tag, size)
    except ranges.Unsatisfiable:
        return Response(None, 416, {**headers, "content-range": f"bytes */{size}"})
    status = 200
    if part is not None:
        status, headers["content-range"] = 206, f"bytes {part.start}-{part.end - 1}/{size}"
    start, end = part or (0, size)
    if end - start <= AT_ONCE:
        data = os.pread(fd, end - start, start)
        if len(data) == end - start:
            return Response(data, status, headers | PLAIN, OCTETS)
        raise Internal("the file became shorter while it was read")
    return FileResponse(fd, end - start, start=start, status=status, more_headers=headers)


async def write(exchange: Exchange) -> Response:
    query = exchange.query(wire.WriteQuery)
    exchange.facts.path = query.path
    size = _announced(exchange)
    done = await exchange.core.transfers.write(
        exchange.caller, exchange.params["id"], query.path, Body(exchange), size=size,
        mode=_mode(query.mode), sha256=query.sha256,
    )  # fmt: skip
    return exchange.answer(wire.WrittenAnswer(path=done.path, size=done.size))


async def sync_stream(exchange: Exchange) -> Response:
    """As releases 1.0.0 to 1.2.7 write files, and ours whole directories."""
    query = exchange.query(wire.StreamQuery)
    exchange.facts.path = query.path
    size = _announced(exchange) if query.size is None else query.size
    vm, transfers = exchange.params["id"], exchange.core.transfers
    if query.extract is None:
        done = await transfers.write(
            exchange.caller, vm, query.path, Body(exchange), size=size, sha256=query.sha256
        )  # fmt: skip
        return exchange.answer(wire.StreamAnswer(op="write_stream", path=done.path, size=done.size, written=True))
    got, unpacked = await transfers.unpack(
        exchange.caller, vm, query.path, Body(exchange), packed=query.extract != "tar", size=size, sha256=query.sha256
    )  # fmt: skip
    return exchange.answer(
        wire.StreamAnswer(
            op="extract_stream", path=query.path, size=got, extracted=True, files=unpacked.files,
            unpacked_bytes=unpacked.bytes,
        )
    )  # fmt: skip


def _announced(exchange: Exchange) -> int | None:
    """How long the body is, as far as it says. PayloadTooLarge, before any of it has been taken; RateLimited."""
    size, most = exchange.content_length, exchange.core.config.file_bytes
    if size is not None and size > most:
        raise PayloadTooLarge(f"the body has {size} bytes, at most {most} are taken", most, size)
    exchange.hold(AT_ONCE_BYTES if size is None else min(size, AT_ONCE_BYTES))
    return size


class Body:
    """A request's, as the core takes it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.divert: Divert | None = exchange.scope.get("extensions", {}).get(EXTENSION)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._exchange.chunks()


def _mode(text: str | None) -> int | None:
    return None if text is None else int(text, 8)


OPERATIONS = (
    Operation(
        "readContent", "GET", "/v1/vms/{id}/files/content", read,
        "The bytes of a file; with Range a part of them, with If-Range only of the same state of the file.",
        answers={200: bytes, 206: bytes}, query=wire.ContentQuery, logged="sync", contract_name="sync", ours=True,
        errors=("bad_request", "not_found", "invalid_state"),
    ),
    Operation(
        "writeContent", "PUT", "/v1/vms/{id}/files/content", write,
        "Write a file from the body as it is. It appears when all has come.",
        answers={200: wire.WrittenAnswer}, query=wire.WriteQuery, logged="sync", contract_name="sync", ours=True,
        errors=_ERRORS,
    ),
    Operation(
        "syncStream", "POST", "/v1/vms/{id}/sync-stream", sync_stream,
        "Write a file from the body, or unpack a tar archive that it is into a directory.",
        answers={200: wire.StreamAnswer}, query=wire.StreamQuery, logged="sync", contract_name="sync", ours=True,
        errors=_ERRORS,
    ),
)  # fmt: skip
