"""How boxes come to a stand, and to an end: frozen for a server, stopped when nobody wants them any more, killed."""

from __future__ import annotations

import traceback
from collections.abc import Mapping

from boxwood.engine.cgroups.cgroups import Cgroups
from boxwood.engine.children import kill
from boxwood.engine.dismissed import Dismissed
from boxwood.engine.spares import Live
from boxwood.engine.unmounter import Unmounter


class Ends:
    """`boxes`: those that live, by their ids; `cgroups`: as soon as there are any. Whatever fails while a box is ended
    is no reason for the zygote to die, and all boxes with it."""

    def __init__(self, boxes: Mapping[str, Live], unmounter: Unmounter) -> None:
        self.cgroups: Cgroups | None = None
        self.dismissed = Dismissed(lambda box_id: self.end(boxes[box_id]))
        self._boxes = boxes
        self._unmounter = unmounter
        self._frozen: set[str] = set()  # by the server that is there

    def freeze(self, live: Live) -> None:
        """Until the server thaws it, or is gone. OSError."""
        assert self.cgroups is not None
        self._frozen.add(live.box)
        self.cgroups.freeze(live.group)

    def thaw(self, live: Live) -> None:
        """OSError."""
        assert self.cgroups is not None
        self.cgroups.thaw(live.group)
        self._frozen.discard(live.box)

    def abandoned(self) -> None:
        """The server is gone: so is whoever froze boxes, and the next one is to find none that were dismissed."""
        self.dismissed.end_all()
        for box_id in self._frozen:
            self._thaw(self._boxes[box_id])
        self._frozen.clear()

    def dismiss(self, live: Live) -> bool:
        """Let nothing run in it, and kill it when there is time. False: it could run on meanwhile."""
        if not self._stopped(live):
            return False
        self.dismissed.add(live.box)
        return True

    def _stopped(self, live: Live) -> bool:
        """Its processes run no more, but for what they are doing in the kernel."""
        if self.cgroups is None or "freezer" not in self.cgroups.controllers:
            return False
        try:
            self.cgroups.stop(live.group)
        except OSError:
            return False  # it is dying
        return True

    def end(self, live: Live) -> None:
        """Kill all that is in it."""
        self.dismissed.gone(live.box)
        if live.mounts is None:
            live.mounts = self._unmounter.hold(live.pid)
        self._kill(live)

    def end_all(self) -> None:
        """The zygote ends, and nobody waits for what their mounts cost."""
        self.dismissed.end_all()
        for live in self._boxes.values():
            self._kill(live)

    def _kill(self, live: Live) -> None:
        if live.box in self._frozen:
            self._thaw(live)  # v1's freezer holds even SIGKILL
        kill(live.pidfd)
        if self.cgroups is not None:
            try:  # PID 1 may be waiting, deaf to signals, for a lock that one of the others holds
                self.cgroups.kill(live.group)
            except OSError:
                traceback.print_exc()

    def _thaw(self, live: Live) -> None:
        assert self.cgroups is not None
        try:
            self.cgroups.thaw(live.group)
        except OSError:
            traceback.print_exc()  # it is dying, and so is its group

    def gone(self, box_id: str) -> None:
        """It has ended, whyever."""
        self.dismissed.gone(box_id)
        self._frozen.discard(box_id)
