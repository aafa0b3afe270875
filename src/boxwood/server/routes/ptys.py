"""Terminals of sessions: tickets, the WebSocket itself, and a new size.

What the terminal shows goes out as binary messages, what is typed comes in as such; a text message is an instruction:
`{"type":"resize","cols":…,"rows":…}`, `{"type":"kill"}` or `{"type":"ping"}`. The server sends no texts: published
clients show them. How it ended stands in the reason of its closing: `exit N`, `killed N`, `idle N`, or a text.
"""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

import msgspec
from starlette.responses import Response
from starlette.types import Message

from boxwood.core.errors import BadRequest, Forbidden, Unauthorized
from boxwood.core.model import Caller
from boxwood.core.ptys import TICKET_SECONDS
from boxwood.server.exchange import Exchange, Operation
from boxwood.server.schema import session as wire
from boxwood.server.terminal import TEXT_BYTES, Look

_PORTS = {"http": 80, "https": 443}


class _Instruction(msgspec.Struct, frozen=True):
    """Members that are not known are left alone, as are types: later clients may have more."""

    type: str = ""
    cols: int = 0
    rows: int = 0


async def mint_ticket(exchange: Exchange) -> Response:
    await exchange.body(wire.PtyTicketBody)
    ticket = exchange.core.ptys.ticket(exchange.caller, exchange.params["id"], exchange.params["sid"])
    return exchange.answer(wire.PtyTicketAnswer(ticket=ticket, expires_in=TICKET_SECONDS))


def caller_of_ticket(exchange: Exchange) -> Caller:
    """Who asks for a terminal without an Authorization header. Unauthorized, Forbidden (a page of another site)."""
    ticket = exchange.query(wire.AttachPtyQuery).ticket
    if ticket is None:
        raise Unauthorized("no API key and no ticket: send Authorization: Bearer KEY, or ask for a ticket first")
    origin = exchange.headers.get(b"origin")
    if origin is not None and not _is_ours(origin.decode("latin-1"), exchange.host):
        raise Forbidden("a page of another site may not open a terminal with a ticket")
    return exchange.core.ptys.redeem(ticket, exchange.params["id"], exchange.params["sid"])


def _is_ours(origin: str, host: str) -> bool:
    """Is the page from this very server, as the browser names it? Behind a proxy the scheme may differ."""
    try:
        there, here = urlsplit(origin), urlsplit(f"//{host}")
        if there.scheme not in _PORTS or not there.hostname:
            return False
        port = there.port or _PORTS[there.scheme]
        return there.hostname == here.hostname and port == (here.port or _PORTS[there.scheme])
    except ValueError:
        return False


async def attach_pty(exchange: Exchange) -> Response:
    if not exchange.upgrades:
        await exchange.core.sessions.get(exchange.caller, exchange.params["id"], exchange.params["sid"])
        raise BadRequest("this is a WebSocket: ask for it with Upgrade: websocket, or with the SDK's vm.shell()")
    query = exchange.query(wire.AttachPtyQuery)
    pty = await exchange.core.ptys.attach(
        exchange.caller, exchange.params["id"], exchange.params["sid"], columns=query.cols, rows=query.rows,
        argv=query.program(), persist=query.persists(), idle_seconds=query.cancel_ttl_secs, term=query.term,
    )  # fmt: skip
    return _Look(exchange, pty)


async def patch_session(exchange: Exchange) -> Response:
    body = await exchange.body(wire.PatchSessionBody)
    shape = body.shape()
    session_id = exchange.params["sid"]
    await exchange.core.ptys.change(exchange.caller, exchange.params["id"], session_id, shape, body.timeout_secs)
    return exchange.answer(wire.PatchSessionAnswer(ok=True, session_id=session_id))


class _Look(Look):
    def shown(self, data: bytes) -> Message:
        return {"type": "websocket.send", "bytes": data}

    async def heard(self, message: Message) -> None:
        if (data := message.get("bytes")) is not None:
            await self._pty.write(data)
            return
        text = message["text"]
        if len(text) > TEXT_BYTES:
            raise ValueError(f"an instruction has at most {TEXT_BYTES} characters")
        said = msgspec.json.decode(text, type=_Instruction)
        if said.type == "resize":
            await self._pty.resize(said.cols, said.rows)
        elif said.type == "kill":
            await self._pty.kill()


_ERRORS = ("bad_request", "not_found", "invalid_state")
_AT = "/v1/vms/{id}/sessions/{sid}"
_TICKET: Literal["ticket"] = "ticket"
OPERATIONS = (
    Operation(
        "patchSession", "PATCH", _AT, patch_session, "Resize the session's terminal, or set when it is idle too long.",
        answers={200: wire.PatchSessionAnswer}, body=wire.PatchSessionBody, errors=(*_ERRORS, "payload_too_large"),
    ),
    Operation(
        "attachSessionPty", "GET", f"{_AT}/pty", attach_pty, "Look at the session's terminal: a WebSocket.",
        answers={101: None}, query=wire.AttachPtyQuery, access=_TICKET, websocket=True,
        errors=(*_ERRORS, "resource_busy", "quota_exceeded", "rate_limited"),
    ),
    Operation(
        "mintSessionPtyTicket", "POST", f"{_AT}/pty-ticket", mint_ticket,
        "A ticket that opens the session's terminal for a minute, where no header can be sent.",
        answers={200: wire.PtyTicketAnswer}, body=wire.PtyTicketBody, errors=(*_ERRORS, "payload_too_large"),
    ),
)  # fmt: skip
