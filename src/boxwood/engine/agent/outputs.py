"""The two pipes into which the runs of a session write, D/o and D/e: kept from run to run, unless somebody who outlives
a run still holds one."""

from __future__ import annotations

import os

from boxwood.engine.agent.drains import Drains
from boxwood.engine.agent.folder import Folder
from boxwood.engine.agent.loop import Loop
from boxwood.engine.agent.run import Source

_NAMES = ((1, b"o"), (2, b"e"))


class Outputs:
    """`sources`: those that are open already, by name."""

    def __init__(self, loop: Loop, folder: Folder, sources: dict[bytes, Source] | None = None) -> None:
        self._loop = loop
        self._folder = folder
        self._sources = sources or {}
        self._late = Drains(loop)

    def open(self) -> tuple[Source, Source]:
        """The reading ends; a pipe that something else still writes to is replaced."""
        for stream, name in _NAMES:
            source = self._sources.get(name)
            if source is not None and not self._folder.holds(name, source.fd):
                os.close(self._sources.pop(name).fd)
                source = None
            if source is None:
                try:
                    fd = self._folder.open_fifo(name, os.O_RDONLY)
                except OSError:
                    self._folder.fifo(name)
                    fd = self._folder.open_fifo(name, os.O_RDONLY)
                self._sources[name] = Source(self._loop, fd, stream)
            self._sources[name].ended = False
        return self._sources[b"o"], self._sources[b"e"]

    def let_go(self) -> None:
        """The run is over: what somebody still holds (a process that outlives it, or the shell: `exec 3>&1`) is not the
        next run's."""
        for name, source in list(self._sources.items()):
            if source.held():
                self._late.add(self._sources.pop(name).fd)
                self._folder.remove(name)

    def close(self) -> None:
        for source in self._sources.values():
            os.close(source.fd)
        self._late.close()
