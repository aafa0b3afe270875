"""Jobs on layers as the zygote has them: a jailed child each (layers/jail.py), which answers the server itself."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable
from typing import Any, NoReturn

from boxwood.engine import birth
from boxwood.engine.children import kill, pidfd_of
from boxwood.engine.disk import image
from boxwood.engine.layers import jail


class Jobs:
    """`images`: a descriptor of the directory of image layers."""

    def __init__(self, selector: selectors.BaseSelector, images: int) -> None:
        self._selector = selector
        self._images = images
        self._all: dict[int, tuple[int, Callable[[], object]]] = {}  # by pidfd: pid, what is called after it

    def __len__(self) -> int:
        return len(self._all)

    def begin(
        self, job: dict[str, Any], place: int, fds: list[int], loops: image.Loops, after: Callable[[], object]
    ) -> None:
        """`place`: a descriptor of the directory that the layers lie in; `fds`: where the answer goes, and perhaps
        another pipe; `loops`: devices of layers in files; `after`: called when it has ended. OSError."""
        out, more = fds[0], fds[1] if len(fds) > 1 else None
        self.start(lambda: jail.jailed(job, place, self._images, out, loops, more), after)

    def start(self, work: Callable[[], NoReturn], after: Callable[[], object] = lambda: None) -> None:
        """In a child, which ends with it. OSError."""
        pid = os.fork()
        if pid == 0:
            try:
                birth.reset_signals()
                work()
            finally:
                os._exit(1)  # whatever happens, a child does not go on as a second zygote
        pidfd = pidfd_of(pid)
        self._all[pidfd] = pid, after
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._ended(pidfd))

    def kill(self) -> None:
        """All of them. What they leave has a name that is no layer's."""
        for pidfd in self._all:
            kill(pidfd)

    def _ended(self, pidfd: int) -> None:
        pid, after = self._all.pop(pidfd)
        os.waitpid(pid, 0)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        after()
