"""What is forgotten in time, so that nothing grows for ever: ended runs and their output, idempotency keys, uploads.

Of each VM the newest runs are kept, so many of them and with so much output, for so long; the rest go, the oldest
first. A run that has not ended is never forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from boxwood.core import clock
from boxwood.core.activity import Activity
from boxwood.core.config import Config
from boxwood.core.errors import CoreError
from boxwood.core.ids import first_id
from boxwood.core.tasks import Tasks
from boxwood.core.uploads import Uploads
from boxwood.store import idempotency as idempotency_rows
from boxwood.store import runs as run_rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow

SWEEP_SECONDS = 3600.0
AT_ONCE = 200  # rows that are deleted in one go: whoever writes waits for it
SLACK = 10  # a tenth more than is kept may be there before somebody looks
log = logging.getLogger(__name__)


class Retention:
    def __init__(self, database: Database, uploads: Uploads, config: Config, tasks: Tasks, spool: Path) -> None:
        self._database = database
        self._uploads = uploads
        self._config = config
        self._tasks = tasks
        self._spool = spool
        self._ended: Counter[str] = Counter()  # runs of each VM since somebody looked
        self._bytes: Counter[str] = Counter()  # their output
        self._trimming: set[str] = set()
        self.activity: Activity | None = None

    def start(self) -> None:
        self._tasks.start(self._sweep_often())

    def ended(self, vm_id: str, output: int) -> None:
        """A run has been recorded that put out so many bytes."""
        self._ended[vm_id] += 1
        self._bytes[vm_id] += output
        if self._many(vm_id) and vm_id not in self._trimming:
            self._trimming.add(vm_id)
            self._tasks.start(self._trim(vm_id))

    def _many(self, vm_id: str) -> bool:
        config = self._config
        return self._ended[vm_id] > config.runs_kept // SLACK or self._bytes[vm_id] > config.runs_kept_bytes // SLACK

    def gone(self, row: VMRow) -> None:
        """There is no such VM any more."""
        self._forget_counts(row.id)

    def _forget_counts(self, vm_id: str) -> None:
        self._ended.pop(vm_id, None)
        self._bytes.pop(vm_id, None)

    async def _trim(self, vm_id: str) -> None:
        try:
            while self._many(vm_id):  # more may have ended meanwhile
                await self._cut(vm_id)
        finally:
            self._trimming.discard(vm_id)

    async def _cut(self, vm_id: str) -> None:
        """Forget what is more than is kept of a VM."""
        self._forget_counts(vm_id)
        count, output = self._config.runs_kept, self._config.runs_kept_bytes
        await self._forget(
            await self._database.read(lambda connection: run_rows.surplus(connection, vm_id, count, output))
        )

    async def _forget(self, ids: Sequence[str]) -> None:
        """Rows first: an output without a row is nobody's, and removed with its VM at the latest."""
        for at in range(0, len(ids), AT_ONCE):
            some = ids[at : at + AT_ONCE]
            gone = await self._database.write(lambda connection, some=some: run_rows.delete(connection, some))  # type: ignore[misc]
            await asyncio.to_thread(self._remove, gone)

    def _remove(self, runs: Sequence[tuple[str, str]]) -> None:
        for vm_id, run_id in runs:
            for stream in ("out", "err", "rep"):
                (self._spool / vm_id / f"{run_id}.{stream}").unlink(missing_ok=True)

    # Now and then

    async def sweep(self) -> None:
        """What has become too old, but for runs: there may be millions."""
        await self._uploads.sweep(self._config.uploads_seconds)
        before = clock.now() - int(self._config.idempotency_seconds * 1e6)
        await self._database.write(lambda connection: idempotency_rows.expire(connection, before))

    async def _sweep_runs(self) -> None:
        count, output = self._config.runs_kept, self._config.runs_kept_bytes
        for vm_id in await self._database.read(lambda connection: run_rows.crowded(connection, count, output)):
            await self._cut(vm_id)
        before = clock.now() - int(self._config.runs_kept_seconds * 1e6)
        first = first_id(before)
        await self._forget(await self._database.read(lambda connection: run_rows.older(connection, before, first)))
        if self.activity is not None:
            await self.activity.forget(self._config.runs_kept_seconds)

    async def _sweep_often(self) -> None:
        while True:
            try:
                await self._sweep_runs()
                await asyncio.sleep(SWEEP_SECONDS)
                await self.sweep()
            except (CoreError, OSError) as error:
                log.error("what is too old could not be removed: %s", error)
                await asyncio.sleep(SWEEP_SECONDS)
