"""The standard input of a run that is given bit by bit: a pipe whose writing end is here."""

from __future__ import annotations

import errno
import os
import select
import time

from boxwood.engine.agent.loop import OUT, Loop, Timer
from boxwood.engine.agent.requests import Reply

HELD = 1 << 20  # bytes that are taken before the pipe has room for them
_PIECE = 1 << 16
_LOOKS = (0.002, 0.25)  # seconds between looks whether the pipe has a reader, at first and at last
_PATIENCE = 5.0  # seconds until whoever waits for room is told that there is none


class Intake:
    """Bytes are counted, from the first that was ever given, so that what is given twice is taken once."""

    def __init__(self, loop: Loop, first: bytes) -> None:
        self._loop = loop
        self._held = bytearray(first)
        self._at = len(first)
        self._ended = False  # no more will be given
        self._closed = False  # nobody reads any more
        self._pipe = -1
        self._has_reader = False
        self._look = _LOOKS[0]
        self._looking = False
        self._waiting: Reply | None = None
        self._timer: Timer | None = None

    def attach(self, pipe: int, *, has_reader: bool) -> None:
        """The writing end, which does not block and is ours from now on. Without a reader yet, one will come: until
        then the pipe stays open, for who opens one without a writer waits for ever."""
        if self._closed:
            os.close(pipe)
            return
        self._pipe, self._has_reader = pipe, has_reader
        self._flush()

    def give(self, at: int | None, data: bytes, eof: bool, reply: Reply) -> None:
        """Take of `data`, which begins at byte `at` (None: behind all before), what there is room for, and answer how
        far that goes: at once, or once there is room again. `eof`: nothing comes behind it.
        OSError EINVAL (bytes between are missing), EPIPE (it is closed)."""
        if at is not None and at > self._at:
            raise OSError(errno.EINVAL, f"the standard input goes on at byte {self._at}, not at {at}")
        data = data[self._at - at :] if at is not None else data
        if data and (self._closed or self._ended):
            raise OSError(errno.EPIPE, "nobody reads the standard input any more: it is closed")
        self._answer()  # to a server that has gone
        room = max(0, HELD - len(self._held))
        self._held += data[:room]
        self._at += len(data[:room])
        self._ended = self._ended or (eof and len(data) <= room)
        self._flush()
        if data and not room:
            self._waiting = reply
            self._timer = self._loop.at(time.monotonic() + _PATIENCE, self._answer)
        else:
            reply({"at": self._at})

    def close(self) -> None:
        """Nobody reads any more."""
        self._closed = True
        self._held.clear()
        self._let_go()
        self._answer()

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, None
        if self._timer is not None:
            self._timer.cancel()
        if waiting is not None:
            waiting({"at": self._at})

    def _let_go(self) -> None:
        if self._pipe >= 0:
            self._loop.unwatch(self._pipe)
            os.close(self._pipe)
            self._pipe = -1

    def _flush(self, events: int = 0) -> None:
        if self._pipe < 0 or not (self._held or self._ended) or not self._is_read():
            return
        try:
            while self._held:
                del self._held[: os.write(self._pipe, self._held[:_PIECE])]
        except BlockingIOError:
            self._loop.watch(self._pipe, OUT, self._flush)
        except OSError:
            self.close()
            return
        if not self._held:
            self._loop.unwatch(self._pipe)
            if self._ended:
                self._let_go()
        if len(self._held) < HELD:
            self._answer()

    def _is_read(self) -> bool:
        """Has the pipe had a reader? Else it is looked at again soon."""
        if not self._has_reader:
            poll = select.poll()
            poll.register(self._pipe, 0)
            self._has_reader = not poll.poll(0)
        if not self._has_reader and not self._looking:
            self._looking = True
            self._loop.at(time.monotonic() + self._look, self._look_again)
            self._look = min(2 * self._look, _LOOKS[1])
        return self._has_reader

    def _look_again(self) -> None:
        self._looking = False
        self._flush()
