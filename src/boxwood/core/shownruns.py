"""A run as callers are told of it, whether its end is on record or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boxwood.core import clock
from boxwood.core.argv import argv_of
from boxwood.core.model import Run
from boxwood.store.runs import RunRow

if TYPE_CHECKING:
    from boxwood.core.liverun import LiveRun


def shown(
    run: RunRow | LiveRun, vm_name: str | None, out: bytes = b"", err: bytes = b"", reports: bytes | None = None
) -> Run:
    """`out`, `err`, `reports`: what is told of its output; `reports` None: it is not one in a Python context."""
    return Run(
        run_id=run.id,
        vm_id=run.vm_id,
        vm_name=vm_name,
        session_id=run.session_id,
        command=run.command,
        state=run.state,
        exit_code=run.exit_code,
        started_at=clock.shown(run.started_at),
        completed_at=clock.shown_or_none(run.completed_at),
        fail_reason=run.fail_reason,
        duration_ms=None if run.duration_us is None else run.duration_us / 1000,
        stdout=out,
        stderr=err,
        truncated=run.truncated,
        tag=run.tag,
        argv=argv_of(run.command) if run.direct else None,
        not_started=bool(run.not_started),
        retries=run.retries,
        reports=reports,
    )
