"""Files beside sync: status, lists, directories, names, modes, patterns, text, archives, changes. All of it is ours."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response

from boxwood.core.errors import BadRequest, CoreError, Internal, PayloadTooLarge, Unavailable
from boxwood.engine.fileapi import FileChange, TextQuery
from boxwood.server.events import EVENTS, BitByBit, Bits, event, failed
from boxwood.server.exchange import Exchange, Operation
from boxwood.server.schema import filework as wire
from boxwood.server.stream import TAR, PiecesResponse

BODY_LIMIT = 1 << 17
SEARCH_LIMIT, SEARCH_SECONDS = 1000, 10.0
_REFUSED = ("bad_request", "not_found", "invalid_state", "resource_busy")
log = logging.getLogger("boxwood.server")


def _vm(exchange: Exchange) -> str:
    """Whoever may not is told so before anything else of his request is looked at."""
    vm = exchange.params["id"]
    exchange.core.filework.check(exchange.caller, vm)
    return vm


async def stat(exchange: Exchange) -> Response:
    vm, query = _vm(exchange), exchange.query(wire.StatQuery)
    path = wire.given(query.path, query.path_base64)
    found = await exchange.core.filework.stat(exchange.caller, vm, path, follow=query.follow)
    return exchange.answer(wire.status(path, found))


async def list_directory(exchange: Exchange) -> Response:
    vm, query = _vm(exchange), exchange.query(wire.ListQuery)
    path = wire.given(query.path, query.path_base64)
    page = await exchange.core.filework.list(exchange.caller, vm, path, _after(query.cursor), query.limit)
    cursor = None if page.after is None else base64.urlsafe_b64encode(page.after).decode()
    return exchange.answer(wire.ListAnswer(entries=[wire.entry(one) for one in page.entries], next_cursor=cursor))


def _after(cursor: str | None) -> bytes:
    """The name that a page begins behind: whoever makes one up begins somewhere else."""
    if cursor is None:
        return b""
    try:
        return base64.b64decode(cursor, altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise BadRequest("cursor: is not one of this list", [("cursor", "is not one of this list")]) from None


async def mkdir(exchange: Exchange) -> Response:
    vm, body = _vm(exchange), await exchange.body(wire.MkdirBody)
    path = wire.given(body.path, body.path_base64)
    made = await exchange.core.filework.mkdir(exchange.caller, vm, path, parents=body.parents is True, mode=body.mode)
    return exchange.answer(wire.MkdirAnswer(created=made))


async def chmod(exchange: Exchange) -> Response:
    vm, body = _vm(exchange), await exchange.body(wire.ChmodBody)
    await exchange.core.filework.chmod(exchange.caller, vm, wire.given(body.path, body.path_base64), body.mode)
    return exchange.answer(wire.DoneAnswer())


async def move(exchange: Exchange) -> Response:
    vm, body = _vm(exchange), await exchange.body(wire.MoveBody)
    path, to = wire.given(body.path, body.path_base64), wire.given(body.to, body.to_base64, "to")
    await exchange.core.filework.move(exchange.caller, vm, path, to, replace=body.replace is True)
    return exchange.answer(wire.DoneAnswer())


async def remove(exchange: Exchange) -> Response:
    vm, body = _vm(exchange), await exchange.body(wire.RemoveBody)
    path = wire.given(body.path, body.path_base64)
    removed = await exchange.core.filework.remove(exchange.caller, vm, path, recursive=body.recursive is True)
    return exchange.answer(wire.RemoveAnswer(removed=removed))


async def glob(exchange: Exchange) -> Response:
    vm, query = _vm(exchange), exchange.query(wire.GlobQuery)
    path = wire.given(query.path, query.path_base64)
    found = await exchange.core.filework.glob(
        exchange.caller, vm, path, query.pattern, limit=query.limit, seconds=query.seconds
    )
    entries = [wire.entry(one) for one in found.entries]
    return exchange.answer(wire.GlobAnswer(entries=entries, truncated=found.truncated or None))  # type: ignore[arg-type]


async def search(exchange: Exchange) -> Response:
    vm, body = _vm(exchange), await exchange.body(wire.SearchBody)
    path = wire.given(body.path, body.path_base64)
    query = TextQuery(
        body.pattern, body.literal is True, body.ignore_case is True, tuple(body.include or ()),
        tuple(body.exclude or ()), body.engine,
    )  # fmt: skip
    found = await exchange.core.filework.search(
        exchange.caller, vm, path, query, limit=body.limit or SEARCH_LIMIT, seconds=body.seconds or SEARCH_SECONDS
    )
    answer = wire.SearchAnswer(
        matches=[wire.match(one) for one in found.matches],
        truncated=found.truncated or None,  # type: ignore[arg-type]
        engine=found.engine,  # type: ignore[arg-type]
    )
    return exchange.answer(answer)


async def pack(exchange: Exchange) -> Response:
    vm, query = _vm(exchange), exchange.query(wire.PathQuery)
    path = wire.given(query.path, query.path_base64)
    return PiecesResponse(await exchange.core.filework.pack(exchange.caller, vm, path), TAR, exchange.app.stopping)


async def unpack(exchange: Exchange) -> Response:
    """Raw bytes, whatever Content-Type says."""
    vm, query = _vm(exchange), exchange.query(wire.UnpackQuery)
    path = wire.given(query.path, query.path_base64)
    length, most = exchange.content_length, exchange.core.config.file_bytes
    if length is not None and length > most:
        raise PayloadTooLarge(f"the archive has {length} bytes, at most {most} are taken at once", most, length)
    done = await exchange.core.filework.unpack(exchange.caller, vm, path, exchange.chunks(), owners=query.owners)
    return exchange.answer(wire.UnpackAnswer(entries=done.entries, bytes=done.bytes, skipped=done.skipped))


async def watch(exchange: Exchange) -> Response:
    vm, query = _vm(exchange), exchange.query(wire.WatchQuery)
    path = wire.given(query.path, query.path_base64)
    changes = await exchange.core.filework.watch(
        exchange.caller, vm, path, recursive=query.recursive, most=query.directories
    )
    farewell = failed(exchange, Unavailable("the server is stopping; watch again, and look for what has changed"))
    return BitByBit(_events(exchange, changes), exchange.app.stopping, farewell=farewell)


async def _events(exchange: Exchange, changes: AsyncGenerator[FileChange, None]) -> Bits:
    async with aclosing(changes):
        try:
            async for found in changes:
                yield _event(found)
        except CoreError as error:
            yield failed(exchange, error)
        except Exception as error:
            log.error("%s the changes of files", exchange.request_id, exc_info=error)
            yield failed(exchange, Internal("something went wrong in the server; its log says what"))


def _event(found: FileChange) -> bytes:
    if found.kind in ("watching", "overflow", "incomplete", "gone"):
        return event(found.kind, wire.WatchingEvent(watched=found.watched, complete=found.complete))
    return event(found.kind, wire.change(found))


OPERATIONS = (
    Operation(
        "statFile", "GET", "/v1/vms/{id}/files/stat", stat, "What lies at a path.",
        answers={200: wire.Status}, query=wire.StatQuery, ours=True, errors=_REFUSED,
    ),
    Operation(
        "listFiles", "GET", "/v1/vms/{id}/files/list", list_directory,
        "The entries of a directory, in the order of their names' bytes, page by page.",
        answers={200: wire.ListAnswer}, query=wire.ListQuery, ours=True, errors=_REFUSED,
    ),
    Operation(
        "makeDirectory", "POST", "/v1/vms/{id}/files/mkdir", mkdir, "Make a directory.",
        answers={200: wire.MkdirAnswer}, body=wire.MkdirBody, body_limit=BODY_LIMIT, ours=True,
        errors=(*_REFUSED, "conflict"),
    ),
    Operation(
        "chmodFile", "POST", "/v1/vms/{id}/files/chmod", chmod,
        "Change the permission bits of a file; links are followed.",
        answers={200: wire.DoneAnswer}, body=wire.ChmodBody, body_limit=BODY_LIMIT, ours=True, errors=_REFUSED,
    ),
    Operation(
        "moveFile", "POST", "/v1/vms/{id}/files/move", move, "Give a file or a directory another path.",
        answers={200: wire.DoneAnswer}, body=wire.MoveBody, body_limit=BODY_LIMIT, ours=True,
        errors=(*_REFUSED, "conflict"),
    ),
    Operation(
        "removeFile", "POST", "/v1/vms/{id}/files/remove", remove, "Delete a file, or a directory.",
        answers={200: wire.RemoveAnswer}, body=wire.RemoveBody, body_limit=BODY_LIMIT, ours=True,
        errors=(*_REFUSED, "conflict"),
    ),
    Operation(
        "globFiles", "GET", "/v1/vms/{id}/files/glob", glob, "What below a directory has a path of this pattern.",
        answers={200: wire.GlobAnswer}, query=wire.GlobQuery, ours=True, errors=_REFUSED,
    ),
    Operation(
        "searchFiles", "POST", "/v1/vms/{id}/files/search", search,
        "Lines of text below a directory, or in one file, that match.",
        answers={200: wire.SearchAnswer}, body=wire.SearchBody, body_limit=BODY_LIMIT, ours=True, errors=_REFUSED,
    ),
    Operation(
        "watchFiles", "GET", "/v1/vms/{id}/files/watch", watch,
        "Changes below a directory as they happen: server-sent events.",
        answers={200: EVENTS}, query=wire.WatchQuery, ours=True, errors=_REFUSED,
    ),
    Operation(
        "downloadDirectory", "GET", "/v1/vms/{id}/files/tar", pack, "A directory as a tar archive.",
        answers={200: TAR}, query=wire.PathQuery, ours=True, errors=_REFUSED,
    ),
    Operation(
        "uploadDirectory", "PUT", "/v1/vms/{id}/files/tar", unpack,
        "Unpack a tar archive into a directory, as it comes.",
        answers={200: wire.UnpackAnswer}, query=wire.UnpackQuery, ours=True,
        errors=(*_REFUSED, "conflict", "payload_too_large"),
    ),
)  # fmt: skip
