"""Bytes into and out of a VM: as bodies where the server takes them so, else as the contract has it, in chunks."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import IO, cast

from boxwood.client import calls, transfers
from boxwood.client._async.pause import sleep
from boxwood.client._async.transport import AsyncTransport, in_thread
from boxwood.client.content import Content, Source
from boxwood.client.errors import BadRequest, BoxwoodError, ServerError, error_from
from boxwood.client.models import Anything, ReadAnswer, WriteAnswer, decode_bytes

CHANGED = "changed"  # the code of an error: the file is not what it was when its beginning was read


async def read(transport: AsyncTransport, vm_id: str, path: str) -> bytes:
    if await transport.direct(vm_id):
        return await transport.content(transfers.read_content(vm_id, path))
    answer = await transport.call(transfers.sync_read(vm_id, path), ReadAnswer)
    if answer.content is not None:
        return decode_bytes(answer.content, answer.encoding)
    if answer.presigned_url is None:
        raise ServerError("bad_answer", "the server answered a read with neither content nor a url")
    return await transport.fetch(answer.presigned_url)


async def stream(
    transport: AsyncTransport, vm_id: str, path: str, start: int = 0, end: int | None = None
) -> AsyncGenerator[bytes, None]:
    """A file, or its bytes `start`…`end`, piece by piece. After a broken connection it goes on where it was, as long as
    the file is the same."""
    if start < 0 or (end is not None and end < start):
        raise BadRequest("bad_request", "start and end: 0 <= start <= end")
    if not await transport.direct(vm_id):
        yield (await read(transport, vm_id, path))[start:end]
        return
    at, tag, tried = start, "", 0
    while end is None or at < end:
        call = transfers.read_content(vm_id, path, at, end, tag)
        try:
            answer = await transport.open(call)
            try:
                if answer.status == 416:
                    return
                if at > start and answer.status != 206:
                    raise BoxwoodError(CHANGED, f"{path} was changed while it was read", 200)
                tag = answer.headers.get("etag", "")
                while piece := await answer.more():
                    at, tried = at + len(piece), 0
                    yield piece
                return
            finally:
                await answer.aclose()
        except BoxwoodError as error:
            known = at == start or (tag and not tag.startswith("W/"))
            delay = transport.delay(call, error, tried) if known else None
            if delay is None:
                raise
        await sleep(delay)
        tried += 1


async def write(
    transport: AsyncTransport,
    vm_id: str,
    path: str,
    data: Content,
    mode: int | None = None,
    moved: Callable[[int], object] | None = None,
) -> bool:
    """Is `mode` set as well? `moved` is told of the bytes of a file as they go."""
    if not await transport.direct(vm_id):
        await _write_in_chunks(transport, vm_id, path, data)
        return mode is None
    source = Source(data, path)
    call = transfers.write_content(vm_id, path, mode)
    await transport.deliver(call, lambda: pieces(source, moved), source.size, Anything, again=source.again)
    return True


async def pieces(source: Source, moved: Callable[[int], object] | None) -> AsyncIterator[bytes]:
    if source.is_file:
        async for piece in in_thread(source.pieces()):
            yield piece
            if moved is not None:
                moved(len(piece))
    else:
        for piece in source.pieces():
            yield piece


async def _write_in_chunks(transport: AsyncTransport, vm_id: str, path: str, data: Content) -> None:
    """One request if it fits, else one per 4 MiB, in order, under one upload id."""
    with _opened(data, path) as file:
        begin = file.tell()
        size = file.seek(0, os.SEEK_END) - begin
        file.seek(begin)
        upload_id = transfers.new_upload_id()
        for start in range(0, size or 1, transfers.CHUNK):
            end = min(start + transfers.CHUNK, size)
            chunk = file.read(end - start)
            if len(chunk) != end - start:
                raise BadRequest("bad_request", f"the file to be written to {path} became shorter while it was read")
            await _send(transport, transfers.sync_write(vm_id, path, size, upload_id, start, chunk), end == size)


async def _send(transport: AsyncTransport, call: calls.Call, last: bool) -> None:
    answer = await transport.call(call, WriteAnswer)
    if len(answer.results) != 1:
        raise ServerError("bad_answer", f"one file was written and the server told of {len(answer.results)}")
    result = answer.results[0]
    if result.error is not None:
        raise error_from(result.error, 200)
    if last and not (result.complete and result.written):
        raise ServerError("bad_answer", "the server has all of the file and did not write it")


@contextmanager
def _opened(data: Content, path: str) -> Iterator[IO[bytes]]:
    """`data` as a file that can tell its length: one that cannot is spooled, above 16 MiB to the disk."""
    source = Source(data, path)
    if isinstance(data, bytes | bytearray | memoryview | str):
        yield io.BytesIO(data.encode("utf-8") if isinstance(data, str) else data)
    elif source.again:
        yield cast(IO[bytes], data)
    else:
        with tempfile.SpooledTemporaryFile(max_size=16 << 20) as spool:
            for block in source.pieces():
                spool.write(block)
            spool.seek(0)
            yield cast(IO[bytes], spool)
