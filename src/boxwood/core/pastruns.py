"""Runs whose end is on record: their rows, and their output from there or from DATA/spool."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boxwood.core import clock
from boxwood.core.errors import BadRequest, NotFound, Unrecoverable
from boxwood.core.ids import is_id
from boxwood.core.model import Output, Run, RunFilter
from boxwood.core.output import head, in_turn
from boxwood.core.shownruns import shown
from boxwood.store import runs as rows
from boxwood.store.database import Database
from boxwood.store.runs import RunRow
from boxwood.store.vms import VMRow

PIECE_BYTES = 64 << 10  # of each stream in an answer of `output`
STATES = ("pending", "running", "completed", "failed", "cancelled")


class PastRuns:
    def __init__(self, database: Database, spool: Path) -> None:
        self._database = database
        self._spool = spool

    def row(self, vm: VMRow, run_id: str) -> RunRow:
        """NotFound."""
        stored = rows.by_id(self._database.near, vm.id, run_id) if is_id(run_id) else None
        if stored is None:
            raise NotFound("run", "there is no such run")
        return stored

    async def shown(self, row: RunRow, vm_name: str | None) -> Run:
        """With its output. Unrecoverable."""
        spool = self._spool / row.vm_id
        out = await _kept(spool / f"{row.id}.out", row.out, row)
        err = await _kept(spool / f"{row.id}.err", row.err, row)
        reports = None
        if row.report_bytes is not None:
            reports = await _kept(spool / f"{row.id}.rep", row.reports, row)
        return shown(row, vm_name, out, err, reports)

    async def output(self, row: RunRow, out_at: int, err_at: int, report_at: int) -> Output:
        """As `Runs.output`. Unrecoverable."""
        spool = self._spool / row.vm_id
        out = await _part(spool / f"{row.id}.out", row.out, row.out_bytes, out_at, row)
        err = await _part(spool / f"{row.id}.err", row.err, row.err_bytes, err_at, row)
        out_at, err_at = out_at + len(out), err_at + len(err)
        size = row.report_bytes or 0
        behind = out_at < row.out_bytes or err_at < row.err_bytes
        reports = in_turn(
            await _part(spool / f"{row.id}.rep", row.reports, size, report_at, row), report_at, behind=behind
        )
        report_at += len(reports)
        ended = not behind and report_at >= size
        return Output(out, err, out_at, err_at, ended, row.state, reports, report_at)

    async def page(
        self, vm: VMRow, where: RunFilter, before: str | None, limit: int, still: Sequence[str] = ()
    ) -> list[RunRow]:
        """Newest first, without output, those before this one; also runs that go on. `still`: of these, those that
        count as pending, whatever their rows say. BadRequest."""
        conditions, params = _conditions(vm.id, where, still)
        if before is not None:
            conditions.append("id < :before")
            params["before"] = before
        return await self._database.read(lambda connection: rows.page(connection, conditions, params, limit))


def _conditions(vm_id: str, where: RunFilter, still: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    conditions, params = ["vm_id = :vm"], {"vm": vm_id}  # type: tuple[list[str], dict[str, Any]]
    if where.state is not None:
        if where.state not in STATES:
            raise BadRequest(f"state: one of {', '.join(STATES)}", [("state", f"one of {', '.join(STATES)}")])
        among = "id IN (SELECT value FROM json_each(:still))"
        conditions.append(f"CASE WHEN {among} THEN 'pending' ELSE state END = :state" if still else "state = :state")
        if still:
            params["still"] = json.dumps(still)
        params["state"] = where.state
    if where.tag is not None:
        conditions.append("tag = :tag")
        params["tag"] = where.tag
    for column, sign, at in (
        ("started_at", ">=", where.started_after),
        ("started_at", "<=", where.started_before),
        ("completed_at", ">=", where.completed_after),
    ):
        if at is not None:
            name = f"t{len(params)}"
            conditions.append(f"{column} {sign} :{name}")
            params[name] = clock.stored(at)
    return conditions, params


async def _kept(path: Path, inline: bytes | None, row: RunRow) -> bytes:
    if inline is not None:
        return inline
    try:
        return await asyncio.to_thread(path.read_bytes)
    except FileNotFoundError:
        raise Unrecoverable("run", row.id, "the output of this run is not there any more") from None


async def _part(path: Path, inline: bytes | None, size: int, at: int, row: RunRow) -> bytes:
    """A piece of the `size` bytes that are kept of a stream, from `at` on."""
    if inline is not None:
        return inline[at : at + PIECE_BYTES]
    if at >= size:
        return b""
    try:
        data = await asyncio.to_thread(head, path, min(PIECE_BYTES, size - at), at)
    except FileNotFoundError:
        data = b""
    if not data:
        raise Unrecoverable("run", row.id, "the output of this run is not there any more")
    return data
