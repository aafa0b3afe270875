"""A table that somebody removes is put up again until that holds, and only then."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
from collections.abc import Iterable, Iterator, Sequence

import pytest

from boxwood.engine.network import restoring as module
from boxwood.engine.network.exceptions import Exceptions
from boxwood.engine.network.restoring import Restoring
from boxwood.engine.network.table import NftError, Table, nft

pytestmark = pytest.mark.anyio


class FakeTable:
    """`fails`: of the next steps, which do. A table that is put up anew is another one, and its own removal is told."""

    name = "boxwood_9"

    def __init__(self) -> None:
        self.there = 1
        self.made = 1
        self.fails: list[bool] = []
        self.steps: list[str] = []
        self.events = Events()
        self.whole = asyncio.Event()

    def handle(self) -> int:
        return self.there

    def put_up(self, guarded: Sequence[str], more: str, *, anew: bool) -> None:
        assert anew
        self._do("put up " + more)
        self.made += 1
        self.there = self.made
        self.events.tell(self.name)

    def allow(self, places: Iterable[tuple[str, int, int]]) -> None:
        self._do("allow")

    def change(self, script: str) -> None:
        self._do(script)
        self.whole.set()

    def _do(self, step: str) -> None:
        self.steps.append(step)
        if self.fails and self.fails.pop(0):
            raise NftError("no memory")

    def remove(self, said: str) -> None:
        self.there = 0
        self.whole.clear()
        self.events.tell(said)


class Events:
    def __init__(self) -> None:
        self._here, self._there = socket.socketpair()
        self._here.setblocking(False)

    def tell(self, name: str) -> None:
        self._there.send(name.encode() + b"\n")

    def fileno(self) -> int:
        return self._here.fileno()

    def read(self) -> set[str]:
        try:
            return set(self._here.recv(4096).decode().split())
        except BlockingIOError:
            return set()

    def close(self) -> None:
        self._here.close()
        self._there.close()


class FakePolicing:
    def barring(self) -> str:
        return "barred"

    def script(self) -> str:
        return "rules"


STEPS = ["put up barred", "allow", "rules"]


@pytest.fixture
async def table(monkeypatch: pytest.MonkeyPatch) -> FakeTable:
    made = FakeTable()
    monkeypatch.setattr(module, "Removals", lambda: made.events)
    monkeypatch.setattr(module, "_FIRST_SECONDS", 0.001)
    return made


@pytest.fixture
async def restored(table: FakeTable) -> Iterator[list[int]]:  # type: ignore[misc]
    """One entry for each time that connections had to be looked through."""
    found: list[int] = []
    made = Restoring(table, FakePolicing(), Exceptions.parse([]), (), lambda: found.append(table.there))  # type: ignore[arg-type]
    made.open()
    yield found
    made.close()


async def settled(table: FakeTable) -> None:
    """Everything that was told has been heard."""
    table.events.tell("another")
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize("said", ["boxwood_9", "*"])
async def test_it_is_put_up_once(table: FakeTable, restored: list[int], said: str) -> None:
    for number in (2, 3):
        table.remove(said)
        await asyncio.wait_for(table.whole.wait(), 20)
        await settled(table)
        assert table.there == number and table.steps == STEPS * (number - 1) and len(restored) == number - 1


async def test_it_was_removed_before_anybody_listened(table: FakeTable) -> None:
    table.there = 0
    made = Restoring(table, FakePolicing(), Exceptions.parse([]), (), lambda: None)  # type: ignore[arg-type]
    made.open()
    assert table.there == 2 and table.steps == STEPS
    made.close()


@pytest.mark.parametrize("fails", [[True], [True] * 3, [False, True], [False, False, True], [False, True, True]])
async def test_what_fails_is_tried_again(table: FakeTable, restored: list[int], fails: list[bool]) -> None:
    table.fails = fails
    table.remove("boxwood_9")
    await asyncio.wait_for(table.whole.wait(), 20)
    await settled(table)
    assert table.steps[-3:] == STEPS and table.there and not table.fails and restored


async def test_what_else_is_told_is_no_reason(table: FakeTable, restored: list[int]) -> None:
    """A policy with many sets is more than a socket has room for."""
    for said in ("*", "another", "* another"):
        table.events.tell(said)
        await settled(table)
    assert table.steps == restored == []


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
async def test_a_host_that_is_short_of_something(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(NftError, match=os.strerror(number)):
        nft("")
    with pytest.raises(NftError):
        Table(9).handle()
