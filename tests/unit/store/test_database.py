"""The database: batches, order, failures, migrations."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from boxwood.store import database as module
from boxwood.store.database import Database, Later, SchemaTooNew, StoreError, connect, migrations
from boxwood.store.memo import Memo


@pytest.fixture
async def database(tmp_path: Path):
    opened = await Database.open(tmp_path / "boxwood.db")
    yield opened
    await opened.close()


def put(key: str, value: str = ""):
    return lambda connection: connection.execute("INSERT INTO meta VALUES (?, ?)", (key, value)) and None


def keys(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT key FROM meta")]


async def test_settings(database):
    for connection in (database.near, await database.write(lambda c: c)):
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 1
        assert connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1
    with pytest.raises(sqlite3.OperationalError):
        database.near.execute("DELETE FROM meta")


async def test_only_what_is_small_is_written_on_the_event_loop(database):
    here = threading.current_thread()
    assert await database.write(lambda connection: threading.current_thread()) is not here
    assert await database.write(lambda connection: threading.current_thread(), small=True) is here
    database.post(put("large"))  # what goes along decides
    assert await database.write(lambda connection: threading.current_thread(), small=True) is not here


async def test_small_writes_keep_their_place_in_the_order(database):
    gate = threading.Event()
    large = database.submit(lambda connection: gate.wait() and put("large")(connection))
    small = database.submit(keys, small=True)
    assert not small.done()
    gate.set()
    await large
    assert await small == ["large"]


async def test_a_small_write_that_fails_is_undone(database):
    def half(connection: sqlite3.Connection) -> None:
        put("half")(connection)
        raise LookupError("no")

    with pytest.raises(LookupError):
        await database.write(half, small=True)
    told: list[BaseException] = []
    database.post(put("a"), small=True)
    database.post(put("a"), told.append, small=True)
    assert await database.write(keys, small=True) == ["a"]
    assert [type(error) for error in told] == [StoreError]


async def test_small_writes_wait_for_another_program_without_stopping_the_loop(database):
    other = connect(database.path)
    other.execute("BEGIN IMMEDIATE")
    small = database.submit(put("a"), small=True)
    assert not small.done()
    other.execute("COMMIT")
    other.close()
    await small
    assert keys(database.near) == ["a"]


async def test_what_was_written_can_be_read_at_once_everywhere(database):
    await database.write(put("a"))
    assert keys(database.near) == ["a"]
    database.post(put("b"))
    assert await database.read(keys) == ["a", "b"]
    database.post(put("c"))
    assert await database.write(keys) == ["a", "b", "c"]


async def test_one_failure_takes_nothing_with_it(database):
    gate = threading.Event()
    blocker = database.submit(lambda connection: gate.wait() and None)

    def half(connection: sqlite3.Connection) -> None:
        put("half")(connection)
        raise LookupError("no")

    futures = [database.submit(put("a")), database.submit(half), database.submit(put("a")), database.submit(put("b"))]
    gate.set()
    await blocker
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), LookupError, StoreError, type(None)]
    assert keys(database.near) == ["a", "b"]
    with pytest.raises(LookupError):
        await database.write(half)
    assert keys(database.near) == ["a", "b"]


async def test_posts_tell_of_failure(database):
    told: list[BaseException] = []
    database.post(put("a"))
    database.post(put("a"), told.append)
    await database.flush()
    assert [type(error) for error in told] == [StoreError]


async def test_posts_go_without_a_push(database):
    done = threading.Event()
    database.post(lambda connection: done.set())
    assert await asyncio.to_thread(done.wait, 60)


async def test_what_is_deferred_is_made_when_it_leaves_and_keeps_its_place(database):
    wanted, failures = True, []
    database.defer(lambda: Later(put("first"), small=True) if wanted else None, failures.append)
    database.defer(lambda: Later(put("unwanted"), small=True) if not wanted else None, failures.append)
    await database.write(put("second"), small=True)
    database.defer(lambda: Later(put("first"), small=True), failures.append)
    assert await database.read(keys) == ["first", "second"]
    assert len(failures) == 1  # it is there already


async def test_a_row_is_kept_until_a_commit_that_is_not_aside(database):
    reads = []
    memo = Memo(database, lambda near, key: reads.append(key) or keys(near) or None)
    assert memo.get("rows") is None and memo.get("rows") is None and len(reads) == 2
    await database.write(put("one"), small=True)
    assert memo.get("rows") == ["one"]
    await database.write(lambda connection: None, small=True)
    assert memo.get("rows") == ["one"] and len(reads) == 4
    await database.submit(put("two"), small=True, aside=True)
    assert memo.get("rows") == ["one"] and len(reads) == 4
    await asyncio.gather(
        database.submit(put("three"), aside=True), database.submit(put("four"))
    )  # one batch: whoever is not aside counts
    assert sorted(memo.get("rows")) == ["four", "one", "three", "two"]


async def test_a_full_disk_fails_what_is_written_then_and_no_more(database):
    pages = await database.write(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    await database.write(lambda c: c.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())
    futures = [database.submit(put(str(i), "x" * 5000)) for i in range(5)]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert any(isinstance(result, StoreError) and result.full for result in results)
    await database.write(lambda c: c.execute("PRAGMA max_page_count = 100000").fetchone())
    await database.write(put("after"))
    assert "after" in keys(database.near)


async def test_close_commits_what_is_queued(tmp_path):
    database = await Database.open(tmp_path / "boxwood.db")
    database.post(put("a"))
    late = database.submit(put("b"))
    await database.close()
    assert late.done()
    with pytest.raises(StoreError):
        await database.write(put("c"))
    again = await Database.open(tmp_path / "boxwood.db")
    assert keys(again.near) == ["a", "b"]
    await again.close()


async def test_the_log_is_moved_into_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_BYTES", 1)
    monkeypatch.setattr(module, "CHECKPOINT_LOOKS", 1)
    database = await Database.open(tmp_path / "boxwood.db")
    before = database.path.stat().st_size
    for i in range(50):
        await database.write(put(str(i), "x" * 10_000))
    while database._checkpointing:
        await asyncio.sleep(0)
    assert database.path.stat().st_size > before
    await database.close()


async def test_migrations_run_once_and_in_order(tmp_path):
    path = tmp_path / "boxwood.db"
    for _ in range(2):
        await (await Database.open(path)).close()
    connection = connect(path)
    assert connection.execute("PRAGMA user_version").fetchone()[0] == migrations()[-1][0]
    connection.close()
    numbers = [number for number, _, _ in migrations()]
    assert numbers == sorted(set(numbers))
    assert numbers == sorted(set(numbers)) and numbers[0] == 1


async def test_a_step_that_fails_leaves_the_old_schema(tmp_path, monkeypatch):
    path = tmp_path / "boxwood.db"
    await (await Database.open(path)).close()
    known = migrations()
    broken = (known[-1][0] + 1, "9999_broken.sql", "CREATE TABLE half (a);\nCREATE TABLE meta (b);")
    monkeypatch.setattr(module, "migrations", lambda: [*known, broken])
    with pytest.raises(StoreError, match="9999_broken"):
        await Database.open(path)
    monkeypatch.setattr(module, "migrations", lambda: known)
    database = await Database.open(path)
    assert database.near.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone()[0] == 0
    await database.close()


async def test_a_newer_database_is_refused(tmp_path):
    path = tmp_path / "boxwood.db"
    await (await Database.open(path)).close()
    connection = connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(SchemaTooNew, match="upgrade Boxwood"):
        await Database.open(path)


async def test_what_is_no_database_is_refused(tmp_path):
    path = tmp_path / "boxwood.db"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError):
        await Database.open(path)
