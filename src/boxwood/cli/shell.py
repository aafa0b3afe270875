"""`boxwood shell`: a terminal in a VM, on the one that it is called from.

That one is put into raw mode, so that every key goes to the VM, and given back as it was, whatever happens. Ctrl-] is
the key for ourselves: then `d` detaches, `k` ends what runs there, Ctrl-] sends itself, and all else goes as typed.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from boxwood.cli.options import connect
from boxwood.cli.output import note
from boxwood.client.errors import BoxwoodError, ConnectionFailed, NotFound, ResourceBusy, Unavailable

if TYPE_CHECKING:
    from boxwood import Pty, Session

KEY = 0x1D  # Ctrl-]
END_OF_INPUT = b"\x04"
READ = 4096
LEAVING_SECONDS = 10.0
BACK_SECONDS, AGAIN_SECONDS = 30.0, 0.25
CLEAR = b"\x1b[H\x1b[2J"
ENDING = (signal.SIGTERM, signal.SIGHUP)
OTHER_SCREEN, FIRST_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"
# What a full-screen program may have left on: no cursor, mouse, pasting in brackets, keys of its own, colours.
SANE = b"\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>\x1b[0m"


def shell(
    vm: Annotated[str, typer.Argument(metavar="VM", help="By id or name.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND...", help="One word: text for the shell. More: a program and its arguments."),
    ] = None,
    session: Annotated[str | None, typer.Option(help="Look at this session's terminal; default: a new one.")] = None,
    kill: Annotated[bool, typer.Option("--kill", help="End what runs there, when this ends.")] = False,
) -> int:
    """Open a terminal in a VM.

    Ctrl-] d detaches: what runs there goes on, and `boxwood shell VM --session ID` comes back to it. Ctrl-] k ends
    it. Without COMMAND it is a login shell. The exit code is that of what ran.
    """
    with connect() as box:
        machine = box.vm(vm)
        place = machine.get_session(session) if session is not None else machine.session()
        looking = None
        try:
            looking = _Looking(lambda: _open(place, command))
            code = looking.run(kill)
        finally:
            if session is None and (looking is None or looking.over):
                _delete(place)
    if not looking.over:
        note(f"boxwood: left; `boxwood shell {vm} --session {place.id}` comes back")
    return code


def _open(place: Session, command: list[str] | None) -> Pty:
    columns, rows = _size()
    words = None if not command else command[0] if len(command) == 1 else command
    return place.pty(words, columns=columns, rows=rows, term=_term())


def _delete(place: Session) -> None:
    try:
        place.delete()
    except (NotFound, BoxwoodError):  # it is gone with its VM, or is left behind with its server
        pass


def _term() -> str | None:
    name = os.environ.get("TERM", "")
    good = name.isascii() and name[:1].isalnum() and all(c.isalnum() or c in "._+-" for c in name) and len(name) <= 64
    return name if good else None


def _size() -> tuple[int, int]:
    """Columns and rows of the terminal that we are called from; 80 and 24 if it is none."""
    for stream in (sys.stdout, sys.stdin, sys.stderr):
        try:
            size = os.get_terminal_size(stream.fileno())
        except (OSError, ValueError, AttributeError):
            continue
        if size.columns and size.lines:
            return min(size.columns, 1000), min(size.lines, 1000)
    return 80, 24


class _Looking:
    """One look at a terminal. A thread shows what it shows; this one reads keys and waits for signals."""

    def __init__(self, look: Callable[[], Pty]) -> None:
        self._look = look
        self._pty = look()
        self._leaving = threading.Event()
        self._woken, self._wake = os.pipe()
        self._failure: BoxwoodError | None = None
        self._raw = self._other_screen = False
        self._last = b"\n"
        self._prefixed = False
        self._signals: list[int] = []
        self.detached = self.over = False

    def run(self, kill: bool) -> int:
        """Until it ends, or is left. The exit code. BoxwoodError: the connection broke."""
        os.set_blocking(self._wake, False)
        showing = threading.Thread(target=self._show, daemon=True)
        with self._listening(), _raw() as self._raw:
            showing.start()
            try:
                self._hear()
                if kill and not self.over:
                    self._kill()
                    showing.join(LEAVING_SECONDS)
            finally:
                self._leaving.set()
                self._pty.close()
                showing.join(LEAVING_SECONDS)
                self._tidy()
        if self._signals:
            return 128 + self._signals[0]
        if self._failure is not None and not self.detached:
            raise self._failure
        return (self._pty.exit_code or 0) if self.over or self.detached else 1

    def _tidy(self) -> None:
        """Whoever ends by itself leaves the terminal as it was; for whoever is left or killed we do."""
        if not sys.stdout.isatty() or self._pty.end == "exit":
            return
        try:
            _write_all(sys.stdout.fileno(), SANE + (FIRST_SCREEN if self._other_screen else b"") + b"\r\n")
        except OSError:
            pass

    def _show(self) -> None:
        from boxwood.client.answers import LOST

        try:
            while not self.over:
                try:
                    while data := self._pty.read():
                        if (seen := max(data.rfind(OTHER_SCREEN), data.rfind(FIRST_SCREEN))) >= 0:
                            self._other_screen = data.startswith(OTHER_SCREEN, seen)
                        _write_all(sys.stdout.fileno(), data)
                    self.over = True
                except ConnectionFailed as error:
                    if error.code != LOST or not self._come_back():
                        raise
        except BoxwoodError as error:
            self._failure = error
        except OSError:  # nobody sees it any more
            pass
        finally:
            self._tell(b"e")

    def _come_back(self) -> bool:
        """The server has gone: look again as soon as there is one. False: there is none for too long, or we leave."""
        if sys.stdout.isatty():
            _write_all(
                sys.stdout.fileno(), b"\r\n[boxwood: the connection broke; waiting for the server. Ctrl-] d leaves]\r\n"
            )
        late = time.monotonic() + BACK_SECONDS
        while not self._leaving.wait(AGAIN_SECONDS):
            try:
                self._pty = self._look()
            except (ConnectionFailed, ResourceBusy, Unavailable):
                if time.monotonic() > late:
                    return False
                continue
            if self._leaving.is_set():
                self._pty.close()
                return False
            if sys.stdout.isatty():  # all of it is shown again
                _write_all(sys.stdout.fileno(), (FIRST_SCREEN if self._other_screen else b"") + CLEAR)
            return True
        return False

    def _hear(self) -> None:
        keys = [sys.stdin.fileno()] if sys.stdin is not None and not sys.stdin.closed else []
        while True:
            ready, _, _ = select.select([self._woken, *keys], [], [])
            if self._woken in ready and not self._woken_by(os.read(self._woken, READ)):
                return
            if keys and keys[0] in ready:
                data = os.read(keys[0], READ)
                if not data:
                    keys.clear()
                    self._send(END_OF_INPUT if self._last == b"\n" else END_OF_INPUT * 2)  # the first ends a line
                elif not self._type(data):
                    return

    def _woken_by(self, told: bytes) -> bool:
        """False: it is over."""
        if b"w" in told:
            self._resize()
        return b"e" not in told

    def _type(self, data: bytes) -> bool:
        """False: leave it."""
        if not self._raw:
            self._send(data)
            self._last = data[-1:]
            return True
        send = bytearray()
        for key in data:
            if self._prefixed:
                self._prefixed = False
                if key in b"dD":
                    self._send(bytes(send))
                    self.detached = True
                    return False
                if key in b"kK":
                    self._kill()
                    continue
                send += bytes([key]) if key == KEY else bytes([KEY, key])
            elif key == KEY:
                self._prefixed = True
            else:
                send.append(key)
        self._send(bytes(send))
        return True

    def _send(self, data: bytes) -> None:
        try:
            if data:
                self._pty.write(data)
        except BoxwoodError:  # whoever reads hears why
            pass

    def _kill(self) -> None:
        try:
            self._pty.kill()
        except BoxwoodError:
            pass

    def _resize(self) -> None:
        try:
            self._pty.resize(*_size())
        except BoxwoodError:
            pass

    def _tell(self, what: bytes) -> None:
        try:
            os.write(self._wake, what)
        except OSError:
            pass

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Signals wake the one who waits."""

        def resized(signum: int, frame: Any) -> None:
            self._tell(b"w")

        def ended(signum: int, frame: Any) -> None:
            self._signals.append(signum)
            self._tell(b"e")

        before = {signal.SIGWINCH: signal.signal(signal.SIGWINCH, resized)}
        for signum in ENDING:
            before[signum] = signal.signal(signum, ended)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


@contextmanager
def _raw() -> Iterator[bool]:
    """Every key is ours, if standard input is a terminal (then True), and the terminal is as before at the end."""
    if sys.stdin is None or sys.stdin.closed or not sys.stdin.isatty():
        yield False
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield True
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody else has made it so
            select.select([], [fd], [])
