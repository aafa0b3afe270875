"""From a request that has been answered to its entry in the log of its organisation."""

from __future__ import annotations

from starlette.responses import Response

from boxwood.server.exchange import Exchange
from boxwood.store.activity import ActivityRow


def entry(exchange: Exchange, response: Response, asked: int, answered: int) -> ActivityRow:
    """`asked`, `answered`: microseconds since 1970."""
    operation, facts, run = exchange.operation, exchange.facts, exchange.facts.run
    assert operation.logged is not None and exchange.admitted is not None
    began = None if run is None or run.state == "pending" else int(run.started_at.timestamp() * 1e6)
    return ActivityRow(
        org_id=exchange.caller.org_id,
        key_id=exchange.admitted,
        at=asked,
        request_id=exchange.request_id,
        endpoint=operation.logged,
        kind=facts.kind,
        method=operation.method,
        status=response.status_code,
        total_us=max(0, answered - asked),
        queue_us=0 if began is None else max(0, began - asked),
        vm_id=facts.vm if facts.vm is not None else exchange.params.get("id", ""),
        run_id="" if run is None else run.run_id,
        session_id="" if run is None else run.session_id,
        source_vm_id=facts.source,
        path=facts.path,
        command=facts.command,
        bytes_in=exchange.content_length or exchange.held,
        bytes_out=len(getattr(response, "body", b"")),
        state=None if run is None else run.state,
        exit_code=None if run is None else run.exit_code,
        duration_us=None if run is None or run.duration_ms is None else int(run.duration_ms * 1000),
    )
