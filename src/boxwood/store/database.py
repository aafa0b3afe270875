"""The database file: one thread writes and commits in batches, other connections read.

What is small is committed on the event loop, here and now, as long as the thread has nothing to do: to be woken takes
it as long again as such a commit.

`write` hands a function to the writer's thread, where it gets the connection inside a transaction, and waits for the
commit. `post` is for what nobody waits for: it rides with the next write, or goes after some milliseconds. What has
queued up while the last commit was made shares the next one; each function has a savepoint of its own, so that one
that fails takes nothing with it. What was handed in first is committed first.

`near` reads on the event loop and is for indexed reads of a few rows (some 10 µs); `read` is for the rest.

What is committed survives the death of the server; what `secure` was waited for survives a loss of power too.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic, TypeVar

from boxwood.store.logsync import LogSync

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
Failed = Callable[[BaseException], None]

log = logging.getLogger(__name__)

BATCH = 256
SMALL_BYTES = 16 << 10  # of what is written on the event loop
CHECKPOINT_BYTES = 4 << 20
BUSY_SECONDS = 10.0
CHECKPOINT_LOOKS = 32  # batches between looks at the size of the log
READERS = 2
POST_SECONDS = 0.005


class StoreError(Exception):
    """The database could not do what was asked; nothing of it was done. `full`: for want of disk space."""

    def __init__(self, message: str, *, full: bool = False) -> None:
        super().__init__(message)
        self.full = full


class SchemaTooNew(StoreError):
    """A newer version has written this database."""


@dataclass(slots=True)
class Later:
    """What `Database.defer` comes to; `small`, `aside`: see `Database.submit`."""

    work: Work[Any]
    small: bool = False
    aside: bool = False


@dataclass(slots=True)
class _Task(Generic[T]):
    """`future` None: nobody waits, but `failed` wants to hear if it goes wrong. `aside`: see `submit`."""

    work: Work[T]
    future: asyncio.Future[T] | None
    small: bool = False
    aside: bool = False
    failed: Failed | None = None
    result: Any = None
    error: BaseException | None = None


@dataclass(slots=True)
class _Later:
    """A task that is made when it leaves, if it is still wanted then: `make` returns None if not."""

    make: Callable[[], Later | None]
    failed: Failed

    def task(self) -> _Task[Any] | None:
        later = self.make()
        return None if later is None else _Task(later.work, None, later.small, later.aside, self.failed)


class Database:
    """`failure`: what a waiter is told instead of `StoreError`."""

    def __init__(self, path: Path, failure: Callable[[StoreError], Exception] | None = None) -> None:
        self.path = path
        self._failure = failure or (lambda error: error)
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[list[_Task[Any]] | None] = queue.SimpleQueue()
        self._posted: list[_Task[Any] | _Later] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writer = threading.Thread(target=self._write_loop, name="store-writer", daemon=True)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._closed = False
        self._checkpointing = False
        self._resolved = self._version = 0
        self._handed_over = 0  # batches that the writer has
        self._begins_log = False  # the next commit may wait for the disk: it begins the log anew
        self._log_sync = LogSync(path)

    @classmethod
    async def open(cls, path: Path, failure: Callable[[StoreError], Exception] | None = None) -> Database:
        """Make or migrate the database. SchemaTooNew, StoreError."""
        database = cls(path, failure)
        try:
            await database._loop.run_in_executor(database._readers, _migrate, path)
            database._connection = database._connect()
            database._here = database._connect(busy_seconds=0)
            database._near = database._connect(read_only=True)
        except BaseException:
            database._readers.shutdown(wait=False)
            raise
        database._writer.start()
        return database

    _connection: sqlite3.Connection
    _here: sqlite3.Connection
    _near: sqlite3.Connection

    def _connect(self, *, read_only: bool = False, busy_seconds: float = BUSY_SECONDS) -> sqlite3.Connection:
        connection = connect(self.path, busy_seconds)
        if read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute("PRAGMA wal_autocheckpoint = 0")  # done beside the writer: see _checkpoint
        self._opened.append(connection)
        return connection

    # Writing

    def submit(self, work: Work[T], *, small: bool = False, aside: bool = False) -> asyncio.Future[T]:
        """Queue a write; the future is done once it is committed. `small`: it changes a few short rows; `aside`: none
        that anybody keeps while `version` is the same (of VMs, layers and sessions)."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed:
            future.set_exception(self._failure(StoreError("the database is closed")))
        else:
            self._posted.append(_Task(work, future, small, aside))
            self._send()
        return future

    async def write(self, work: Work[T], *, small: bool = False) -> T:
        """Do `work` in a transaction and wait for its commit; what it raises is raised here, and undone."""
        return await self.submit(work, small=small)

    def post(self, work: Work[Any], failed: Failed | None = None, *, small: bool = False, aside: bool = False) -> None:
        """A write that nobody waits for. Should it fail, `failed` is called, else the log says so."""
        task = _Task(work, None, small, aside, failed)
        if self._closed:
            self._fail(task, StoreError("the database is closed"))
            return
        self._posted.append(task)
        self._look_after_posted()

    def defer(self, make: Callable[[], Later | None], failed: Failed) -> None:
        """`post`, of what `make` says on the event loop when it is about to be written; None: nothing any more."""
        if self._closed:
            failed(self._failure(StoreError("the database is closed")))
            return
        self._posted.append(_Later(make, failed))
        self._look_after_posted()

    def _look_after_posted(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(POST_SECONDS, self._send_posted)

    def _send_posted(self) -> None:
        self._timer = None
        if self._posted:
            self._send()

    def _send(self) -> None:
        posted, self._posted = self._posted, []
        made = [one.task() if isinstance(one, _Later) else one for one in posted]
        batch = [task for task in made if task is not None]
        if not batch:
            return
        free = not self._handed_over and not self._begins_log
        if free and all(task.small for task in batch) and self._committed_here(batch):
            self._resolve(batch)
        else:
            self._handed_over += 1
            self._begins_log = False
            self._queue.put(batch)

    def _committed_here(self, batch: list[_Task[Any]]) -> bool:
        """False: somebody else is writing, and nothing was done."""
        try:
            self._here.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        self._commit(self._here, batch)
        return True

    def _fail(self, task: _Task[Any], error: BaseException) -> None:
        told = self._told(error)
        if task.future is not None:
            if not task.future.done():
                task.future.set_exception(told)
        elif task.failed is not None:
            task.failed(told)
        else:
            log.error("a write was lost: %s", told)

    async def flush(self) -> None:
        """Wait until everything that was handed in so far is committed."""
        await self.submit(lambda connection: None, small=True, aside=True)

    async def secure(self) -> None:
        """`flush`, and wait until all of that is on the disk: a loss of power takes nothing of it. StoreError."""
        await self.flush()
        try:
            await self._log_sync.flush()
        except OSError as error:
            log.error("database: its log could not be flushed: %s", error)
            raise self._failure(StoreError(f"the disk did not take what was written: {error.strerror}")) from error

    def _write_loop(self) -> None:
        last = False
        while not last:
            batch: list[_Task[Any]] = []
            count = 0
            tasks = self._queue.get()
            while tasks is not None:
                batch += tasks
                count += 1
                if len(batch) >= BATCH or self._queue.empty():
                    break
                tasks = self._queue.get()
            last = tasks is None
            if count:
                self._commit(self._connection, batch)
                self._loop.call_soon_threadsafe(self._taken_back, batch, count)

    def _commit(self, connection: sqlite3.Connection, batch: list[_Task[Any]]) -> None:
        try:
            if not connection.in_transaction:
                connection.execute("BEGIN IMMEDIATE")
            for task in batch:
                self._apply(connection, task, alone=len(batch) == 1)
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            for task in batch:
                task.error = task.error or error

    def _apply(self, connection: sqlite3.Connection, task: _Task[Any], *, alone: bool) -> None:
        if alone:
            task.result = task.work(connection)
            return
        connection.execute("SAVEPOINT task")
        try:
            task.result = task.work(connection)
        except BaseException as error:
            task.error = error
            if not connection.in_transaction:  # a full disk, say, undoes the whole transaction
                raise
            connection.execute("ROLLBACK TO task")
        connection.execute("RELEASE task")

    def _taken_back(self, batch: list[_Task[Any]], count: int) -> None:
        self._handed_over -= count
        self._resolve(batch)

    @property
    def version(self) -> int:
        """Another one for each commit but those aside, before anybody is told of it: what was read of `near` stays as
        it is so long."""
        return self._version

    def _resolve(self, batch: list[_Task[Any]]) -> None:
        self._resolved += 1
        self._version += not all(task.aside for task in batch)
        for task in batch:
            if task.error is not None:
                self._fail(task, task.error)
            elif task.future is not None and not task.future.done():
                task.future.set_result(task.result)
        if self._resolved % CHECKPOINT_LOOKS == 0:
            self._checkpoint()

    def _told(self, error: BaseException) -> BaseException:
        if isinstance(error, sqlite3.Error):
            log.error("database: %s", error, exc_info=error)
            return self._failure(_store_error(error))
        return error

    def _checkpoint(self) -> None:
        """Move the log into the database file beside the writer, whom that would hold up for many milliseconds."""
        if self._checkpointing or self._closed:
            return
        try:
            if self.path.with_name(self.path.name + "-wal").stat().st_size < CHECKPOINT_BYTES:
                return
        except FileNotFoundError:
            return
        self._checkpointing = True

        def done(_: object) -> None:
            self._checkpointing, self._begins_log = False, True

        def checkpoint(connection: sqlite3.Connection) -> None:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

        future = asyncio.ensure_future(self._on_reader(checkpoint))
        future.add_done_callback(done)
        future.add_done_callback(_log_failure)

    # Reading

    @property
    def near(self) -> sqlite3.Connection:
        """The event loop's own connection, for the queries of the nouns' modules. Reads only."""
        return self._near

    async def read(self, work: Work[T]) -> T:
        """Do `work` on a reader's thread, after everything written so far."""
        await self.flush()
        return await self._on_reader(work)

    async def _on_reader(self, work: Work[T]) -> T:
        def call() -> T:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = self._connect(read_only=False)
            return work(connection)

        try:
            return await self._loop.run_in_executor(self._readers, call)
        except sqlite3.Error as error:
            raise self._failure(_store_error(error)) from error

    async def close(self) -> None:
        """Commit what is queued and close."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._send_posted()
        self._queue.put(None)
        await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        await asyncio.sleep(0)  # let the last futures be resolved
        await self._log_sync.close()
        for connection in self._opened:
            connection.close()


def connect(path: Path, busy_seconds: float = BUSY_SECONDS) -> sqlite3.Connection:
    """A connection in autocommit mode with this program's settings."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=busy_seconds)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def migrations() -> list[tuple[int, str, str]]:
    """(number, name, SQL) of every migration, in order."""
    files = resources.files(__package__).joinpath("migrations").iterdir()
    return sorted(
        (int(file.name.split("_", 1)[0]), file.name, file.read_text(encoding="utf-8"))
        for file in files
        if file.name.endswith(".sql")
    )


def _migrate(path: Path) -> None:
    steps = migrations()
    try:
        connection = connect(path)
    except sqlite3.Error as error:
        raise _store_error(error, f"{path}: ") from error
    try:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        newest = steps[-1][0]
        if version > newest:
            raise SchemaTooNew(
                f"{path} was written by a newer Boxwood (schema {version}; this one knows {newest}): upgrade Boxwood"
            )
        for number, name, sql in steps:
            if number > version:
                _step(connection, number, name, sql)
    except sqlite3.Error as error:
        raise _store_error(error, f"{path}: ") from error
    finally:
        connection.close()  # nobody else has it open: SQLite moves the log into it, if there is one, and flushes both


def _step(connection: sqlite3.Connection, number: int, name: str, sql: str) -> None:
    try:
        connection.executescript(f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA user_version = {number};\nCOMMIT;")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise _store_error(error, f"migration {name}: ") from error


def _store_error(error: sqlite3.Error, where: str = "") -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return StoreError(f"{where}{error}", full=code == sqlite3.SQLITE_FULL)


def _log_failure(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.error("a write was lost: %s", error)
