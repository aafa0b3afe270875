"""What a client says on a channel beside its input."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from boxwood.server.ssh import channel
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
