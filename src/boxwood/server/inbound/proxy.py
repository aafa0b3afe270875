"""Requests for ports of VMs: from the client to what listens in there and back, with as much in memory as two buffers.

WebSockets are passed on as bytes once the guest has said yes to one: what is in them is between it and the client.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from boxwood.core.errors import BadRequest, CoreError, Forbidden, Internal, NotListening, Unauthorized, Unavailable
from boxwood.core.ports import Connection
from boxwood.server import errors
from boxwood.server.exchange import JSON, encode
from boxwood.server.inbound.body import Body, Encoded, Held, TooSlow
from boxwood.server.inbound.door import Door, Exchanged, Guest, Visit
from boxwood.server.inbound.guest import LAST_CHUNK, PIECE, Answer, BadAnswer, chunk, request_head
from boxwood.server.inbound.headers import ERROR, Headers, outwards
from boxwood.server.inbound.passing import CHUNKED, Passed, Passing
from boxwood.server.websocket import first

if TYPE_CHECKING:
    from boxwood.server.app import App

log = logging.getLogger("boxwood.server")

_CLOSE = (b"connection", b"close")
_STATUS: tuple[tuple[type[CoreError], int], ...] = (
    (NotListening, 502),
    (Internal, 503),
    (Encoded, 415),
    (TooSlow, 408),
)
_WEBSOCKET: Headers = [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
_NOT_PASSED = frozenset({"CONNECT", "TRACE"})


class Inbound:
    def __init__(self, app: App) -> None:
        self._app = app
        self._door = Door(app.core)
        self._passing = Passing(app.core, self._door)

    async def serve(self, label: str, host: str, scope: Scope, receive: Receive, send: Send) -> None:
        """A request whose Host header, of which there is one, names a port of a VM."""
        visit = Visit(scope, host, label)
        answering = _Answering(send)
        try:
            await self._serve(visit, receive, answering)
        except CoreError as error:
            await self._refuse(visit, error, answering)
        except (BadAnswer, OSError) as error:
            await self._refuse(visit, _broken(error), answering)

    async def _serve(self, visit: Visit, receive: Receive, answering: _Answering) -> None:
        guest = self._admit(visit)
        if isinstance(guest, Exchanged):
            await answering.whole(_elsewhere(guest))
            return
        held = self._passing.holding(guest)
        try:
            passed = await self._passed(visit, guest, Body(visit, held, receive), held)
            connection, reader, writer = await self._enter(guest)
            try:
                writer.write(request_head(visit.method, passed.target, passed.headers, [*passed.framing, _CLOSE]))
                relaying = _relay_answer(Answer(reader, visit.method), answering, guest)
                await self._until_one_ends(connection, guest, relaying, _upload(receive, writer, passed, held))
            finally:
                writer.transport.abort()
                connection.leave()
        finally:
            held.close()

    async def _passed(self, visit: Visit, guest: Guest, body: Body, held: Held) -> Passed:
        """It may take what a rule's gate takes, and what a body does: not beyond the key, or the server. CoreError,
        ConnectionResetError."""
        if not guest.waits:
            return await self._passing.passed(visit, guest, body, held)
        start: Any = asyncio.get_running_loop().create_task
        work: asyncio.Task[Passed] = start(self._passing.passed(visit, guest, body, held))
        revoked = self._revoked(guest)
        await first(work, start(self._app.stopping.wait()), start(revoked.wait()))
        if work.cancelled():
            raise (
                Unauthorized("the API key has been revoked")
                if revoked.is_set()
                else Unavailable("the server is stopping")
            )
        return work.result()

    async def _enter(self, guest: Guest) -> tuple[Connection, asyncio.StreamReader, asyncio.StreamWriter]:
        """To what listens in there. CoreError, OSError."""
        connection = await self._app.core.ports.connect(guest.row, guest.port)
        try:
            self._door.still_admits(guest, connection)
            return connection, *await asyncio.open_connection(sock=connection.sock, limit=PIECE)
        except BaseException:
            connection.sock.close()
            connection.leave()
            raise

    def _revoked(self, guest: Guest) -> asyncio.Event:
        return asyncio.Event() if guest.caller is None else self._app.revocation(guest.caller.key_id)

    def _admit(self, visit: Visit) -> Guest | Exchanged:
        if self._app.stopping.is_set():
            raise Unavailable("the server is stopping")
        if visit.method in _NOT_PASSED:
            raise BadRequest(f"{visit.method} is not passed on to VMs")
        return self._door.admit(visit)

    async def _until_one_ends(self, connection: Connection, guest: Guest, *works: Awaitable[None]) -> None:
        """What goes wrong in the first of them is raised; all end with the key, the box or the server, which is raised
        too if the first had not come to its end."""
        lost = asyncio.Event()
        connection.lost_hook = lambda reason: lost.set()
        if connection.refused:
            lost.set()  # before anybody listened
        start: Any = asyncio.get_running_loop().create_task
        tasks = [start(work) for work in works]
        revoked = self._revoked(guest)
        await first(*tasks, start(lost.wait()), start(self._app.stopping.wait()), start(revoked.wait()))
        if not tasks[0].cancelled():
            if (error := tasks[0].exception()) is not None:
                raise error
        elif connection.refused:
            raise Forbidden("the rules of this VM have changed, and let this be no longer")
        elif lost.is_set():
            raise NotListening(guest.port, "the VM's box was put down, or died, before it had answered")
        elif revoked.is_set():
            raise Unauthorized("the API key has been revoked")
        elif self._app.stopping.is_set():
            raise Unavailable("the server is stopping", not_started=False)

    async def _refuse(self, visit: Visit, error: CoreError, answering: _Answering) -> None:
        """Nothing more is said in the midst of an answer: the connection breaks, so that half of it is not all."""
        if not answering.begun:
            await answering.whole(refusal(error, visit.method))

    # --- WebSockets

    async def tunnel(
        self, label: str, host: str, scope: Scope, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """A request for a WebSocket, on a connection that is ours alone from here on."""
        visit = Visit(scope, host, label, upgrades=True)
        try:
            await self._tunnel(visit, reader, writer)
        except (CoreError, BadAnswer) as error:
            said = error if isinstance(error, CoreError) else _broken(error)
            if not visit.answered:
                _write_whole(writer, refusal(said, visit.method))
        except OSError:
            pass
        except Exception as error:
            log.error("a WebSocket of a VM's port", exc_info=error)
        finally:
            with suppress(OSError):
                writer.close()

    async def _tunnel(self, visit: Visit, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        guest = self._admit(visit)
        if isinstance(guest, Exchanged):
            raise BadRequest("a ticket is for pages")
        held = self._passing.holding(guest)  # of nothing: it has no body
        passed = await self._passed(visit, guest, Body(visit, held, None), held)
        connection, inner_reader, inner_writer = await self._enter(guest)
        try:
            inner_writer.write(request_head(visit.method, passed.target, passed.headers, _WEBSOCKET))
            answer = Answer(inner_reader, visit.method)
            work = self._converse(visit, answer, inner_reader, inner_writer, reader, writer)
            await self._until_one_ends(connection, guest, work)
        finally:
            inner_writer.transport.abort()
            connection.leave()

    async def _converse(
        self,
        visit: Visit,
        answer: Answer,
        inner_reader: asyncio.StreamReader,
        inner_writer: asyncio.StreamWriter,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        start: Any = asyncio.get_running_loop().create_task
        heading = start(answer.head())
        await first(heading, start(_closed(writer)))
        if heading.cancelled():
            raise ConnectionResetError("the client has gone")
        heading.result()
        visit.answered = True
        if not answer.upgraded:
            await _answer_plainly(answer, writer)
            return
        writer.write(_answer_head(answer, _WEBSOCKET) + answer.rest)
        await first(start(_pump(inner_reader, writer)), start(_pump(reader, inner_writer)))


class _Answering:
    """An ASGI `send`, and whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def head(self, status: int, headers: Headers) -> None:
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, data: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def whole(self, response: Response) -> None:
        await self.head(response.status_code, response.raw_headers)
        await self.piece(bytes(response.body), more=False)


async def _upload(receive: Receive, writer: asyncio.StreamWriter, passed: Passed, held: Held) -> None:
    """The body as it comes, or the one that is there instead, which is not kept while the guest answers; ends when the
    client has gone."""
    chunked = passed.framing == CHUNKED
    open_ = passed.body is None
    if passed.body:
        with suppress(OSError):
            writer.write(passed.body)
            await writer.drain()
    passed.body = None
    held.close()
    while (message := await receive())["type"] == "http.request":
        data, more = message.get("body", b""), message.get("more_body", False)
        if not open_:
            continue
        try:
            if data:
                writer.write(chunk(data) if chunked else data)
                await writer.drain()
            if not more and chunked:
                writer.write(LAST_CHUNK)
        except OSError:  # it wants no more of it, and may say why
            open_ = False


async def _relay_answer(answer: Answer, answering: _Answering, guest: Guest) -> None:
    await answer.head()
    if answer.upgraded:
        raise BadAnswer("it changes to another protocol unasked")
    headers = outwards(answer.headers)
    if guest.set_cookie is not None:
        headers.append(guest.set_cookie)
    await answering.head(answer.status, headers)
    while data := await answer.piece():
        await answering.piece(data)
    await answering.piece(b"", more=False)


async def _answer_plainly(answer: Answer, writer: asyncio.StreamWriter) -> None:
    """The guest makes no WebSocket of it: its answer, and the end of the connection."""
    writer.write(_answer_head(answer, [_CLOSE]))
    while data := await answer.piece():
        writer.write(data)
        await writer.drain()


def _answer_head(answer: Answer, more: Headers) -> bytes:
    lines = [b"HTTP/1.1 %d %b" % (answer.status, b"Switching Protocols" if answer.upgraded else b"")]
    lines += [b"%b: %b" % pair for pair in (*outwards(answer.headers), *more)]
    return b"\r\n".join((*lines, b"", b""))


def _write_whole(writer: asyncio.StreamWriter, response: Response) -> None:
    lines = [b"HTTP/1.1 %d " % response.status_code]
    lines += [b"%b: %b" % pair for pair in (*response.raw_headers, _CLOSE)]
    with suppress(OSError):
        writer.write(b"\r\n".join((*lines, b"", bytes(response.body))))


async def _closed(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        await writer.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()


def _elsewhere(to: Exchanged) -> Response:
    headers = {"location": to.location, "cache-control": "no-store", "referrer-policy": "no-referrer"}
    response = Response(None, 303, headers)
    response.raw_headers.append(to.set_cookie)
    return response


def _broken(error: Exception) -> CoreError:
    why = str(error) if isinstance(error, BadAnswer) else "the connection to it broke"
    return NotListening(0, f"what listens on this port of the VM gave no answer: {why}")


def refusal(error: CoreError, method: str) -> Response:
    """As the API says no, but for what stands between: 502, the port; 503, the box."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), errors.status_of(error))
    body = encode(errors.body_of(error, secrets.token_hex(12), None, method))
    response = Response(body, status, errors.headers_of(error), media_type=JSON)
    response.raw_headers += [
        (ERROR, error.code.encode("ascii")), (b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"),
    ]  # fmt: skip
    if isinstance(error, TooSlow):
        response.raw_headers.append(_CLOSE)  # what it may send one day is no request
    return response
