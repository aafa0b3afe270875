"""The log of what an organisation has asked for: runs, forks and syncs."""

from __future__ import annotations

import time

from msgspec import UNSET
from starlette.responses import Response

from boxwood.core.activity import LITE_PAGE, PAGE
from boxwood.core.model import ActivityFilter
from boxwood.server.exchange import Exchange, Operation
from boxwood.server.schema import activity as wire
from boxwood.server.schema.vm import PROVIDER, REGION
from boxwood.store.activity import ActivityRow, Known

SPAN = 7 * 86400  # seconds up to `until` that are looked at unless `since` says otherwise


async def list_org_runs(exchange: Exchange) -> Response:
    query = exchange.query(wire.ListOrgRunsQuery)
    lite = query.lite.lower() in ("true", "1")
    until = int(time.time()) + 1 if query.until is None else query.until
    where = ActivityFilter(
        since=max(0, until - SPAN) if query.since is None else query.since,
        until=until,
        vms=(*_names(query.vm), *_names(query.vms)),
        endpoints=(*_names(query.endpoint), *_names(query.actions)),
        statuses=_names(query.status),
        status_min=query.status_min,
        status_max=query.status_max,
        runtime=query.runtime,
        search=query.search,
        sort=query.sort,
        descending=query.dir == "desc",
        limit=min(query.limit, LITE_PAGE if lite else PAGE),
        offset=query.offset,
    )
    found = await exchange.core.activity.list(exchange.caller, where)
    rows = [_shown(row, known, old=exchange.agent.urllib) for row, known in found]
    answer = wire.ListOrgRunsAnswer(
        since=where.since, until=where.until, limit=where.limit, offset=where.offset, lite=lite, rows=rows
    )
    return exchange.answer(answer)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (one.strip() for one in (text or "").split(","))))


def _shown(row: ActivityRow, known: Known, *, old: bool) -> wire.OrgRun:
    none = 0.0 if old else UNSET
    return wire.OrgRun(
        t_ms=row.at // 1000,
        request_id=row.request_id,
        run_id=row.run_id,
        vm_id=row.vm_id,
        session_id=row.session_id,
        region=REGION,
        provider=PROVIDER,
        status=row.status,
        total_ms=row.total_us / 1000,
        queue_ms=row.queue_us / 1000,
        executor_duration_ms=(row.duration_us or 0) // 1000,
        executor_kind=row.kind,
        vm_vcpus=known.vcpu or 0,
        vm_memory_mib=known.memory_mib or 0,
        path=row.path,
        method=row.method,
        command=row.command,
        source_vm_id=row.source_vm_id,
        exit_code=row.exit_code,
        endpoint=row.endpoint,
        api_key_prefix=known.key_prefix or "",
        body_bytes_in=row.bytes_in,
        body_bytes_out=row.bytes_out,
        state=row.state if row.state is not None else UNSET,  # type: ignore[arg-type]  # as the contract has them
        lambda_call_ms=none,
        lambda_duration_ms=none,
        lambda_cpu_ms=none,
        lambda_mem_mb=none,
    )


OPERATIONS = (
    Operation(
        "listOrgRuns", "GET", "/v1/runs", list_org_runs,
        "What the organisation has asked for: runs, forks and syncs, also of VMs that are gone.",
        answers={200: wire.ListOrgRunsAnswer}, query=wire.ListOrgRunsQuery, errors=("bad_request",),
    ),
)  # fmt: skip
