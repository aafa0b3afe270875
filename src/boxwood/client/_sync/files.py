# Made from ../_async/files.py by tools/unasync.py: change that one.
"""Bytes into and out of a VM, in chunks that the server takes."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from boxwood.client import calls
from boxwood.client._sync.transport import Transport
from boxwood.client.errors import BadRequest, ServerError, error_from
from boxwood.client.models import ReadAnswer, WriteAnswer, decode_bytes


def read(transport: Transport, vm_id: str, path: str) -> bytes:
    answer = transport.call(calls.sync_read(vm_id, path), ReadAnswer)
    if answer.content is not None:
        return decode_bytes(answer.content, answer.encoding)
    if answer.presigned_url is None:
        raise ServerError("bad_answer", "the server answered a read with neither content nor a url")
    return transport.fetch(answer.presigned_url)


def write(transport: Transport, vm_id: str, path: str, data: str | bytes | IO[bytes]) -> None:
    """One request if it fits, else one per 4 MiB, in order, under one upload id."""
    with _opened(data) as file:
        begin = file.tell()
        size = file.seek(0, os.SEEK_END) - begin
        file.seek(begin)
        upload_id = calls.new_upload_id()
        for start in range(0, size or 1, calls.CHUNK):
            end = min(start + calls.CHUNK, size)
            chunk = file.read(end - start)
            if len(chunk) != end - start:
                raise BadRequest("bad_request", f"the file to be written to {path} became shorter while it was read")
            _send(transport, calls.sync_write(vm_id, path, size, upload_id, start, chunk), end == size)


def _send(transport: Transport, call: calls.Call, last: bool) -> None:
    answer = transport.call(call, WriteAnswer)
    if len(answer.results) != 1:
        raise ServerError("bad_answer", f"one file was written and the server told of {len(answer.results)}")
    result = answer.results[0]
    if result.error is not None:
        raise error_from(result.error, 200)
    if last and not (result.complete and result.written):
        raise ServerError("bad_answer", "the server has all of the file and did not write it")


@contextmanager
def _opened(data: str | bytes | IO[bytes]) -> Iterator[IO[bytes]]:
    """`data` as a file that can tell its length: one that cannot is spooled, above 16 MiB to the disk."""
    if isinstance(data, str):
        data = data.encode("utf-8")
    if isinstance(data, bytes | bytearray | memoryview):
        yield io.BytesIO(data)
        return
    given: object = data
    if not hasattr(given, "read") or isinstance(given, io.TextIOBase):
        raise BadRequest("bad_request", "a file's content is text, bytes, or a file opened in binary mode")
    if data.seekable():
        yield data
        return
    with tempfile.SpooledTemporaryFile(max_size=16 << 20) as spool:
        while block := data.read(1 << 20):
            spool.write(block)
        spool.seek(0)
        yield cast(IO[bytes], spool)
