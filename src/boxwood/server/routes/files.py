"""Files: read, write, manifest behind one route of the contract; and the signed URLs for what is too big for JSON."""

from __future__ import annotations

import os
from urllib.parse import quote, urlencode

from starlette.responses import Response

from boxwood.core.errors import BadRequest, CoreError, PayloadTooLarge
from boxwood.core.model import Caller, Chunk, FileContent, Written
from boxwood.dialects import arker_legacy
from boxwood.server.errors import per_file
from boxwood.server.exchange import MIB, Exchange, Operation, encode
from boxwood.server.routes.content import opened
from boxwood.server.schema import file as wire
from boxwood.server.schema.common import UNSET
from boxwood.server.stream import FileResponse

BODY_LIMIT = 24 * MIB
INLINE_LIMIT = 32 * MIB  # what is larger is fetched from a URL
URL_SECONDS = 900


async def sync(exchange: Exchange) -> Response:
    body = await exchange.union_body()
    exchange.facts.path = body.writes[0].path if isinstance(body, wire.WriteBody) else body.path
    if isinstance(body, wire.ReadBody):
        return await _read(exchange, body)
    if isinstance(body, wire.ManifestBody):
        return await _manifest(exchange, body)
    results = [await _write(exchange, entry) for entry in body.writes]
    return exchange.answer(wire.WriteAnswer(results=results))


async def _read(exchange: Exchange, body: wire.ReadBody) -> Response:
    if exchange.first_generation:
        arker_legacy.check_path(body.path)
    vm = exchange.params["id"]
    content = await exchange.core.files.read(exchange.caller, vm, body.path)
    if content.fd is None:
        return exchange.answer(_inline(content, content.data or b""))
    if content.size > INLINE_LIMIT:
        os.close(content.fd)
        return await _presigned_read(exchange, vm, content)
    try:
        before, after = encode(_inline(content, b"")).split(b'"content":""')
    except BaseException:
        os.close(content.fd)
        raise
    return FileResponse(content.fd, content.size, inline=(before + b'"content":"', b'"' + after))


def _inline(content: FileContent, data: bytes) -> wire.ReadInlineAnswer:
    return wire.ReadInlineAnswer(path=content.path, size=content.size, content=data)


async def _presigned_read(exchange: Exchange, vm: str, content: FileContent) -> Response:
    vm_id = (await exchange.core.vms.get(exchange.caller, vm)).vm_id
    org = exchange.caller.org_id
    signed = exchange.core.files.sign("download", org, vm_id, content.path, seconds=URL_SECONDS)
    query = {"path": content.path, "org": org, "expires": signed.expires, "signature": signed.signature}
    url = f"{exchange.base_url}/boxwood/files/{vm_id}?{urlencode(query)}"
    answer = wire.ReadPresignedAnswer(path=content.path, size=content.size, presigned_url=url, expires_in=URL_SECONDS)
    return exchange.answer(answer)


async def _manifest(exchange: Exchange, body: wire.ManifestBody) -> Response:
    if exchange.first_generation:
        arker_legacy.check_path(body.path)
    found = await exchange.core.files.manifest(exchange.caller, exchange.params["id"], body.path)
    return exchange.answer(wire.ManifestAnswer(root=found.root, entries=found.entries, truncated=found.truncated))


async def _write(exchange: Exchange, entry: wire.WriteEntry) -> wire.WriteResult:
    """One entry's result; its own failures are told in it, those of the whole request raised."""
    try:
        if exchange.first_generation:
            arker_legacy.check_path(entry.path)
            arker_legacy.check_size(entry.size)
        if entry.presigned:
            return await _presign(exchange, entry)
        return await (_commit(exchange, entry) if entry.content is None else _chunk(exchange, entry))
    except CoreError as error:
        shown = per_file(error)
        if shown is None or (exchange.first_generation and isinstance(error, arker_legacy.OutsideHome)):
            raise
        of_chunk = entry.content is not None
        return wire.WriteResult(
            path=entry.path,
            size=entry.size,
            received_bytes=0 if of_chunk else UNSET,
            ranges=[] if of_chunk else UNSET,
            error=wire.FileError(**shown),
        )


async def _chunk(exchange: Exchange, entry: wire.WriteEntry) -> wire.WriteResult:
    assert entry.content is not None
    if entry.upload_id is None or entry.start is None or entry.end is None:
        raise BadRequest("a chunk needs upload_id, start and end")
    if entry.end - entry.start != len(entry.content):
        raise BadRequest(
            f"end: start and end are {entry.end - entry.start} apart, content has {len(entry.content)} bytes"
        )
    chunk = Chunk(entry.path, entry.size, entry.upload_id, entry.start, entry.content, entry.sha256)
    done = await exchange.core.files.write(exchange.caller, exchange.params["id"], chunk)
    return wire.WriteResult(
        path=done.path,
        size=done.size,
        received_bytes=done.received,
        ranges=[wire.Range(start=start, end=end) for start, end in done.ranges],
        complete=done.complete,
        written=done.written,
    )


async def _presign(exchange: Exchange, entry: wire.WriteEntry) -> wire.WriteResult:
    if entry.content is not None or entry.upload_id is not None:
        raise BadRequest("presigned: asks for a URL and an upload_id; content and upload_id do not go with it")
    files = exchange.core.files
    upload_id = await files.stage(exchange.caller, exchange.params["id"], entry.path, entry.size)
    signed = files.sign("upload", upload_id, seconds=URL_SECONDS)
    query = urlencode({"expires": signed.expires, "signature": signed.signature})
    url = f"{exchange.base_url}/boxwood/uploads/{quote(upload_id, safe='')}?{query}"
    return wire.WriteResult(
        path=entry.path,
        size=entry.size,
        presigned_url=url,
        upload_id=upload_id,
        expires_in=URL_SECONDS,
        method="PUT",
    )


async def _commit(exchange: Exchange, entry: wire.WriteEntry) -> wire.WriteResult:
    if entry.upload_id is None:
        raise BadRequest("a write has content, or upload_id to commit, or presigned")
    if entry.start is not None or entry.end is not None:
        raise BadRequest("content: is needed with start and end")
    done: Written = await exchange.core.files.commit(
        exchange.caller, exchange.params["id"], entry.path, entry.size, entry.upload_id, entry.sha256
    )
    return wire.WriteResult(path=done.path, size=done.size, complete=done.complete, written=done.written)


async def upload(exchange: Exchange) -> Response:
    """Raw bytes, whatever Content-Type says (wire 5.16)."""
    query, upload_id = exchange.query(wire.UploadQuery), exchange.params["upload_id"]
    files = exchange.core.files
    files.verify("upload", upload_id, expires=query.expires, signature=query.signature)
    length = exchange.content_length
    most = exchange.core.config.file_bytes
    if length is not None and length > most:
        raise PayloadTooLarge(f"the body has {length} bytes, at most {most} are taken", most, length)
    return exchange.answer(wire.UploadAnswer(size=await files.put_staged(upload_id, exchange.chunks())))


async def download(exchange: Exchange) -> Response:
    query, vm = exchange.query(wire.DownloadQuery), exchange.params["id"]
    files = exchange.core.files
    files.verify("download", query.org, vm, query.path, expires=query.expires, signature=query.signature)
    # The signature is the permission: it was made for a caller of this organisation.
    caller = Caller(org_id=query.org, org_name="", key_id="", role="member")
    return await opened(exchange, caller, vm, query.path)


OPERATIONS = (
    Operation(
        "sync", "POST", "/v1/vms/{id}/sync", sync, "Read a file, write files, or list a directory with hashes.",
        answers={200: (wire.ReadInlineAnswer, wire.ReadPresignedAnswer, wire.ManifestAnswer, wire.WriteAnswer)},
        body=wire.SyncBody, body_limit=BODY_LIMIT, logged="sync",
        errors=(
            "bad_request", "not_found", "conflict", "invalid_state", "resource_busy", "payload_too_large",
            "unsupported_operation", "capacity_unavailable",
        ),
    ),
    Operation(
        "uploadFile", "PUT", "/boxwood/uploads/{upload_id}", upload, "Take the bytes of an upload that sync announced.",
        answers={200: wire.UploadAnswer}, query=wire.UploadQuery, access="signed", prefixes=("",), ours=True,
        errors=("bad_request", "not_found", "invalid_state", "expired", "payload_too_large", "capacity_unavailable"),
    ),
    Operation(
        "downloadFile", "GET", "/boxwood/files/{id}", download, "The bytes of a file that sync named this URL for.",
        answers={200: bytes, 206: bytes}, query=wire.DownloadQuery, access="signed", prefixes=("",), ours=True,
        errors=("bad_request", "not_found", "expired"),
    ),
)  # fmt: skip
