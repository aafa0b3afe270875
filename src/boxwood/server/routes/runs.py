"""Runs: start and wait a while, list, get, cancel."""

from __future__ import annotations

import asyncio
import base64
import binascii
import shlex
import signal
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from starlette.responses import Response

from boxwood.core.errors import BadRequest
from boxwood.core.model import Run, RunFilter, RunRequest
from boxwood.server.events import EVENTS
from boxwood.server.exchange import MIB, Exchange, Operation
from boxwood.server.routes import following
from boxwood.server.schema import run as wire
from boxwood.server.schema.common import Answer
from boxwood.server.schema.python import LARGE_BYTES

A = TypeVar("A", bound=Answer)
COMMAND_LIMIT = 4 * MIB
UNBROKEN_SECONDS = 1.0  # of a wait that the end of the server does not cut short
ONLY_WITH_COMMAND = ("timeout", "queueing_timeout", "end_symbol", "env", "cwd", "user", "stdin", "stdin_open")


async def create_run(exchange: Exchange) -> Response:
    body = await exchange.body(wire.RunBody)
    if body.background is not None and body.time_to_background is not None:
        raise _refused("background", "not together with time_to_background")
    if body.policies is not None:  # deprecated: applied before the run, and kept
        update = exchange.core.policies.parse(body.policies)
        await exchange.core.policies.update(exchange.caller, exchange.params["id"], update)
    if body.signal is not None:
        return await _signal(exchange, body, body.signal)
    # session_id goes before session_idx (wire 2.7)
    index = body.session_idx if body.session_id is None else None
    streamed = exchange.query(wire.StreamQuery) if exchange.accepts(EVENTS) else None
    wait = _wait(exchange, body) if streamed is None else 0.0
    facts = exchange.facts
    facts.kind, facts.command = "shell" if body.argv is None else "program", body.command or shlex.join(body.argv or ())
    attached = streamed is not None and streamed.on_disconnect == "cancel"
    facts.run = run = await _begin(exchange, body, index, min(wait, UNBROKEN_SECONDS), attached)
    facts.vm, facts.command = run.vm_id, run.command
    if streamed is not None:
        return following.follow(exchange, run, streamed)
    facts.run = await patiently(exchange, run, wait - UNBROKEN_SECONDS)
    return await answer(exchange, facts.run)


async def _begin(exchange: Exchange, body: wire.RunBody, index: int | None, wait: float, attached: bool) -> Run:
    """What is asked for, after `wait` seconds at most."""
    if body.argv is not None:
        return await _direct(exchange, body, tuple(body.argv), wait, attached)
    if body.command is None:
        if given := [name for name in ONLY_WITH_COMMAND if getattr(body, name) is not None]:
            raise _refused("command", f"is needed with {given[0]}")
        return await exchange.core.runs.resume(exchange.caller, exchange.params["id"], body.session_id, index, wait)
    request = RunRequest(
        command=body.command,
        session_id=body.session_id,
        session_index=index,
        timeout=body.timeout,
        wait=wait,
        prompt="auto" if body.end_symbol in (None, "auto") else "none",
        marker="" if body.end_symbol in (None, "auto", "none") else body.end_symbol,
        queueing_timeout=body.queueing_timeout,
        env=body.env,
        cwd=body.cwd,
        user=body.user,
        stdin=_stdin(body),
        stdin_open=bool(body.stdin_open),
        attached=attached,
    )
    return await exchange.core.runs.start(exchange.caller, exchange.params["id"], request, exchange.idempotency_key)


async def _direct(exchange: Exchange, body: wire.RunBody, argv: tuple[str, ...], wait: float, attached: bool) -> Run:
    """Beside all sessions."""
    for name in ("command", "session_id", "session_idx", "queueing_timeout", "end_symbol"):
        if getattr(body, name) is not None:
            raise _refused(name, "not together with argv")
    request = RunRequest(
        "",
        argv=argv,
        timeout=body.timeout,
        wait=wait,
        prompt="none",
        env=body.env,
        cwd=body.cwd,
        user=body.user,
        stdin=_stdin(body),
        stdin_open=bool(body.stdin_open),
        beside=True,
        attached=attached,
    )
    return await exchange.core.runs.start(exchange.caller, exchange.params["id"], request, exchange.idempotency_key)


async def patiently(exchange: Exchange, run: Run, seconds: float) -> Run:
    """Wait for the end of a run that goes on, unless the server ends first: the next one knows the run too."""
    if run.ended or seconds <= 0 or exchange.app.stopping.is_set():
        return run
    waiting = asyncio.ensure_future(exchange.core.runs.wait(exchange.caller, run.vm_id, run.run_id, seconds))
    stopping = asyncio.ensure_future(exchange.app.stopping.wait())
    try:
        await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else run
    finally:
        waiting.cancel()
        stopping.cancel()


async def _signal(exchange: Exchange, body: wire.RunBody, name: str) -> Response:
    exchange.facts.command = name
    if body.command is not None or body.argv is not None:
        raise _refused("signal", "not together with command")
    if body.time_to_background is not None or body.background is not None:
        raise _refused("time_to_background", "not with a signal")
    if given := [name for name in ONLY_WITH_COMMAND if getattr(body, name) is not None]:
        raise _refused(given[0], "not with a signal")
    index = body.session_idx if body.session_id is None else None
    signum = int(signal.Signals[name])
    await exchange.core.runs.signal(exchange.caller, exchange.params["id"], signum, body.session_id, index)
    return exchange.answer(wire.SIGNALLED)


async def answer(exchange: Exchange, run: Run) -> Response:
    """200 with its output once it has ended, else 202."""
    if run.ended:
        return exchange.answer(await _told(run, partial(wire.completed, integer_exit=exchange.agent.urllib)))
    return exchange.answer(wire.BackgroundRunAnswer(run_id=run.run_id, session_id=run.session_id), 202)


async def list_runs(exchange: Exchange) -> Response:
    query = exchange.query(wire.ListRunsQuery)
    where = RunFilter(query.state, query.started_after, query.started_before, query.completed_after)
    page = await exchange.core.runs.list(exchange.caller, exchange.params["id"], where, query.cursor, query.limit)
    return exchange.answer(
        wire.ListRunsAnswer(runs=[wire.summary(run) for run in page.items], next_cursor=page.next_cursor)
    )


async def get_run(exchange: Exchange) -> Response:
    wait = min(exchange.query(wire.GetRunQuery).wait, exchange.agent.window)
    begun = min(wait, UNBROKEN_SECONDS)
    run = await exchange.core.runs.wait(exchange.caller, exchange.params["id"], exchange.params["run_id"], begun)
    return exchange.answer(await _told(await patiently(exchange, run, wait - begun), wire.run))


async def _told(run: Run, tell: Callable[[Run], A]) -> A:
    """As it goes on the wire. What a Python context has reported may take long to look through: nobody else waits."""
    if run.reports is not None and len(run.reports) > LARGE_BYTES:
        return await asyncio.to_thread(tell, run)
    return tell(run)


async def cancel_run(exchange: Exchange) -> Response:
    done = await exchange.core.runs.cancel(exchange.caller, exchange.params["id"], exchange.params["run_id"])
    return exchange.answer(wire.CancelRunAnswer(cancelled=done))


async def write_stdin(exchange: Exchange) -> Response:
    query = exchange.query(wire.StdinQuery)
    data = await exchange.raw_body()
    vm, run_id, eof = exchange.params["id"], exchange.params["run_id"], query.eof.lower() in ("true", "1")
    given = await exchange.core.runs.write_stdin(exchange.caller, vm, run_id, data, query.offset, eof)
    return exchange.answer(wire.StdinAnswer(offset=given.offset, taken=given.taken, closed=given.closed))


def _wait(exchange: Exchange, body: wire.RunBody) -> float:
    """Seconds: what the caller asks for, as far as its socket is that patient."""
    if body.background:
        return 0.0
    asked = body.time_to_background
    return min(wire.LONGEST_WINDOW if asked is None else asked, exchange.agent.window)


def _stdin(body: wire.RunBody) -> bytes | None:
    if body.stdin is None:
        return None
    if body.stdin_encoding != "base64":
        return body.stdin.encode()
    try:
        return base64.b64decode(body.stdin, validate=True)
    except (binascii.Error, ValueError):
        raise _refused("stdin", "is not base64") from None


def _refused(field: str, said: str) -> BadRequest:
    return BadRequest(f"{field}: {said}", [(field, said)])


_READ: dict[str, Any] = {"errors": ("bad_request", "not_found", "invalid_state")}
OPERATIONS = (
    Operation(
        "createRun", "POST", "/v1/vms/{id}/runs", create_run, "Run a command and wait a while for its end.",
        answers={200: wire.CompletedRunAnswer, 202: wire.BackgroundRunAnswer}, body=wire.RunBody,
        query=wire.StreamQuery, streams=EVENTS, logged="run",
        body_limit=COMMAND_LIMIT,
        errors=(
            "bad_request", "not_found", "conflict", "idempotency_conflict", "invalid_state", "resource_busy",
            "payload_too_large", "unrecoverable", "unsupported_operation", "capacity_unavailable",
        ),
    ),
    Operation(
        "listRuns", "GET", "/v1/vms/{id}/runs", list_runs, "List a VM's runs, newest first.",
        answers={200: wire.ListRunsAnswer}, query=wire.ListRunsQuery, **_READ,
    ),
    Operation(
        "getRun", "GET", "/v1/vms/{id}/runs/{run_id}", get_run, "One run, with its output so far.",
        answers={200: wire.Run}, query=wire.GetRunQuery, **_READ,
    ),
    Operation(
        "cancelRun", "DELETE", "/v1/vms/{id}/runs/{run_id}", cancel_run, "End a run and all that it started.",
        answers={200: wire.CancelRunAnswer}, **_READ,
    ),
    Operation(
        "writeRunStdin", "POST", "/v1/vms/{id}/runs/{run_id}/stdin", write_stdin,
        "Give more to a run that was started with stdin_open: the body, as it is.",
        answers={200: wire.StdinAnswer}, query=wire.StdinQuery, body_limit=COMMAND_LIMIT, ours=True,
        errors=("bad_request", "not_found", "conflict", "invalid_state", "resource_busy", "payload_too_large"),
    ),
)  # fmt: skip
