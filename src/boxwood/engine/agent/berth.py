"""What the first session of a box needs, made before there is a session, or even a VM: its files, its terminal, and the
process that will be its shell, which waits at a gate until the VM's root is there and it is told what to execute.

Most boxes have one session, and its first command is what somebody waits for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from boxwood.engine.agent.dialects import KINDS, dialect
from boxwood.engine.agent.folder import Folder
from boxwood.engine.agent.procs import Gate
from boxwood.engine.agent.run import Source
from boxwood.engine.agent.shell import Shell
from boxwood.engine.agent.terminal import Terminal
from boxwood.engine.agent.trees import ProcessTree

if TYPE_CHECKING:
    from boxwood.engine.agent.common import Common


class Berth:
    """`enter` makes the waiting process one of the box's. The shell is a bash, as in nearly every image."""

    def __init__(self, common: Common, place: bytes, enter: Callable[[], None]) -> None:
        self.folder = Folder(place)
        self.tree = ProcessTree(common.orphanage)
        self.kind = KINDS[b"bash"]
        reading, self._gate = os.pipe2(os.O_CLOEXEC)
        gate = Gate(reading, self._gate, enter)
        self.shell = Shell(common.loop, b"", self.kind, self.folder, common.links, self.tree, gate)
        os.close(reading)
        self.terminal = Terminal(common.loop, lambda data: None)
        self.outputs = {
            name: Source(common.loop, self.folder.open_fifo(name, os.O_RDONLY), stream)
            for stream, name in ((1, b"o"), (2, b"e"))
        }

    def open(self, exe: bytes | None) -> bool:
        """The VM's root is there, with this shell. False: with none, or one of another kind, and all of this goes."""
        fits = exe is not None and dialect(exe).kind == self.kind.kind
        if fits and exe is not None:
            os.write(self._gate, exe)
        os.close(self._gate)
        if not fits:
            self.terminal.close()
            for source in self.outputs.values():
                os.close(source.fd)
        return fits
