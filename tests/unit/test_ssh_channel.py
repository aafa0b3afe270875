"""What a client says on a channel beside its input."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from boxwood.core.errors import Unavailable
from boxwood.core.model import Given
from boxwood.server.ssh import channel, process
from boxwood.server.ssh.channel import Channel


@pytest.mark.parametrize(("subsystem", "kept"), [("sftp", 0), (None, 10)])
async def test_signals_that_nobody_takes_do_not_pile_up(subsystem, kept, monkeypatch):
    """They are in no window: whoever does not read, as SFTP does not while it works, would keep them all."""
    monkeypatch.setattr(channel, "MOST_WAITING", 10)
    made: Any = Channel(None)  # type: ignore[arg-type]
    made._chan = SimpleNamespace(get_subsystem=lambda: subsystem)
    for _ in range(1000):
        made.signal_received("INT")
        made.break_received(1)
        made.terminal_size_changed(80, 24, 0, 0)
    assert len(made._recv_buf[None]) == kept


async def test_input_that_comes_while_the_vm_is_suspended_is_not_lost(monkeypatch):
    monkeypatch.setattr(process, "AGAIN_SECONDS", 0)
    said, given, refusals = [b"data", b""], bytearray(), [Unavailable("suspended"), None, Unavailable("suspended")]

    async def read(size: int) -> bytes:
        return said.pop(0)

    async def write_stdin(caller: Any, vm: str, run_id: str, data: bytes, at: int, *, eof: bool) -> Given:
        if refusals and (refusal := refusals.pop(0)) is not None:
            raise refusal
        given.extend(data)
        return Given(len(given), len(data), eof)

    async def wait_closed() -> None:
        assert given == b"data" and not refusals

    client: Any = SimpleNamespace(stdin=SimpleNamespace(read=read), wait_closed=wait_closed)
    core: Any = SimpleNamespace(runs=SimpleNamespace(write_stdin=write_stdin))
    await process._give(core, None, "vm", "run", client)  # type: ignore[arg-type]
