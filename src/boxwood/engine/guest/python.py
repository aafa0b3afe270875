"""The interpreter of a Python context: runs source in one namespace that lives on, and reports what comes of it.

It is executed by the VM's own python3 (3.8 or later), behind `showing.py`, as one program that knows nothing but the
standard library. Whatever a run does to it, it can lie about this VM only: the agent bounds what it says, the
server checks it.

`main(fd)`: a SOCK_SEQPACKET socket to the agent. An order is one packet, `run NUMBER`, with five descriptors: the
source, what becomes 0, 1 and 2, and where reports go, one JSON object a line. The answer is one packet, `done NUMBER
CODE` with the environment behind it (NAME=VALUE, NUL after each), when the code has ended and all that it wrote is
there.
"""

from __future__ import annotations
import __future__ as futures

import _ast
import builtins
import contextlib
import fcntl
import linecache
import os
import signal
import sys
import types

TYPE_CHECKING = False  # `typing` takes longer to load than all of this
if TYPE_CHECKING:
    from typing import Any

    from boxwood.engine.guest.showing import (
        PlotFinder,
        bundle,
        cut,
        frames_of,
        safe_text,
        show_figures,
        told,
    )

try:
    import _socket as sockets  # the C part alone: a third of what `socket` costs
except ImportError:
    import socket as sockets  # type: ignore[no-redef]

TREE, AWAIT, COROUTINE = 0x400, 0x2000, 0x80  # flags: only parse; await outside of functions; the code is a coroutine
KEPT_SOURCES, MOST_SOURCES = 4 << 20, 500  # characters, and earlier runs, that tracebacks can show
MOST_ENV = 48 << 10  # bytes: all of an answer must be one packet
REPORT_BYTES = 8 << 20  # of one run


class Reports:
    """Where a run's results go: at most so many bytes, and how many were left out."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.left = REPORT_BYTES
        self.dropped = 0

    def put(self, record: Any) -> None:
        import json

        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if len(line) > self.left:
            self.dropped += 1
            return
        self.left -= len(line)
        self.write(line)

    def write(self, line: bytes) -> None:
        view = memoryview(line)
        while view:
            view = view[os.write(self.fd, view) :]

    def close(self) -> None:
        if self.dropped:
            self.write(b'{"dropped": %d}\n' % self.dropped)
        os.close(self.fd)


class Interpreter:
    def __init__(self, control: Any) -> None:
        self.control = control
        self.pid = os.getpid()
        self.running = False
        self.flags = AWAIT
        self.number = 0
        self.reports: Any = None
        self.loop: Any = None
        self.shown: Any = set()  # ids of figures that this run has shown
        self.sources: Any = []
        self.modules = 0
        self.flush_c: Any = None
        module = types.ModuleType("__main__")
        module.__builtins__ = builtins  # type: ignore[attr-defined]
        self.main_before = sys.modules["__main__"]  # its namespace would be emptied if nobody held it
        sys.modules["__main__"] = module
        self.names = module.__dict__
        builtins.display = self.display  # type: ignore[attr-defined]
        sys.displayhook = self.show_value
        sys.argv = [""]
        if "" not in sys.path:
            sys.path.insert(0, "")
        os.register_at_fork(after_in_child=self.let_go)
        signal.signal(signal.SIGINT, self.interrupted)

    def interrupted(self, signum: int, frame: Any) -> None:
        if self.running:
            raise KeyboardInterrupt

    def let_go(self) -> None:
        """In a fork: it has nothing to say to the agent."""
        self.control.close()
        if self.reports is not None:
            os.close(self.reports.fd)
            self.reports = None

    # --- orders

    def serve(self) -> None:
        self.control.send(b"ready")
        while True:
            word, fds = receive(self.control)
            if len(fds) != 5:
                os._exit(0)
            self.number = int(word.split()[1])
            code = self.attend(fds)
            environment = b"".join(b"%s=%s\0" % pair for pair in os.environb.items() if pair[0] != b"MPLBACKEND")
            if len(environment) > MOST_ENV:
                environment = b""
            self.control.send(b"done %d %d\0" % (self.number, code) + environment)

    def attend(self, fds: Any) -> int:
        source = read_all(fds[0])
        for number in (0, 1, 2):
            os.dup2(fds[number + 1], number)
        self.reports = Reports(fds[4])
        for fd in fds[:4]:
            os.close(fd)
        streams()
        try:
            code = self.run(source)
        except BaseException as error:  # it came too late for the code, but it did come
            self.running = False
            code = self.failed(error)
        if os.getpid() != self.pid:
            flush()
            os._exit(code)
        self.running = False
        flush()
        self.flush_libraries()
        self.reports.close()
        self.reports = None
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for number in (0, 1, 2):
            os.dup2(null, number)  # what goes on writes to nobody, and is not killed by that
        os.close(null)
        return code

    def run(self, source: bytes) -> int:
        """The exit code of a run."""
        self.shown.clear()
        try:
            self.running = True
            codes, wanted = self.compiled(source)
            for code in codes:
                value = self.execute(code)
            if wanted:
                sys.displayhook(value)
            if self.reports is not None:
                show_figures(self)
            return 0
        except SystemExit as error:
            self.running = False
            return exit_code(error)
        except BaseException as error:
            self.running = False
            if not isinstance(error, SyntaxError) and self.reports is not None:
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    show_figures(self)
            return self.failed(error)
        finally:
            self.running = False

    def compiled(self, source: bytes) -> Any:
        """What is to be executed, and whether the last of it is an expression whose value the run has. All of it is
        compiled before any of it is executed."""
        text = source.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")  # as `compile` sees it
        name = f"<run {self.number}>"
        self.remember(name, text)
        tree = compile(text, name, "exec", TREE | self.flags, True)
        last = tree.body[-1] if tree.body else None
        value = isinstance(last, _ast.Expr) and not ends_silently(text, last)
        codes = []
        if value:
            tree.body.pop()
        if tree.body:
            codes.append(compile(tree, name, "exec", self.flags, True))
            self.flags |= codes[0].co_flags & futures.annotations.compiler_flag
        if last is not None and value:
            codes.append(compile(_ast.Expression(last.value), name, "eval", self.flags, True))
        return codes, value

    def remember(self, name: str, text: str) -> None:
        """So that tracebacks and `inspect` find the source."""
        linecache.cache[name] = (len(text), None, [line + "\n" for line in text.split("\n")], name)
        self.sources.append((name, len(text)))
        while len(self.sources) > MOST_SOURCES or sum(size for _, size in self.sources[:-1]) > KEPT_SOURCES:
            linecache.cache.pop(self.sources.pop(0)[0], None)

    def execute(self, code: Any) -> Any:
        made = eval(code, self.names)
        if not code.co_flags & COROUTINE:
            return made
        import asyncio

        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
        task = self.loop.create_task(made)
        try:
            return self.loop.run_until_complete(task)
        except BaseException:
            if not task.done():
                task.cancel()
                self.loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            raise

    # --- what comes of it

    def show_value(self, value: Any) -> None:
        if value is not None:
            builtins._ = value  # type: ignore[attr-defined]
            self.show(value, "value")

    def display(self, *values: Any) -> None:
        """Show values as results, before the end of the run."""
        for value in values:
            self.show(value, "display")

    def show(self, value: Any, kind: str) -> None:
        data, truncated = bundle(self, value)
        record: Any = {"kind": kind, "data": data}
        if truncated:
            record["truncated"] = truncated
        if self.reports is not None:  # else it is a fork
            flush()  # what was printed before it is told before it
            self.reports.put({"result": record})

    def failed(self, error: BaseException) -> int:
        """Tell of an exception, on stderr and as a report. 1."""
        if self.reports is not None:  # else it is a fork, with what was printed before it
            flush()
        text, frames = "", []
        try:
            trace = error.__traceback__
            while trace is not None and trace.tb_frame.f_code.co_filename == "<boxwood>":
                trace = trace.tb_next
            error.__traceback__ = trace
            text = told(error)
            frames = frames_of(error)
        except BaseException:  # an exception of a class that was made to trouble whoever prints it
            text = text or type(error).__name__ + "\n"
        try:
            if sys.excepthook is not sys.__excepthook__:
                sys.excepthook(type(error), error, error.__traceback__)
            else:
                sys.stderr.write(text)
                sys.stderr.flush()
        except BaseException:
            os.write(2, text.encode("utf-8", "backslashreplace"))
        if self.reports is not None:
            said = {"name": type(error).__name__, "value": cut(safe_text(error)), "frames": frames, "traceback": text}
            with contextlib.suppress(Exception):
                self.reports.put({"error": said})
        return 1

    def flush_libraries(self) -> None:
        """What C code has printed and not yet written: only extensions from outside the standard library can have."""
        if len(sys.modules) != self.modules:
            self.modules = len(sys.modules)
            if self.flush_c is None and any(foreign(module) for module in list(sys.modules.values())):
                try:
                    import ctypes

                    self.flush_c = ctypes.CDLL(None).fflush
                except Exception:
                    self.flush_c = False
        if self.flush_c:
            self.flush_c(None)


def foreign(module: Any) -> bool:
    name = getattr(module, "__name__", None)
    file = getattr(module, "__file__", None)
    return name == "_ctypes" or (isinstance(file, str) and file.endswith(".so") and "-packages" in file)


def receive(control: Any) -> Any:
    """A packet and its descriptors, out of the way of 0 to 2. None left open at the end of the link."""
    data, ancillary, _, _ = control.recvmsg(64, sockets.CMSG_SPACE(5 * 4), getattr(sockets, "MSG_CMSG_CLOEXEC", 0))
    got = [item for _, _, rights in ancillary for item in memoryview(rights[: len(rights) // 4 * 4]).cast("i")]
    fds = []
    for fd in got:
        fds.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(fd)
    return data, fds


def read_all(fd: int) -> bytes:
    size, data = os.fstat(fd).st_size, b""
    while len(data) < size:
        data += os.pread(fd, size - len(data), len(data))
    return data


def streams() -> None:
    """Python's side of descriptors 0 to 2: standard input anew, the others as they are unless they were closed."""
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name, None)
        if stream is None or getattr(stream, "closed", True):
            errors = "backslashreplace" if number == 2 else None
            stream = open(number, "w", buffering=1, closefd=False, errors=errors)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        elif stream is getattr(sys, f"__{name}__"):
            stream.reconfigure(line_buffering=True)


def flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(Exception):
            stream.flush()  # type: ignore[union-attr]


def exit_code(error: SystemExit) -> int:
    """As python3 has it."""
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


def ends_silently(text: str, last: Any) -> bool:
    """A semicolon behind the last expression: its value is not wanted."""
    lines = text.encode("utf-8").split(b"\n")
    rest = lines[last.end_lineno - 1][last.end_col_offset :]
    return bool(rest.lstrip().startswith(b";"))


def main(fd: int) -> None:
    if sys.version_info < (3, 8):
        sys.stderr.write(f"boxwood: a Python context needs python3 3.8 or later, this is {sys.version}\n")
        os._exit(1)
    os.environ.setdefault("MPLBACKEND", "agg")
    control = sockets.socket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100))
    os.close(fd)
    interpreter = Interpreter(control)
    sys.meta_path.insert(0, PlotFinder(interpreter))
    interpreter.serve()
