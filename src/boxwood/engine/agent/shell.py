"""One shell process: how it comes up, its control pipe, and what it reports."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from boxwood.engine.agent.dialects import Dialect
from boxwood.engine.agent.folder import Folder
from boxwood.engine.agent.loop import IN, OUT, Loop
from boxwood.engine.agent.procs import Gate, Streams, spawn
from boxwood.engine.agent.state import Report
from boxwood.engine.agent.terminal import unread
from boxwood.engine.agent.trees import ProcessTree

SHELLS = (b"/bin/bash", b"/usr/bin/bash", b"/bin/sh", b"/usr/bin/sh")
_LOCALE = {b"LANG": b"C.UTF-8"}  # a shell that is told later reads its files when somebody waits
_GATHERING = 0.001  # seconds
_READ = 1 << 16


def find_shell(candidates: tuple[bytes, ...] = SHELLS) -> bytes:
    """The first that is there. FileNotFoundError: this box has no shell."""
    for path in candidates:
        if os.access(path, os.X_OK):
            return path
    raise FileNotFoundError("there is no bash and no sh in this VM")


class Shell:
    """It is started as, say, `bash bash`, in a directory where `bash` is a symbolic link to /proc/self/fd/0. So it
    opens its control pipe once more and keeps it on a high close-on-exec descriptor, descriptor 0 becomes free
    (`bash -s`, with the script on it, dies of `exec 5<&0`), and $0 in its messages is a decent name.

    `on_report` is called with a report that has got on; `on_death` with the exit code as waitstatus_to_exitcode has it,
    when the last report is in.
    """

    def __init__(
        self,
        loop: Loop,
        exe: bytes,
        kind: Dialect,
        folder: Folder,
        links: Folder,
        tree: ProcessTree,
        gate: Gate | None = None,
    ) -> None:
        self._loop = loop
        self.kind = kind
        self._folder = folder
        self._tree = tree
        self.on_report: Callable[[Report], None] = lambda report: None
        self.on_death: Callable[[int], None] = lambda code: None
        self.report = Report(kind.row)
        self._hurried = False  # somebody waits for the end of the present report
        self._unfed = b""
        self._dead = False
        self._deaf = False  # nobody reads the control pipe: a run has replaced the shell by another program
        folder.make()
        for name in (b"o", b"e", b"s"):
            folder.fifo(name)
        folder.write(b"p", kind.dump_file(folder.path))
        folder.write(b"n", b"")
        self._reports = folder.open_fifo(b"s", os.O_RDWR)  # for writing too: so it is never at its end
        try:
            self.pid = self._start(exe, links, gate)
        except OSError:
            os.close(self._reports)
            raise
        self._listen()
        loop.child(self.pid, self._on_exit)
        tree.grow(self.pid)

    def _start(self, exe: bytes, links: Folder, gate: Gate | None) -> int:
        name = self.kind.argv[-1]
        if not links.has(name):
            links.make()
            os.symlink(b"/proc/self/fd/0", links / name)
        control, self._control = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._control, False)
        theirs = [control]
        try:
            theirs.append(null := os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
            theirs.append(place := os.open(links.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            return spawn(exe, self.kind.argv, _LOCALE, Streams(control, null, null), place, gate=gate)
        except OSError:
            os.close(self._control)
            raise
        finally:
            for fd in theirs:
                os.close(fd)

    # --- telling it

    def feed(self, data: bytes) -> None:
        if not self._dead:
            self._unfed += data
            self._flush()

    def _flush(self, events: int = 0) -> None:
        try:
            sent = os.write(self._control, self._unfed)
        except BlockingIOError:
            sent = 0
        except BrokenPipeError:
            self._deaf, sent = True, len(self._unfed)
        self._unfed = self._unfed[sent:]
        if self._unfed:
            self._loop.watch(self._control, OUT, self._flush)
        else:
            self._loop.unwatch(self._control)

    def expect(self) -> Report:
        """The report of what is fed next."""
        self.report = Report(self.kind.row)
        self._hurried = False
        return self.report

    @property
    def has_read(self) -> bool:
        """Has it read all that it was fed? Most shells read ahead, so it need not have executed it."""
        return not self._unfed and unread(self._control) == 0

    @property
    def came_back(self) -> bool:
        """Has it read all that it was fed, and reported nothing since?"""
        return not self._deaf and self.has_read and unread(self._reports) == 0

    @property
    def alive(self) -> bool:
        return not self._dead

    def kill(self) -> None:
        if not self._dead:
            self._tree.signal([self.pid], signal.SIGKILL)

    # --- hearing it

    def _on_readable(self, events: int) -> None:
        try:
            data = os.read(self._reports, _READ)
        except BlockingIOError:
            return
        self._hear(data)
        if self.report.begun and not self._hurried and not self._dead:
            # A state comes in dozens of small writes, and to be woken for each takes longer than they all do.
            self._loop.unwatch(self._reports)
            self._loop.at(time.monotonic() + _GATHERING, self._listen)

    def hurry(self) -> None:
        """Somebody waits for the end of the present report: it is read as it comes."""
        self._hurried = True
        self._listen()

    def _listen(self) -> None:
        if not self._dead:
            self._loop.watch(self._reports, IN, self._on_readable)

    def _hear(self, data: bytes) -> None:
        while data:
            report = self.report
            data = report.feed(data)
            if report.complete or report.garbled:
                self.report = Report(self.kind.row)  # an exit trap may speak unasked
            self.on_report(report)
            if report.garbled:
                self.kill()
                return

    def _on_exit(self, status: int) -> None:
        self._dead = True
        try:
            while data := os.read(self._reports, _READ):  # its last words
                self._hear(data)
        except BlockingIOError:
            pass
        self._loop.unwatch(self._reports)
        self._loop.unwatch(self._control)
        os.close(self._reports)
        os.close(self._control)
        self._tree.root_died()
        self.on_death(os.waitstatus_to_exitcode(status))
