"""Our own standard input, handed on to a run."""

from __future__ import annotations

import io
import os
import sys
import threading
from typing import TYPE_CHECKING

from boxwood.cli.output import note

if TYPE_CHECKING:
    from boxwood import Run

PIECE = 1 << 16  # bytes
END_SECONDS = 10.0  # until a run that has ended has refused what was on its way to it


class Source:
    """Read without a buffer of Python's, which a thread that is still reading at the end would hold locked."""

    def __init__(self) -> None:
        self._over = False  # nobody wants it any more
        self._sending = threading.Lock()
        self._there = sys.stdin is not None and not sys.stdin.closed
        try:
            self._descriptor = sys.stdin.fileno() if self._there else -1
        except (io.UnsupportedOperation, ValueError):
            self._descriptor = -1

    @property
    def is_terminal(self) -> bool:
        """Also if there is nothing to read at all."""
        return not self._there or sys.stdin.isatty()

    def beginning(self, most: int) -> tuple[bytes, bool]:
        """All of it, if that is not more than `most` bytes; else so much of it, and True: there is more."""
        data = b""
        while len(data) <= most and (piece := self._read()):
            data += piece
        return data, len(data) > most

    def hand_on(self, run: Run) -> None:
        """What comes from now on, as it comes, until its end or the run's, in a thread of its own."""
        threading.Thread(target=self._hand_on, args=(run,), daemon=True).start()

    def end(self) -> None:
        """The run has ended: nothing more is sent, and what is on its way has been answered."""
        self._over = True
        if self._sending.acquire(timeout=END_SECONDS):
            self._sending.release()

    def _hand_on(self, run: Run) -> None:
        from boxwood import BoxwoodError, Conflict

        try:
            while piece := self._read():
                with self._sending:
                    if self._over:
                        return
                    run.write_stdin(piece)
            with self._sending:
                if not self._over:
                    run.close_stdin()
        except Conflict:  # it does not read any more, or has ended: so it is with a pipe
            return
        except BoxwoodError as error:
            if not self._over:
                note(f"boxwood: standard input is no longer handed on: {error}")

    def _read(self) -> bytes:
        if self._descriptor >= 0:
            return os.read(self._descriptor, PIECE)
        return sys.stdin.buffer.read(PIECE) if self._there else b""
