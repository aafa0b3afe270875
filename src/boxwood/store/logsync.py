"""What has been committed, on the disk: the flush of the database's log, beside the writers.

Commits are made with `synchronous=NORMAL`: they are in the log (the -wal file), in the kernel's hands. `FULL` would be
the same with an fsync of the log behind each commit, for which everybody would wait whose write shares it; so it is
left to those who need it. The log is written from its beginning to its end, so one flush secures all that was committed
before it; and what a checkpoint has moved out of it, SQLite has flushed itself, in this order: the log, the database,
the log's new beginning (https://www.sqlite.org/pragma.html#pragma_synchronous).

The log is opened apart from SQLite. That is harmless: the locks which a process loses when it closes any descriptor of
a file are on the database and its -shm, never on the -wal, and that one is removed with the last connection only.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class LogSync:
    """`flush`es that are asked for while one is under way share the next.

    After one that failed there is no other: the kernel takes what it could not write for written, so that the next
    would succeed over a gap in the log, behind which nothing is found again. The next server begins anew: when it opens
    the database, all that the log holds is moved there and flushed.
    """

    def __init__(self, database: Path) -> None:
        self._log = database.with_name(database.name + "-wal")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-sync")
        self._file = -1
        self._broken: OSError | None = None
        self._asked: asyncio.Future[None] | None = None
        self._work: asyncio.Task[None] | None = None

    async def flush(self) -> None:
        """Returns when everything that was committed before is on the disk. OSError: it may not be."""
        loop = asyncio.get_running_loop()
        if self._asked is None:
            self._asked = loop.create_future()
        asked = self._asked
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._flush_what_is_asked())
        await asyncio.shield(asked)

    async def _flush_what_is_asked(self) -> None:
        loop = asyncio.get_running_loop()
        while (asked := self._asked) is not None:
            self._asked = None
            try:
                await loop.run_in_executor(self._thread, self._flush)
            except OSError as error:
                asked.set_exception(error)
                asked.exception()  # whoever asked may be gone
            except BaseException:
                asked.cancel()
                raise
            else:
                asked.set_result(None)

    def _flush(self) -> None:
        if self._file < 0:
            file = os.open(self._log, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                self._flush_names()
            except BaseException:
                os.close(file)
                raise
            self._file = file
        if self._broken is not None:
            raise self._broken
        try:
            os.fdatasync(self._file)
        except OSError as error:
            self._broken = OSError(error.errno, f"{error.strerror}; the server has to be started anew")
            raise self._broken from error

    def _flush_names(self) -> None:
        """That the database and its log are there at all, and the directory that they are in."""
        for directory in (self._log.parent, self._log.parent.parent):
            place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(place)
            finally:
                os.close(place)

    async def close(self) -> None:
        if self._work is not None:
            await asyncio.wait({self._work})
        await asyncio.to_thread(self._thread.shutdown)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
