"""A command is a list of arguments, never a text for a shell; and what is told of it once it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
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


def argv_of(run: Run) -> list[str]:
    """Its arguments; of one that was started with a text for a shell, the text."""
    return [run.command] if run.argv is None else list(run.argv)


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
        "",
        wait=0,
        prompt="none",
        env=words.environment(env),
        cwd=words.workdir(workdir),
        user=user,
        beside=True,
        tag=tag,
        argv=tuple(words.command(argv)),
        leaves=True,
    )


async def run_to_end(exchange: Exchange, vm_id: str, wanted: RunRequest) -> str:
    """The output of a command that ended well. CommandFailed, CommandLost, and what the core refuses."""
    runs, caller = exchange.core.runs, exchange.caller
    run = await runs.start(caller, vm_id, replace(wanted, wait=None))  # a short one is on record once, with its end
    return output_of(run if run.ended else await runs.ended(caller, vm_id, run.run_id))


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
