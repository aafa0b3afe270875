"""The flush of the database's log, for those who cannot lose what they have committed."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading

import pytest

from boxwood.store.database import Database, StoreError


@pytest.fixture
async def database(tmp_path):
    database = await Database.open(tmp_path / "boxwood.db")
    yield database
    await database.close()


async def test_the_log_and_its_name_are_flushed(database, tmp_path, monkeypatch):
    seen = []

    def noted(call):
        def flush(fd):
            seen.append(os.readlink(f"/proc/self/fd/{fd}"))
            call(fd)

        return flush

    monkeypatch.setattr(os, "fsync", noted(os.fsync))
    monkeypatch.setattr(os, "fdatasync", noted(os.fdatasync))
    await database.secure()
    await database.secure()
    log = str(tmp_path / "boxwood.db-wal")
    assert seen == [str(tmp_path), str(tmp_path.parent), log, log]


async def test_those_who_come_meanwhile_share_the_next(database, monkeypatch):
    gate, begun, count = threading.Event(), asyncio.Event(), 0
    loop = asyncio.get_running_loop()
    await database.secure()

    def slow(fd):
        nonlocal count
        count += 1
        loop.call_soon_threadsafe(begun.set)
        gate.wait(20)

    monkeypatch.setattr(os, "fdatasync", slow)
    first = asyncio.create_task(database.secure())
    await begun.wait()
    others = [asyncio.create_task(database.secure()) for _ in range(20)]
    await asyncio.sleep(0)
    assert not first.done()
    assert await database.write(lambda connection: 1, small=True) == 1  # who needs no flush waits for none
    gate.set()
    await asyncio.gather(first, *others)
    assert count == 2


async def test_what_a_server_that_died_had_not_flushed_is_when_the_next_one_has_opened(database, tmp_path):
    await database.write(lambda connection: connection.execute("CREATE TABLE things (id)"))
    (after := tmp_path / "after").mkdir()
    for name in ("boxwood.db", "boxwood.db-wal"):  # as it leaves them
        shutil.copy(tmp_path / name, after)
    assert (after / "boxwood.db-wal").stat().st_size
    again = await Database.open(after / "boxwood.db")
    assert not (after / "boxwood.db-wal").stat().st_size, "all of it is in the database, which SQLite has flushed"
    assert await again.read(lambda connection: connection.execute("SELECT count(*) FROM things").fetchone()[0]) == 0
    await again.close()


async def test_after_a_flush_that_failed_none_succeeds(database, tmp_path, monkeypatch):
    def failing(fd):
        raise OSError(5, "Input/output error")

    await database.secure()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", failing)
        with pytest.raises(StoreError, match="did not take"):
            await database.secure()
    with pytest.raises(StoreError, match="started anew"):  # the kernel says that all is well, and knows of no gap
        await database.secure()
    assert await database.write(lambda connection: 1) == 1, "who relies on no disk goes on"
    await database.close()
    again = await Database.open(tmp_path / "boxwood.db")
    await again.secure()
    await again.close()
