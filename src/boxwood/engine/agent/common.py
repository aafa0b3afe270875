"""What the sessions of a box share."""

from __future__ import annotations

import os

from boxwood.engine.agent import pipelock
from boxwood.engine.agent.folder import Folder
from boxwood.engine.agent.loop import Loop
from boxwood.engine.agent.minder import Minders
from boxwood.engine.agent.shell import SHELLS
from boxwood.engine.agent.state import State
from boxwood.engine.agent.trees import Orphanage


class Common:
    def __init__(self, loop: Loop, directory: bytes, shells: tuple[bytes, ...] = SHELLS) -> None:
        self.loop = loop
        self.orphanage = Orphanage(loop)
        self.minders = Minders(loop)
        self.directory = directory
        self.links = Folder(directory + b"/links")
        self.shells = shells
        self.bases: dict[bytes, State] = {}  # of a bare shell, by its path
        if os.getpid() == 1:
            pipelock.refuse()
            if os.getsid(0) != 1:
                os.setsid()  # the shells are to live in a session that has no terminal and can get none
