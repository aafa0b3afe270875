"""Steps in a session: one after the other, all of them, whatever becomes of the ones before."""

from __future__ import annotations

from typing import Any

from msgspec import field, structs
from starlette.responses import Response

from boxwood.core.errors import BadRequest
from boxwood.dialects.arl_gateway import stream, words
from boxwood.dialects.arl_gateway.envelope import Lenient, Told, body, header, told
from boxwood.dialects.arl_gateway.gateway import Gateway, gateway
from boxwood.dialects.arl_gateway.history import Step
from boxwood.dialects.arl_gateway.perform import Hear, StepRequest, step
from boxwood.dialects.arl_gateway.session import Session
from boxwood.server.exchange import Exchange

SSE = b"text/event-stream"
PIECE_CHARACTERS = 32 << 10
ANSWER_BYTES = 32 << 20  # of output in one answer


class ExecuteBody(Lenient, frozen=True, kw_only=True):
    steps: list[StepRequest] | None = None
    trace_id: str | None = field(name="traceID", default=None)
    operation_id: str | None = field(name="operationID", default=None)


class StepOutput(Told, frozen=True, kw_only=True):
    stdout: str
    stderr: str
    exit_code: int


class StepResult(Told, frozen=True, kw_only=True, omit_defaults=True):
    index: int
    name: str
    output: StepOutput
    snapshot_id: str
    duration_ms: int
    timestamp: str
    input: dict[str, Any]
    output_bytes: int = field(name="outputBytes", default=0)
    truncated: bool = field(name="outputTruncated", default=False)


class ExecuteAnswer(Told, frozen=True, kw_only=True, omit_defaults=True):
    session_id: str = field(name="sessionID")
    total_ms: int = field(name="totalDurationMs")
    results: list[StepResult]
    operation_id: str = field(name="operationID", default="")


def shortened(done: Step, room: int) -> Step:
    """With no more output than there is room for."""
    size = len(done.stdout) + len(done.stderr)
    if size <= room:
        return done
    out = done.stdout[: max(0, room)]
    err = done.stderr[: max(0, room - len(out))]
    return structs.replace(done, stdout=out, stderr=err, bytes=done.bytes or size, truncated=True)


def result_of(done: Step) -> StepResult:
    return StepResult(
        index=done.index,
        name=done.name,
        output=StepOutput(stdout=done.stdout, stderr=done.stderr, exit_code=done.exit_code),
        snapshot_id=str(done.index),
        duration_ms=done.duration_ms,
        timestamp=done.timestamp,
        input=done.input,
        output_bytes=done.bytes,
        truncated=done.truncated,
    )


async def execute(exchange: Exchange) -> Response:
    """Held until it is done, or 202; or what comes as it comes, for whoever asks so."""
    wanted = await body(exchange, ExecuteBody)
    steps = wanted.steps
    if not steps:
        raise BadRequest("steps is required")
    if len(steps) > words.MOST_STEPS:
        raise BadRequest(f"steps: at most {words.MOST_STEPS}")
    for one in steps:
        one.check()
    there = await gateway(exchange)
    session = await there.active(exchange)
    operation_id = wanted.operation_id or ""
    # Clients before 0.15 ask for a stream always, and send the steps once more should anything be wrong with it.
    if header(exchange, b"accept") == SSE and not operation_id and not session.facts.old_client:
        return stream.EventStream(there, lambda say: _tell(there, session, steps, say))

    async def work() -> ExecuteAnswer:
        done, room = [], ANSWER_BYTES
        async with there.used(session):
            for one in steps:
                done.append(shortened(await step(there, session, one), room))
                room -= len(done[-1].stdout) + len(done[-1].stderr)
        return ExecuteAnswer(
            session_id=session.id,
            operation_id=operation_id,
            total_ms=sum(one.duration_ms for one in done),
            results=[result_of(one) for one in done],
        )

    request = [[one.input() for one in steps], wanted.trace_id]
    return await there.operations.answer(exchange, session, operation_id, request, work)


async def _tell(there: Gateway, session: Session, steps: list[StepRequest], say: stream.Say) -> None:
    async with there.used(session):
        for one in steps:
            done = await step(there, session, one, _hearing(say))
            await say("result", result_of(done))


def _hearing(say: stream.Say) -> Hear:
    async def hear(out: str, err: str) -> None:
        for at in range(0, max(len(out), len(err)), PIECE_CHARACTERS):
            piece = slice(at, at + PIECE_CHARACTERS)
            await say("output", {"stdout": out[piece], "stderr": err[piece]})

    return hear


async def operation(exchange: Exchange) -> Response:
    there = await gateway(exchange)
    session = await there.find(exchange)
    await exchange.raw_body()
    return told(await there.operations.look(exchange, session, exchange.params["operation"]))
