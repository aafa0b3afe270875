"""What has happened in a session: its history, its trajectory, its log."""

from __future__ import annotations

from msgspec import field
from starlette.responses import Response

from boxwood.core.errors import BadRequest
from boxwood.dialects.arl_gateway.envelope import Told, told
from boxwood.dialects.arl_gateway.execute import StepOutput, result_of
from boxwood.dialects.arl_gateway.gateway import Gateway, gateway
from boxwood.dialects.arl_gateway.history import Step
from boxwood.dialects.arl_gateway.session import Session
from boxwood.dialects.arl_gateway.stream import Lines, LineStream
from boxwood.server.decode import query
from boxwood.server.exchange import Exchange, encode
from boxwood.server.schema.common import Query

TAIL = 100
MOST_TAIL = 100_000
FOLLOW_SECONDS = 20.0


class LogQuery(Query, frozen=True, kw_only=True, forbid_unknown_fields=False):
    follow: str = "false"
    tail: int = TAIL
    namespace: str | None = None

    @property
    def follows(self) -> bool:
        return self.follow.lower() in ("1", "true", "yes", "on")


class LogLine(Told, frozen=True, kw_only=True, omit_defaults=True):
    timestamp: str
    level: str
    message: str
    source: str
    pod: str = field(name="podName", default="")


class _Action(Told, frozen=True, kw_only=True):
    session_id: str
    step: int
    action: dict[str, object]
    observation: StepOutput
    snapshot_id: str
    timestamp: str


async def history(exchange: Exchange) -> Response:
    there = await gateway(exchange)
    session = await there.find(exchange)
    return told([result_of(step) for step in await session.history.all()])


async def trajectory(exchange: Exchange) -> Response:
    there = await gateway(exchange)
    session = await there.find(exchange)
    lines = []
    for step in await session.history.all():
        observation = StepOutput(stdout=step.stdout, stderr=step.stderr, exit_code=step.exit_code)
        line = _Action(
            session_id=session.id, step=step.index, action=step.input, observation=observation,
            snapshot_id=str(step.index), timestamp=step.timestamp,
        )  # fmt: skip
        lines.append(encode(line) + b"\n")
    return Response(b"".join(lines), media_type="application/x-ndjson")


async def logs(exchange: Exchange) -> Response:
    """What the server knows of the session: what became of it, and of each of its steps."""
    asked = log_query(exchange)
    there = await gateway(exchange)
    session = await there.find(exchange)
    await exchange.raw_body()
    return LineStream(_lines(there, session, asked), there.stopping)


def log_query(exchange: Exchange) -> LogQuery:
    asked = query(exchange.scope["query_string"], LogQuery)
    if not 0 <= asked.tail <= MOST_TAIL:
        raise BadRequest(f"tail: 0 to {MOST_TAIL}")
    return asked


async def _lines(there: Gateway, session: Session, asked: LogQuery) -> Lines:
    seen, log = session.told, await _log(session)
    known = set(map(_mark, log))
    for line in log[len(log) - min(asked.tail, len(log)) :]:
        yield encode(line) + b"\n"
    while asked.follows and not there.stopping.is_set():
        over = session.facts.status == "deleted"
        for line in await _log(session):
            if _mark(line) not in known:
                known.add(_mark(line))
                yield encode(line) + b"\n"
        if over:
            return
        await session.news(seen, FOLLOW_SECONDS)
        seen = session.told


def _mark(line: LogLine) -> tuple[str, str]:
    return line.timestamp, line.message


async def _log(session: Session) -> list[LogLine]:
    events = [
        LogLine(timestamp=event.at, level="info", message=event.message, source="gateway")
        for event in session.facts.events
    ]
    steps = [_of_step(step) for step in await session.history.all()]
    return sorted(events + steps, key=lambda line: line.timestamp)


def _of_step(step: Step) -> LogLine:
    return LogLine(
        timestamp=step.timestamp,
        level="info" if step.exit_code == 0 else "error",
        message=f"step {step.index} {step.name}: exit code {step.exit_code} after {step.duration_ms} ms",
        source="executor",
    )
