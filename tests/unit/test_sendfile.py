"""Files that go to a socket by themselves: what a thread uses is not closed beneath it."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading

import pytest

from boxwood.server import sendfile


@pytest.mark.parametrize("error", [None, BrokenPipeError()])
async def test_whoever_is_cancelled_waits_for_the_thread(monkeypatch, caplog, error):
    begun, go = threading.Event(), threading.Event()

    def slow(sock, fd, at, end):
        begun.set()
        go.wait()
        if error is not None:
            raise error
        return end - at

    monkeypatch.setattr(sendfile, "_some", slow)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sending = asyncio.ensure_future(sendfile.send(ours.fileno(), -1, 0, 10, lambda: False))
        await asyncio.to_thread(begun.wait)
        try:
            for _ in range(2):
                sending.cancel()
                for _ in range(10):
                    await asyncio.sleep(0)
                assert not sending.done()
        finally:
            go.set()
        with pytest.raises(asyncio.CancelledError):
            await sending
    gc.collect()
    assert caplog.records == [], "what became of the thread's work is nobody's business any more"
