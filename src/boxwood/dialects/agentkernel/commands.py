"""A command is a list of arguments, never a text for a shell; and what is told of it once it has ended.

The core runs texts in shells, so the arguments are quoted and the shell replaces itself by the program: it arrives
with exactly these bytes, and is neither a builtin nor a keyword.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

from boxwood.core.errors import Unavailable
from boxwood.core.model import Run, RunRequest
from boxwood.dialects.agentkernel import words
from boxwood.dialects.agentkernel.envelope import CommandFailed, CommandLost
from boxwood.server.errors import Disconnected
from boxwood.server.exchange import Exchange

T = TypeVar("T")

EXEC = "agentkernel.exec"
DETACHED = "agentkernel.detached"
FILE = "agentkernel.file"  # what a route of files needs a program for
_EXEC = "exec "
_EXEC_DASHED = "exec -- "  # of a program whose name begins with a dash


def script(argv: list[str]) -> str:
    """A text that a shell reads as these arguments, byte for byte."""
    return (_EXEC_DASHED if argv[0].startswith("-") else _EXEC) + " ".join(map(_quoted, argv))


def _quoted(argument: str) -> str:
    return "'" + argument.replace("'", "'\\''") + "'"


def argv_of(command: str) -> list[str]:
    """The arguments of a `script`; of any other text, itself."""
    for start in (_EXEC_DASHED, _EXEC):
        if command.startswith(start + "'"):
            try:
                argv = shlex.split(command.removeprefix(start))
            except ValueError:
                break
            if script(argv) == command:
                return argv
    return [command]


def request(
    argv: list[str],
    *,
    tag: str = EXEC,
    env: list[str] | None = None,
    workdir: str | None = None,
    user: str | None = None,
) -> RunRequest:
    """BadRequest."""
    return RunRequest(
        script(words.command(argv)),
        wait=0,
        prompt="none",
        env=words.environment(env),
        cwd=words.workdir(workdir),
        user=user,
        beside=True,
        tag=tag,
    )


async def run_to_end(exchange: Exchange, vm_id: str, wanted: RunRequest) -> str:
    """The output of a command that ended well. CommandFailed, CommandLost, and what the core refuses."""
    runs, caller = exchange.core.runs, exchange.caller
    run = await runs.start(caller, vm_id, wanted)
    return output_of(await runs.ended(caller, vm_id, run.run_id))


def output_of(run: Run) -> str:
    """Of a run that ended well. CommandFailed, CommandLost."""
    check_ended(run)
    output = joined(run)
    if run.exit_code:
        raise CommandFailed(run.exit_code, output)
    return output


def check_ended(run: Run) -> None:
    """CommandLost, unless the command came to an end of its own."""
    if run.state == "cancelled":
        raise CommandLost("it was stopped")
    if run.state != "completed" or run.exit_code is None:
        raise CommandLost(run.fail_reason or "nobody knows how it ended")


def joined(run: Run) -> str:
    """stdout and stderr as one text: with a line feed between them if there are both."""
    out, err = run.stdout.decode(errors="replace"), run.stderr.decode(errors="replace")
    return f"{out}\n{err}" if out and err else out or err


async def attended(exchange: Exchange, work: Coroutine[Any, Any, T]) -> T:
    """Do it as long as somebody waits for the answer. Only once the body has been read.
    Disconnected, Unavailable (the server is stopping)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(exchange.disconnected())
    stopping = asyncio.ensure_future(exchange.app.stopping.wait())
    try:
        await asyncio.wait((task, gone, stopping), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if stopping.done():
            raise Unavailable("the server is stopping", not_started=False)
        raise Disconnected
    finally:
        for one in (task, gone, stopping):
            one.cancel()
        await asyncio.gather(task, gone, stopping, return_exceptions=True)


def shown(at: datetime) -> str:
    """RFC 3339, in UTC."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
