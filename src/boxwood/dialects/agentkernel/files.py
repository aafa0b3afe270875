"""Files of a sandbox: read, written one at a time or several, removed."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import secrets

from starlette.responses import Response

from boxwood.core.errors import BadRequest, NotFound, PayloadTooLarge
from boxwood.core.model import Chunk, FileContent
from boxwood.dialects.agentkernel import commands, words
from boxwood.dialects.agentkernel.envelope import Lenient, body, done
from boxwood.dialects.agentkernel.sandboxes import NotRunning, running
from boxwood.server.exchange import Exchange

READ_LIMIT = 64 << 20  # of a file in an answer, which holds all of it at once
MOST_FILES = 1000


class WriteBody(Lenient, frozen=True, kw_only=True):
    """`encoding`: base64; anything else is text."""

    content: str
    encoding: str | None = None


class WriteManyBody(Lenient, frozen=True, kw_only=True):
    files: dict[str, str]


async def read(exchange: Exchange) -> Response:
    """Whatever cannot be read is not found, be it a directory or the file of a stopped sandbox."""
    path = _path(exchange)
    try:
        vm = await running(exchange)
        content = await exchange.core.files.read(exchange.caller, vm.vm_id, path)
    except (BadRequest, NotRunning) as error:
        raise NotFound("file", error.message) from None
    data = await asyncio.to_thread(_bytes, content) if content.fd is not None else content.data or b""
    try:
        text, encoding = data.decode(), "utf8"
    except UnicodeDecodeError:
        text, encoding = base64.b64encode(data).decode(), "base64"
    return done({"content": text, "encoding": encoding, "size": len(data)})


def _bytes(content: FileContent) -> bytes:
    assert content.fd is not None
    with open(content.fd, "rb", buffering=0) as file:
        if content.size > READ_LIMIT:
            raise PayloadTooLarge(
                f"the file has {content.size} bytes, at most {READ_LIMIT} are read at once", READ_LIMIT, content.size
            )
        size = min(content.size, os.fstat(file.fileno()).st_size)
        pieces, at = [], 0
        while at < size and (piece := os.pread(file.fileno(), size - at, at)):
            pieces.append(piece)
            at += len(piece)
        return b"".join(pieces)


async def write(exchange: Exchange) -> Response:
    wanted = await body(exchange, WriteBody)
    path = _path(exchange)
    data = _decoded(wanted)
    vm = await running(exchange)
    await _write(exchange, vm.vm_id, path, data)
    return done(f"Wrote {len(data)} bytes to {path}")


def _decoded(wanted: WriteBody) -> bytes:
    if wanted.encoding != "base64":
        return wanted.content.encode()
    try:
        return base64.b64decode(wanted.content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"Invalid base64: {error}") from None


async def write_many(exchange: Exchange) -> Response:
    """All paths are looked at before anything is written. Should one fail, those before it are there."""
    wanted = await body(exchange, WriteManyBody)
    if not wanted.files or len(wanted.files) > MOST_FILES:
        raise BadRequest(f"files: 1 to {MOST_FILES} of them")
    files = {words.file_path(path): text.encode() for path, text in wanted.files.items()}
    vm = await running(exchange)
    for path, data in files.items():
        await _write(exchange, vm.vm_id, path, data)
    return done({"written": len(files)})


async def _write(exchange: Exchange, vm_id: str, path: str, data: bytes) -> None:
    chunk = Chunk(path, len(data), secrets.token_hex(16), 0, data)
    await exchange.core.files.write(exchange.caller, vm_id, chunk)


async def delete(exchange: Exchange) -> Response:
    """A file that is not there is removed already."""
    path = _path(exchange)
    vm = await running(exchange)
    removal = commands.request(["rm", "-f", "--", path], tag=commands.FILE)
    await commands.attended(exchange, commands.run_to_end(exchange, vm.vm_id, removal))
    return done(f"Deleted {path}")


def _path(exchange: Exchange) -> str:
    return words.file_path("/" + exchange.params["path"])
