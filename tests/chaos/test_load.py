"""Many at once (issue 6): everybody gets his own output and all of it, and the server keeps none of it in memory."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from amounts import amount
from boxwood import VM, AsyncBoxwood, AsyncVM
from chaos.sse import connect, events
from servers import Server, until

Make = Callable[..., Server]
AT_ONCE = 64  # requests of the one client
LINE = 10  # bytes of a line of nine digits
SLOW, GROWTH_MIB = amount(
    (5, 30), (10, 64)
)  # VMs that slow readers are of; what a server may have at most above what it had
MIB = 1 << 20


# Sessions


@pytest.mark.parametrize(("vms", "sessions", "rounds"), [(4, 3, 2), pytest.param(200, 5, 5, marks=pytest.mark.full)])
@pytest.mark.timeout(300)
def test_every_session_gets_its_own_output(make_server: Make, vms: int, sessions: int, rounds: int) -> None:
    """All of them in turns: stdout, stderr and exit code are those of the run, and variables those of the session."""
    server = make_server()

    async def go() -> None:
        room = asyncio.Semaphore(AT_ONCE)
        async with AsyncBoxwood(server.url, server.key) as box:

            async def make() -> AsyncVM:
                async with room:
                    return await box.fork("ubuntu")

            made = await asyncio.gather(*(make() for _ in range(vms)))
            words = {(vm.id, index): secrets.token_hex(8) for index in range(sessions) for vm in made}
            for turn in range(rounds):  # each VM's sessions run side by side, and each run's next is another VM's
                steps = [_step(room, vm, index, words[vm.id, index], turn) for index in range(sessions) for vm in made]
                await asyncio.gather(*steps)

    asyncio.run(go())


async def _step(room: asyncio.Semaphore, vm: AsyncVM, index: int, word: str, turn: int) -> None:
    """A session remembers its word, and what it has said before; each run has a token of its own."""
    token, code = secrets.token_hex(8), (index * 7 + turn) % 100
    remember = f"word={word}; " if turn == 0 else ""
    leave = "exit" if turn % 2 else "return"  # the one ends the shell, which goes on in a new one
    command = f"{remember}seen=${{seen}}{turn}; echo {token} $word $seen; echo err {token} $word >&2; {leave} {code}"
    async with room:
        run = await vm.run(command, session=index, timeout=120)
    assert run.stdout == f"{token} {word} {''.join(map(str, range(turn + 1)))}\n"
    assert (run.stderr, run.exit_code) == (f"err {token} {word}\n", code)


# Streams


@pytest.mark.parametrize("size", [1_600_000, pytest.param(100_000_000, marks=pytest.mark.full)])
@pytest.mark.timeout(900)
def test_slow_readers_cost_no_memory(make_server: Make, size: int) -> None:
    """Five clients of each VM, who take nothing until all has been put out, and then a little each in turn. All of it is
    more than the server may grow by."""
    server = make_server(output_bytes=128 * MIB)
    with server.client() as box, ExitStack() as stack:
        made = [stack.enter_context(box.fork("ubuntu")) for _ in range(SLOW)]
        for vm in made:
            for index in range(5):
                vm.run("true", session=index)
        before = _memory_mib(server.pid, "VmRSS")
        Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # forget the peak
        readers = [
            _Reader(stack, server, made[number % SLOW], number // SLOW, number, size) for number in range(5 * SLOW)
        ]
        for vm in made:
            until(lambda vm=vm: not list(vm.runs(state="running")), 600)
        unread = list(readers)
        while unread:
            unread = [reader for reader in unread if reader.step()]
        for reader in readers:
            reader.check()
        grown = _memory_mib(server.pid, "VmHWM") - before
        assert grown <= GROWTH_MIB, f"the server had {before:.0f} MiB and took {grown:.0f} more"


class _Reader:
    """A client of one run's events, with a small window, that reads when it is told to."""

    def __init__(self, stack: ExitStack, server: Server, vm: VM, session: int, number: int, size: int) -> None:
        first = 100_000_000 + number * 10_000_000  # nine digits, and no line of two runs
        self._lines = range(first, first + size // LINE)
        self._digest = hashlib.sha256()
        self._size = 0
        self._exit: dict[str, object] | None = None
        body = {"command": f"seq {first} {self._lines[-1]}", "session_idx": session}
        answer = stack.enter_context(connect(server, "POST", f"/v1/vms/{vm.id}/runs", body, window=16 << 10))
        self._events = events(answer)

    def step(self) -> bool:
        """Take one event. False: there are no more."""
        event = next(self._events, None)
        if event is None:
            return False
        assert event.kind in ("started", "stdout", "exit"), event
        if event.kind == "stdout":
            assert (event.told["offset"], event.told["encoding"]) == (self._size, "utf-8")
            self._digest.update(event.bytes())
            self._size += len(event.bytes())
        elif event.kind == "exit":
            self._exit = event.told
        return True

    def check(self) -> None:
        expected = hashlib.sha256()
        for start in range(0, len(self._lines), 10_000):
            expected.update(b"".join(b"%d\n" % line for line in self._lines[start : start + 10_000]))
        assert self._exit is not None and (self._exit["state"], self._exit["exit_code"]) == ("completed", 0)
        assert self._size == len(self._lines) * LINE == self._exit["stdout_bytes"]
        assert self._digest.digest() == expected.digest()


def _memory_mib(pid: int, what: str) -> float:
    found = re.search(rf"^{what}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024
