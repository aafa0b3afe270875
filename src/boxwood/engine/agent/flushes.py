"""Files of a durable VM: on the disk, under their names, before anybody is told that they are written.

A disk takes its time, and PID 1 has other things to do meanwhile: a forked child waits for it.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, NoReturn

from boxwood.engine.agent.files import Refusal, Writing
from boxwood.engine.agent.loop import Loop
from boxwood.engine.agent.requests import Reply
from boxwood.engine.descriptors import close_all_but

_AT_ONCE = 8
Told = Callable[[int], None]


class _Work(NamedTuple):
    """What a child is to do, and the descriptors that it needs for that."""

    descriptors: tuple[int, ...]
    do: Callable[[], None]
    told: Told


class Flushes:
    """As many at once as is good for anything; the others wait."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._under_way = 0
        self._waiting: deque[_Work] = deque()

    def finish(self, writing: Writing, size: int, durable: bool, reply: Reply) -> None:
        """Let a file whose `size` bytes are all there take its place, and answer; with `durable` once it is on the
        disk."""

        def told(number: int) -> None:
            if number:
                writing.abandon()
                reply.error(number, os.strerror(number))
            else:
                writing.close()
                reply({"size": size, "durable": True} if durable else {"size": size})

        if durable:
            self.place(writing, told)
            return
        try:
            writing.place()
        except OSError as error:
            told(error.errno or errno.EIO)
        else:
            told(0)

    def place(self, writing: Writing, told: Told) -> None:
        """Let a file whose bytes are all there take its place. `told`: 0 once it is on the disk, else an errno."""
        self.run(writing.descriptors, partial(_place, writing), told)

    def run(self, descriptors: tuple[int, ...], do: Callable[[], None], told: Told) -> None:
        """In a child. `told`: 0 once it is done, else an errno; the descriptors stay open until then."""
        self._waiting.append(_Work(descriptors, do, told))
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self._under_way < _AT_ONCE:
            work = self._waiting.popleft()
            try:
                pid = os.fork()
            except OSError as error:
                work.told(error.errno or errno.EAGAIN)
                continue
            if pid == 0:
                _do_in_child(work)
            self._under_way += 1
            self._loop.child(pid, partial(self._ended, told=work.told))

    def _ended(self, status: int, told: Told) -> None:
        self._under_way -= 1
        told(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else errno.EIO)
        self._go_on()


def _do_in_child(work: _Work) -> NoReturn:
    """What the others have open stays open no longer for us."""
    number = errno.EIO
    try:
        close_all_but(*work.descriptors)
        work.do()
        number = 0
    except (OSError, Refusal) as error:
        number = min(error.errno or errno.EIO, 255)
    finally:
        os._exit(number)


def _place(writing: Writing) -> None:
    writing.flush()
    writing.place()
    writing.flush_names()
