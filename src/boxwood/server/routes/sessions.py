"""Sessions: create, list, get, delete. (Found or created by index they are when a run names one.)"""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from boxwood.server.exchange import Exchange, Operation
from boxwood.server.schema import session as wire


async def create_session(exchange: Exchange) -> Response:
    body = await exchange.body(wire.CreateSessionBody)
    vm, kind = exchange.params["id"], body.kind or "shell"
    made = await exchange.core.sessions.create(exchange.caller, vm, body.env, body.cwd, kind)
    return exchange.answer(wire.session(made))


async def list_sessions(exchange: Exchange) -> Response:
    query = exchange.query(wire.ListSessionsQuery)
    vm = exchange.params["id"]
    page = await exchange.core.sessions.list(exchange.caller, vm, query.state, query.cursor, query.limit)
    sessions = [wire.session(one) for one in page.items]
    return exchange.answer(wire.ListSessionsAnswer(sessions=sessions, next_cursor=page.next_cursor))


async def get_session(exchange: Exchange) -> Response:
    found = await exchange.core.sessions.get(exchange.caller, exchange.params["id"], exchange.params["sid"])
    return exchange.answer(wire.session(found))


async def delete_session(exchange: Exchange) -> Response:
    await exchange.core.sessions.delete(exchange.caller, exchange.params["id"], exchange.params["sid"])
    return exchange.answer(wire.DeleteSessionAnswer(deleted=True))


_ERRORS: dict[str, Any] = {"errors": ("bad_request", "not_found", "invalid_state")}
OPERATIONS = (
    Operation(
        "createSession", "POST", "/v1/vms/{id}/sessions", create_session, "Make a session, which keeps its state.",
        answers={200: wire.Session}, body=wire.CreateSessionBody,
        errors=("bad_request", "not_found", "conflict", "invalid_state", "payload_too_large"),
    ),
    Operation(
        "listSessions", "GET", "/v1/vms/{id}/sessions", list_sessions, "List a VM's sessions, by index.",
        answers={200: wire.ListSessionsAnswer}, query=wire.ListSessionsQuery, **_ERRORS,
    ),
    Operation(
        "getSession", "GET", "/v1/vms/{id}/sessions/{sid}", get_session, "One session.",
        answers={200: wire.Session}, **_ERRORS,
    ),
    Operation(
        "deleteSession", "DELETE", "/v1/vms/{id}/sessions/{sid}", delete_session,
        "End a session, its runs and all that they started.",
        answers={200: wire.DeleteSessionAnswer}, **_ERRORS,
    ),
)  # fmt: skip
