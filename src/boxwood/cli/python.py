"""`boxwood python`: source in a Python context of a VM, or a prompt for it."""

from __future__ import annotations

import codeop
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from boxwood.cli.options import Json, connect
from boxwood.cli.output import HOSTILE, note, say_json, write_bytes
from boxwood.cli.run import exit_code, facts
from boxwood.client.errors import BoxwoodError

if TYPE_CHECKING:
    from boxwood import PythonResult, RunExited, Session

SOURCE_LIMIT = 3_000_000  # bytes


def python(
    vm: Annotated[str, typer.Argument(metavar="VM", help="By id or name.")],
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="Source of this host; -: standard input.")
    ] = None,
    code: Annotated[str | None, typer.Option("-c", metavar="CODE", help="The source itself.")] = None,
    session: Annotated[
        str | None,
        typer.Option(metavar="ID", help="A Python context that is there. Default: a new one, gone at the end."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the new context there, and print its id.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Interrupt it after that.")] = None,
    json: Json = False,
) -> int:
    """Run Python source in a VM, with its own python3, or type it at a prompt.

    Variables live on from run to run in one context. The value of the last expression is printed; exits with 1 if an
    exception has ended the source, and as `sys.exit` says.
    """
    if code is not None and file is not None:
        raise typer.BadParameter("give a FILE or -c CODE")
    source = code if code is not None else _source(file)
    if source is None and json:
        raise typer.BadParameter("--json needs FILE or -c CODE")
    with connect() as box:
        owner = box.vm(vm)
        context = owner.get_session(session) if session is not None else owner.python()
        if context.kind != "python":
            raise typer.BadParameter(f"{context.id} is a shell: `boxwood run --session {context.id}`")
        try:
            if source is None:
                return _prompt(context, timeout)
            if json:
                done = context.run(source, timeout=timeout)
                say_json({**facts(done), "results": done.results, "error": done.error, "context": done.context})
                return exit_code(done, quiet=True)
            return exit_code(_tell(context, source, timeout))
        finally:
            if keep:
                note(context.id)
            elif session is None:
                context.delete()


def _source(file: str | None) -> str | None:
    """What is to be run; None: it is typed."""
    if file is None and sys.stdin is not None and sys.stdin.isatty():
        return None
    data = sys.stdin.buffer.read(SOURCE_LIMIT + 1) if file in (None, "-") else Path(str(file)).read_bytes()
    if len(data) > SOURCE_LIMIT:
        raise typer.BadParameter(f"more than {SOURCE_LIMIT} bytes: `boxwood cp` it into the VM and import it there")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise typer.BadParameter("the source is not UTF-8") from None


def _tell(context: Session, source: str, timeout: float | None) -> RunExited:
    """Hand on what comes, as it comes. Ctrl-C interrupts what runs in the VM; who insists is no longer told of it."""
    from boxwood import PythonContext, PythonResult, RunExited, RunOutput

    with _passed_on(context):
        for event in context.run_stream(source, timeout=timeout):
            if isinstance(event, RunOutput):
                write_bytes(event.data, error=event.stream == "stderr")
            elif isinstance(event, PythonResult):
                _show(event)
            elif isinstance(event, PythonContext) and event.new and event.lost:
                note(f"boxwood: a new interpreter, without variables: {event.lost}")
            elif isinstance(event, RunExited):
                return event
    raise AssertionError("the SDK's events end with the run")


@contextmanager
def _passed_on(context: Session) -> Iterator[None]:
    """Ctrl-C goes to the VM. The third time it is meant for us."""
    pressed = 0

    def interrupt() -> None:
        with suppress(BoxwoodError):  # it has ended meanwhile
            context.interrupt()

    def handle(signum: int, frame: object) -> None:
        nonlocal pressed
        pressed += 1
        if pressed > 2:
            raise KeyboardInterrupt
        threading.Thread(target=interrupt, daemon=True).start()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _show(result: PythonResult) -> None:
    """As text: what a terminal would obey is written out."""
    lines = (result.text or "").split("\n")
    shown = "\n".join(HOSTILE.sub(lambda found: ascii(found.group())[1:-1], line) for line in lines)
    others = [mime for mime in result.data if mime != "text/plain"]
    write_bytes(shown.encode() + b"\n")
    if result.png is not None or result.svg is not None:
        note(f"boxwood: also there with --json: {', '.join(others)}")


def _prompt(context: Session, timeout: float | None) -> int:
    """Until end of file."""
    note("Python in the VM: variables live on. Ctrl-C interrupts, Ctrl-D ends.")
    compiler, lines = codeop.CommandCompiler(), []  # type: tuple[codeop.CommandCompiler, list[str]]
    while True:
        try:
            lines.append(input("... " if lines else ">>> "))
            source = "\n".join(lines)
            if _is_unfinished(compiler, source):
                continue
        except EOFError:
            note("")
            return 0
        except KeyboardInterrupt:
            note("KeyboardInterrupt")
            lines = []
            continue
        lines = []
        if source.strip():
            exit_code(_tell(context, source, timeout))


def _is_unfinished(compiler: codeop.CommandCompiler, source: str) -> bool:
    """As far as the Python of this host can tell; the VM's has the last word."""
    try:
        return compiler(source, "<stdin>", "single") is None
    except (SyntaxError, ValueError, OverflowError):
        return False
